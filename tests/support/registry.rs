//! Starts a real registry (Debian's `docker-registry`) on loopback for tests, with storage of its own.
//!
//! Included by path where it is needed; depends on nothing but the standard library and `tempfile`. It says nothing about
//! what clients do with the registry.

#![allow(dead_code, unreachable_pub, reason = "each place that includes this file uses a part of it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const PROGRAM: &str = "docker-registry";

/// How long a start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The user that [`Access::Password`] lets in.
pub const USER: &str = "kiln";

/// That user's password.
pub const PASSWORD: &str = "opensesame";

/// The line `htpasswd -nbB` makes of the two.
const HTPASSWD: &str = "kiln:$2y$05$0d1Z3bbSiTq65JfgpLsH1OK2OKbWDcUqb9CnET0HBRgtQzZu0IFtS\n";

/// Who may use the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// [`USER`] with [`PASSWORD`].
    Password,
}

/// What the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Plain HTTP.
    Plain,
    /// TLS, with a certificate that [`Registry::ca`] vouches for.
    Tls,
    /// TLS, and clients have to show a certificate, such as [`Registry::client_cert`].
    MutualTls,
    /// TLS, with a certificate that is its own authority, as registries' manuals make it.
    SelfSigned,
}

/// A running registry; dropping it ends it and removes its storage.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    host: String,
    dir: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

/// Returns whether the program is installed; if not, says how to get it.
pub fn is_installed() -> bool {
    let found = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: {PROGRAM} is not installed (apt-get install docker-registry)");
    }
    found
}

impl Registry {
    /// Starts a registry that everybody may use by plain HTTP.
    pub fn start() -> Self {
        Self::start_with(Access::Open, Connection::Plain)
    }

    /// Starts a registry and waits until it listens.
    pub fn start_with(access: Access, connection: Connection) -> Self {
        let dir = tempfile::tempdir().expect("make a directory for a registry");
        let config = configuration(dir.path(), access, connection);
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).expect("write a registry's configuration");
        let mut process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start docker-registry");
        let log = process.stderr.take().expect("standard error was piped");
        let (sender, receiver) = mpsc::channel();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        // Reads to the end, for the registry would block on a full pipe.
        std::thread::spawn(move || {
            let mut lines = BufReader::new(log).lines().map_while(Result::ok);
            let address = lines.find_map(|line| {
                let rest = line.split_once("listening on ")?.1;
                Some(rest.split([',', '"']).next()?.to_owned())
            });
            let _ = sender.send(address);
            for request in lines.filter_map(|line| request_of(&line)) {
                kept.lock().expect("a lock").push(request);
            }
        });
        let host = receiver.recv_timeout(PATIENCE).expect("the registry did not start in time");
        let host = host.expect("the registry ended without listening");
        Self { process, host, dir, requests }
    }

    /// Returns `127.0.0.1:<port>`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the certificate to trust, a PEM file, when the registry speaks TLS.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Returns a certificate that lets a client in, a PEM file, when the registry wants one.
    pub fn client_cert(&self) -> PathBuf {
        self.dir.path().join("client.crt")
    }

    /// Returns the key of [`Registry::client_cert`].
    pub fn client_key(&self) -> PathBuf {
        self.dir.path().join("client.key")
    }

    /// Returns the requests answered since the last call, as `GET /v2/name/blobs/sha256:...`, of a registry that speaks plain HTTP.
    pub fn take_requests(&self) -> Vec<String> {
        // What this one is logged after has been logged.
        let mut last = TcpStream::connect(&self.host).expect("connect to the registry");
        last.write_all(b"GET /v2/?last HTTP/1.0\r\n\r\n").expect("ask the registry");
        last.read_to_end(&mut Vec::new()).expect("read the registry's answer");
        let start = Instant::now();
        loop {
            let mut requests = self.requests.lock().expect("a lock");
            if requests.last().is_some_and(|request| request == "GET /v2/?last") {
                requests.pop();
                return std::mem::take(&mut requests);
            }
            drop(requests);
            assert!(start.elapsed() < PATIENCE, "the registry does not log what it is asked");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns where the registry keeps its blobs.
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The request that a line of the log is about.
fn request_of(line: &str) -> Option<String> {
    let field = |name: &str| {
        let value = line.split_once(&format!(" http.request.{name}="))?.1;
        Some(match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next()?,
            None => value.split(' ').next()?,
        })
    };
    line.contains("msg=\"response completed").then(|| Some(format!("{} {}", field("method")?, field("uri")?)))?
}

fn configuration(dir: &Path, access: Access, connection: Connection) -> String {
    let mut config = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {0}}}\n  \
         delete: {{enabled: true}}\nvalidation: {{manifests: {{urls: {{allow: ['^http://127.0.0.1']}}}}}}\n\
         http:\n  addr: 127.0.0.1:0\n",
        dir.join("storage").display()
    );
    if connection != Connection::Plain {
        make_certificates(dir, connection);
        let [cert, key, ca] = ["server.crt", "server.key", "ca.crt"].map(|name| dir.join(name).display().to_string());
        let clients = if connection == Connection::MutualTls { format!(", clientcas: [{ca}]") } else { String::new() };
        config += &format!("  tls: {{certificate: {cert}, key: {key}{clients}}}\n");
    }
    if access == Access::Password {
        let file = dir.join("htpasswd");
        std::fs::write(&file, HTPASSWD).expect("write a registry's passwords");
        config += &format!("auth:\n  htpasswd: {{realm: registry, path: {}}}\n", file.display());
    }
    config
}

/// Makes `server.crt`, `server.key` and the `ca.crt` to trust.
fn make_certificates(dir: &Path, connection: Connection) {
    const NAMES: &str = "subjectAltName=IP:127.0.0.1,DNS:localhost";
    let self_signed = |name: &str, subject: &str, extra: &[&str]| {
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        let common = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let files = ["-keyout", &key, "-out", &crt, "-subj", subject];
        openssl(dir, &[&common[..], &files[..], extra].concat());
    };
    if connection == Connection::SelfSigned {
        self_signed("server", "/CN=registry", &["-addext", NAMES]);
        std::fs::copy(dir.join("server.crt"), dir.join("ca.crt")).expect("copy a certificate");
        return;
    }
    self_signed("ca", "/CN=test authority", &[]);
    let signed = ["-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.crt", "-CAkey", "ca.key"];
    self_signed("server", "/CN=registry", &[&["-addext", NAMES], &signed[..]].concat());
    if connection == Connection::MutualTls {
        self_signed("client", "/CN=client", &signed);
    }
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let mut process = Command::new("openssl")
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start openssl");
    let mut said = String::new();
    let stderr = process.stderr.as_mut().expect("standard error was piped");
    stderr.read_to_string(&mut said).expect("read what openssl says");
    assert!(process.wait().expect("wait for openssl").success(), "openssl {arguments:?}: {said}");
}
