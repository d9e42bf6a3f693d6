//! A web server on loopback that answers as a test tells it, and counts what it was asked. Serves git repositories, too, by the
//! real `git http-backend`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// The path, without the query.
    pub path: String,
    pub query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Returns a value of the query, with its escapes.
    pub fn value(&self, key: &str) -> Option<&str> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Returns a header; the name is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// How much of the body is sent.
    sent: usize,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), sent: body.len(), body }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Breaks off after so many bytes of the body.
    pub fn truncated(mut self, sent: usize) -> Self {
        self.sent = sent;
        self
    }
}

/// A server; dropping it ends it.
#[derive(Debug)]
pub struct Web {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Web {
    /// Starts a server.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let address = listener.local_addr().expect("a listener has an address");
        let (asked, stopping) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicBool::new(false)));
        let (log, stop, answer) = (Arc::clone(&asked), Arc::clone(&stopping), Arc::new(answer));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                // Whoever breaks off is none of the server's business.
                std::thread::spawn(move || drop(serve(&stream, &log, &*answer)));
            }
        });
        Self { address, asked, stopping, accepting: Some(accepting) }
    }

    /// Serves the repositories below a directory. `allowed` says who may.
    pub fn git(root: PathBuf, allowed: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Self {
        Self::start(move |request| if allowed(request) { backend(&root, request) } else { unauthorized() })
    }

    /// Returns host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns an address on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Returns what was asked since the last call, as `METHOD /path`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("nobody panics with it"))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.accepting.take().map(JoinHandle::join);
    }
}

fn unauthorized() -> Answer {
    Answer::new(401, "who are you?").header("WWW-Authenticate", "Basic realm=\"test\"")
}

/// Answers one request, then ends the connection.
fn serve(stream: &TcpStream, log: &Mutex<Vec<String>>, answer: &dyn Fn(&Request) -> Answer) -> std::io::Result<()> {
    let mut input = BufReader::new(stream);
    let request = read(&mut input)?;
    log.lock().expect("nobody panics with it").push(format!("{} {}", request.method, request.path));
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len()));
    let mut output = stream;
    output.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        output.write_all(&answer.body[..answer.sent])?;
    }
    output.flush()
}

fn read(input: &mut impl std::io::BufRead) -> std::io::Result<Request> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut request = Request { method, path: path.to_owned(), query: query.to_owned(), ..Request::default() };
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    if request.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            input.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            input.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            request.body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = request.header("content-length").and_then(|length| length.parse().ok()) {
        request.body = vec![0; length];
        input.read_exact(&mut request.body)?;
    }
    Ok(request)
}

/// Runs `git http-backend` as a web server would.
fn backend(root: &std::path::Path, request: &Request) -> Answer {
    let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env("REQUEST_METHOD", &request.method)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start git http-backend");
    let mut stdin = child.stdin.take().expect("it was piped");
    let body = request.body.clone();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&body)));
    let mut said = Vec::new();
    child.stdout.take().expect("it was piped").read_to_end(&mut said).expect("read from git http-backend");
    writing.join().expect("write to git http-backend");
    child.wait().expect("wait for git http-backend");
    let end = said.windows(4).position(|window| window == b"\r\n\r\n").map_or(said.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&said[..end]).into_owned();
    let mut answer = Answer::new(200, &said[end..]);
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        match name {
            "Status" => answer.status = value.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(500),
            _ => answer.headers.push((name.to_owned(), value.to_owned())),
        }
    }
    answer
}
