//! Stands between Kiln and a real registry, writes down what is asked, and meddles with the answers as a test wants.
//!
//! It speaks just enough HTTP/1.1: one request a connection, which it asks both sides to close. It also serves as a proxy for
//! plain HTTP: an absolute address is asked of the one registry there is.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    /// The host the client asked for.
    pub host: String,
    /// The first byte of a `Range`.
    pub from: Option<u64>,
}

impl Asked {
    /// Says whether it fetches a blob.
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }

    /// Says whether it sends a blob's bytes.
    pub fn is_upload(&self) -> bool {
        matches!(self.method.as_str(), "PATCH" | "PUT") && self.path.contains("/blobs/uploads/")
    }
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meddle {
    /// It is passed on.
    Not,
    /// Its body breaks off after so many bytes.
    Cut(usize),
    /// One bit of its body is wrong.
    Flip,
    /// Only so many bytes of the body pass in a second, in either direction.
    Slow(usize),
    /// There is none; the connection stays open.
    Silence,
    /// It is this status instead, with nothing in it.
    Status(u16),
}

type Rule = dyn Fn(&Asked) -> Meddle + Send + Sync;

/// A meddler; dropping it stops it.
pub struct Meddler {
    host: String,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    asked: Mutex<Vec<Asked>>,
    rule: Mutex<Arc<Rule>>,
    stopped: AtomicBool,
}

impl Meddler {
    /// Starts one in front of a registry, `host:port`.
    pub fn before(upstream: &str, rule: impl Fn(&Asked) -> Meddle + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let host = listener.local_addr().expect("ask for the address").to_string();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            asked: Mutex::default(),
            rule: Mutex::new(Arc::new(rule)),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A client that goes away in the middle is what some tests are about.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { host, shared }
    }

    /// Returns `127.0.0.1:<port>`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Meddles differently from now on, and forgets what was asked.
    pub fn now(&self, rule: impl Fn(&Asked) -> Meddle + Send + Sync + 'static) {
        *self.shared.rule.lock().expect("nobody panics with it") = Arc::new(rule);
        self.shared.asked.lock().expect("nobody panics with it").clear();
    }

    /// Returns what was asked that `wanted` picks.
    pub fn asked(&self, wanted: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let asked = self.shared.asked.lock().expect("nobody panics with it");
        asked.iter().filter(|asked| wanted(asked)).cloned().collect()
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(&self.host));
    }
}

impl Shared {
    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let head = read_head(&mut reader)?;
        let Some(asked) = parse(&head) else { return Ok(()) };
        self.asked.lock().expect("nobody panics with it").push(asked.clone());
        let rule = Arc::clone(&self.rule.lock().expect("nobody panics with it"));
        match rule(&asked) {
            Meddle::Silence => {
                while !self.stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            }
            Meddle::Status(status) => {
                let mut client = client;
                write!(client, "HTTP/1.1 {status} Meddled\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            }
            meddle => self.pass(client, reader, &head, &asked, meddle),
        }
    }

    fn pass(
        &self,
        client: TcpStream,
        mut body: BufReader<TcpStream>,
        head: &[String],
        asked: &Asked,
        meddle: Meddle,
    ) -> std::io::Result<()> {
        let mut upstream = TcpStream::connect(&self.upstream)?;
        let mut text = format!("{} {} HTTP/1.1\r\n", asked.method, asked.path);
        for line in head[1..].iter().filter(|line| !line.to_lowercase().starts_with("connection:")) {
            text += &format!("{line}\r\n");
        }
        upstream.write_all(format!("{text}Connection: close\r\n\r\n").as_bytes())?;
        let slow = if let Meddle::Slow(rate) = meddle { Some(rate) } else { None };
        let mut sent = upstream.try_clone()?;
        std::thread::spawn(move || drop(copy(&mut body, &mut sent, slow)));
        let mut client = client;
        let mut answer = BufReader::new(upstream.try_clone()?);
        let mut lines = read_head(&mut answer)?;
        while lines.first().is_some_and(|line| line.contains(" 100 ")) {
            client.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())?;
            lines = read_head(&mut answer)?;
        }
        client.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())?;
        match meddle {
            Meddle::Cut(bytes) => drop(copy(&mut answer.take(bytes as u64), &mut client, None)),
            Meddle::Flip => {
                let mut first = [0; 1];
                answer.read_exact(&mut first)?;
                client.write_all(&[first[0] ^ 1])?;
                copy(&mut answer, &mut client, None)?;
            }
            _ => copy(&mut answer, &mut client, slow)?,
        }
        drop(upstream.shutdown(Shutdown::Both));
        client.shutdown(Shutdown::Both)
    }
}

fn copy(from: &mut impl Read, to: &mut TcpStream, slow: Option<usize>) -> std::io::Result<()> {
    let mut buffer = vec![0; slow.map_or(64 << 10, |rate| (rate / 20).max(1))];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read])?;
        if slow.is_some() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Reads the lines up to the empty one.
fn read_head(reader: &mut BufReader<TcpStream>) -> std::io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => return Ok(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

fn parse(head: &[String]) -> Option<Asked> {
    let mut words = head.first()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let path = match target.strip_prefix("http://") {
        Some(rest) => format!("/{}", rest.split_once('/').map_or("", |(_, path)| path)),
        None => target.to_owned(),
    };
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let range = header("range");
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    Some(Asked { method, path, host: header("host").unwrap_or_default(), from })
}
