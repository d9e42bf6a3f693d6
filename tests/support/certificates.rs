//! Certificates for daemons and their clients.

use tempfile::TempDir;

use super::{Run, is_installed, is_root};

/// An authority, and a certificate with its key for the daemon and for clients, as `openssl` makes them.
#[derive(Debug)]
pub struct Certificates(TempDir);

impl Certificates {
    /// Makes `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`; `None` without root or `openssl`.
    pub fn make() -> Option<Self> {
        if !is_root() || !is_installed("openssl", "openssl") {
            return None;
        }
        let temporary = tempfile::tempdir().expect("make a directory");
        let dir = temporary.path();
        let openssl = |args: &str| {
            let args = args.replace("DIR", dir.to_str().expect("a path of letters"));
            Run::new("openssl").args(args.split_whitespace()).ok();
        };
        openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout DIR/ca.key -out DIR/ca.pem",
        );
        std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1").expect("write a file");
        for name in ["server", "client"] {
            openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout DIR/{name}.key -out DIR/{name}.csr"
            ));
            openssl(&format!(
                "x509 -req -days 2 -in DIR/{name}.csr -CA DIR/ca.pem -CAkey DIR/ca.key -CAcreateserial -extfile DIR/names -out DIR/{name}.pem"
            ));
        }
        Some(Self(temporary))
    }

    /// Returns the path of a file of theirs.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Returns the options by which a command uses the certificate of `server` or `client`.
    pub fn options(&self, whose: &str) -> Vec<String> {
        let files =
            [("--tlscacert", "ca.pem"), ("--tlscert", &format!("{whose}.pem")), ("--tlskey", &format!("{whose}.key"))];
        files.into_iter().flat_map(|(option, name)| [option.to_owned(), self.path(name)]).collect()
    }

    /// Returns the options of a daemon that listens for clients with a certificate.
    pub fn listening(&self) -> Vec<String> {
        [vec!["-H".to_owned(), "tcp://127.0.0.1:0".to_owned()], self.options("server")].concat()
    }
}
