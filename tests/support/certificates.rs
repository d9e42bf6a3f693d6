//! Certificates for daemons and their clients.

use std::path::{Path, PathBuf};

use super::Run;

/// An authority, and a certificate with its key for the daemon and for clients, as `openssl` makes them.
#[derive(Debug)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Makes them in `dir`: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    pub fn make(dir: &Path) -> Self {
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
        Self(dir.to_owned())
    }

    /// Returns the path of a file of theirs.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}
