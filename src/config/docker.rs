//! Docker's `~/.docker/config.json`: reading credentials, and storing them for `login` and `logout`.
//!
//! Only credentials are read; everything else in the file is kept as it is. Podman's `auth.json` is a fallback that is never
//! written.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize as _;
use serde_json::{Map, Value};

use super::credentials::{AuthConfig, Credentials, read_entry};
use super::environment::Environment;
use super::keychain::Keychain;
use super::registries::domain_of;
use crate::error::{Error, Result, ResultExt as _};

/// The key of Docker Hub's entry, for historical reasons a URL.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The keys of an entry of `proxies`, and the variables they stand for.
const PROXY_KEYS: &[(&str, &str)] = &[
    ("httpProxy", "HTTP_PROXY"),
    ("httpsProxy", "HTTPS_PROXY"),
    ("ftpProxy", "FTP_PROXY"),
    ("noProxy", "NO_PROXY"),
    ("allProxy", "ALL_PROXY"),
];

/// Returns the name under which docker files the credentials for a registry's domain.
#[must_use]
pub fn server_key(domain: &str) -> &str {
    if domain == "docker.io" { DOCKER_HUB_KEY } else { domain }
}

/// Where [`DockerConfig::login`] put credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In the file, readable for whoever can read the file.
    File(PathBuf),
    /// With the credential helper of this name.
    Helper(String),
}

/// Docker's configuration file and the fallbacks for reading.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// Docker's own file comes first.
    files: Vec<AuthFile>,
    search_path: Option<OsString>,
}

impl DockerConfig {
    /// Reads `$DOCKER_CONFIG/config.json` (by default `~/.docker/config.json`) and podman's `$REGISTRY_AUTH_FILE` or
    /// `$XDG_RUNTIME_DIR/containers/auth.json`. Missing files are empty. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` when docker's file is not a JSON object; `Internal` when it cannot be read. A podman file that
    /// cannot be understood is an error as well.
    pub fn load(environment: &Environment) -> Result<Self> {
        let home = environment.path("HOME");
        let docker = environment.path("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker")));
        let podman = environment
            .path("REGISTRY_AUTH_FILE")
            .or_else(|| Some(environment.path("XDG_RUNTIME_DIR")?.join("containers/auth.json")));
        let mut files = vec![AuthFile::load(docker.map(|dir| dir.join("config.json")), Keys::Docker)?];
        if podman.is_some() {
            files.push(AuthFile::load(podman, Keys::Podman)?);
        }
        Ok(Self { files, search_path: environment.path("PATH").map(PathBuf::into_os_string) })
    }

    fn keychain<'a>(&self, name: &'a str) -> Keychain<'a> {
        Keychain { name, path: self.search_path.clone() }
    }

    /// Returns the credentials for a registry's domain as image names have it, such as `docker.io`. Blocking: may run a
    /// credential helper, which may wait for its user.
    ///
    /// # Errors
    /// When the helper fails or an entry is malformed.
    pub fn credentials(&self, domain: &str) -> Result<Option<Credentials>> {
        for file in &self.files {
            let stored = match file.helper_for(domain) {
                Some(name) => self.keychain(name).get(server_key(domain))?,
                None => None,
            };
            if let Some(found) = stored.map_or_else(|| file.entry(domain), |found| Ok(Some(found)))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns all credentials by server key, for clients that send them along with a build. Blocking: runs the credential
    /// helpers.
    ///
    /// # Errors
    /// When a helper fails or an entry is malformed.
    pub fn all(&self) -> Result<BTreeMap<String, Credentials>> {
        let mut domains: BTreeSet<String> = self.files.iter().flat_map(AuthFile::domains).collect();
        for file in &self.files {
            if let Some(name) = file.default_helper() {
                domains.extend(self.keychain(name).list()?.iter().map(|server| domain_of(server).to_owned()));
            }
        }
        let mut found = BTreeMap::new();
        for domain in domains {
            if let Some(credentials) = self.credentials(&domain)? {
                found.insert(server_key(&domain).to_owned(), credentials);
            }
        }
        Ok(found)
    }

    /// Returns the build arguments that docker sets from `proxies`, in upper and lower case: those of the daemon's address,
    /// else those of `default`. The process's own environment does not count.
    #[must_use]
    pub fn proxy_args(&self, host: &str) -> BTreeMap<String, String> {
        let all = || self.files[0].object("proxies");
        let found = all().find(|(key, _)| *key == host).or_else(|| all().find(|(key, _)| *key == "default"));
        let value = |key: &str| found?.1.get(key)?.as_str().filter(|text| !text.is_empty());
        let set = PROXY_KEYS.iter().filter_map(|(key, name)| Some((*name, value(key)?)));
        set.flat_map(|(name, text)| [name.to_owned(), name.to_lowercase()].map(|name| (name, text.to_owned())))
            .collect()
    }

    /// Stores credentials for a registry's domain: with the configured helper, else in docker's file. Blocking.
    ///
    /// The file is read anew and replaced atomically with mode 0600; what it holds besides is kept. A symbolic link is
    /// followed.
    ///
    /// # Errors
    /// When the helper fails or the file cannot be written.
    pub fn login(&mut self, domain: &str, credentials: &Credentials) -> Result<Stored> {
        let helper = self.docker_file().reload()?.helper_for(domain).map(str::to_owned);
        if let Some(name) = &helper {
            self.keychain(name).store(server_key(domain), credentials)?;
        }
        let file = self.docker_file();
        let entry = match helper {
            // As docker does: the empty entry says that there is a login to list.
            Some(_) => Value::Object(Map::new()),
            None => serde_json::to_value(AuthConfig::for_file(credentials)).expect("texts have a JSON form"),
        };
        file.forget(domain);
        file.auths_mut()?.insert(server_key(domain).to_owned(), entry);
        let path = file.save()?;
        Ok(helper.map_or(Stored::File(path), Stored::Helper))
    }

    /// Forgets the credentials for a registry's domain; says whether there were any. Blocking.
    ///
    /// # Errors
    /// When the helper fails or the file cannot be written.
    pub fn logout(&mut self, domain: &str) -> Result<bool> {
        let helper = self.docker_file().reload()?.helper_for(domain).map(str::to_owned);
        let erased = match &helper {
            Some(name) => self.keychain(name).erase(server_key(domain))?,
            None => false,
        };
        let file = self.docker_file();
        let forgotten = file.forget(domain);
        if forgotten {
            file.save()?;
        }
        Ok(erased || forgotten)
    }

    fn docker_file(&mut self) -> &mut AuthFile {
        &mut self.files[0]
    }
}

/// How the keys of `auths` are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// A server, whatever path comes after it.
    Docker,
    /// A server, or a namespace on it (`quay.io/team`) whose credentials must not go to the whole server.
    Podman,
}

/// A file with `auths`, `credHelpers` and `credsStore`.
#[derive(Clone)]
struct AuthFile {
    path: Option<PathBuf>,
    keys: Keys,
    document: Map<String, Value>,
}

impl AuthFile {
    fn load(path: Option<PathBuf>, keys: Keys) -> Result<Self> {
        let document = path.as_deref().map(read_document).transpose()?.unwrap_or_default();
        Ok(Self { path, keys, document })
    }

    fn reload(&mut self) -> Result<&Self> {
        *self = Self::load(self.path.take(), self.keys)?;
        Ok(self)
    }

    fn object(&self, key: &str) -> impl Iterator<Item = (&String, &Value)> {
        self.document.get(key).and_then(Value::as_object).into_iter().flatten()
    }

    fn is_for(&self, key: &str, domain: &str) -> bool {
        let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
        let path = rest.split_once('/').map_or("", |(_, path)| path);
        let whole = self.keys == Keys::Docker || matches!(path, "" | "v1" | "v1/" | "v2" | "v2/");
        whole && domain_of(key) == domain
    }

    fn default_helper(&self) -> Option<&str> {
        self.document.get("credsStore").and_then(Value::as_str).filter(|name| !name.is_empty())
    }

    fn helper_for(&self, domain: &str) -> Option<&str> {
        let own = self.object("credHelpers").find(|(key, _)| self.is_for(key, domain));
        own.and_then(|(_, name)| name.as_str()).filter(|name| !name.is_empty()).or_else(|| self.default_helper())
    }

    fn entry(&self, domain: &str) -> Result<Option<Credentials>> {
        let exact = self.object("auths").find(|(key, _)| *key == server_key(domain));
        let found = exact.or_else(|| self.object("auths").find(|(key, _)| self.is_for(key, domain)));
        match found {
            Some((key, value)) => read_entry(value).context(|| format!("{}: auths.{key:?}", self.name())),
            None => Ok(None),
        }
    }

    fn domains(&self) -> impl Iterator<Item = String> {
        let keys = self.object("auths").chain(self.object("credHelpers")).map(|(key, _)| key);
        keys.filter(|key| self.is_for(key, domain_of(key))).map(|key| domain_of(key).to_owned())
    }

    fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "config.json".to_owned(), |path| path.display().to_string())
    }

    fn auths_mut(&mut self) -> Result<&mut Map<String, Value>> {
        let name = self.name();
        let auths = self.document.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        auths.as_object_mut().ok_or_else(|| Error::invalid(format!("{name}: `auths` is not an object")))
    }

    /// Removes all entries of a domain; says whether there were any.
    fn forget(&mut self, domain: &str) -> bool {
        let keys: Vec<String> =
            self.object("auths").map(|(key, _)| key).filter(|key| self.is_for(key, domain)).cloned().collect();
        if let Some(auths) = self.document.get_mut("auths").and_then(Value::as_object_mut) {
            // Not `remove`, which would put the last entry into the gap.
            keys.iter().for_each(|key| drop(auths.shift_remove(key)));
        }
        !keys.is_empty()
    }

    fn save(&self) -> Result<PathBuf> {
        let path = self
            .path
            .as_ref()
            .ok_or_else(|| Error::invalid("nowhere to store credentials: set HOME or DOCKER_CONFIG"))?;
        let mut text = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        self.document
            .serialize(&mut serde_json::Serializer::with_formatter(&mut text, tabs))
            .expect("a JSON document can be written to memory");
        replace_private(path, &text).context(|| format!("write {}", path.display()))?;
        Ok(path.clone())
    }
}

impl std::fmt::Debug for AuthFile {
    /// Leaves the document out: it holds passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn read_document(path: &Path) -> Result<Map<String, Value>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error).context(|| format!("read {}", path.display())),
    };
    if text.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&text).map_err(|error| {
        // Only the place: the parser's words may quote the text, which holds passwords.
        let (file, line, column) = (path.display(), error.line(), error.column());
        Error::invalid(format!("{file}:{line}:{column}: the file is not a JSON object"))
    })
}

/// Replaces a file atomically; the new one has mode 0600 and the owner of the old one.
fn replace_private(path: &Path, text: &[u8]) -> Result<()> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = target.parent().ok_or_else(|| Error::invalid("it is not the path of a file"))?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = dir.join(format!(".config.json.{}", std::process::id()));
    let result = write_private(&temporary, &target, text);
    if result.is_err() {
        // The temporary file is worthless, and its name is not used again before the next attempt.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn write_private(temporary: &Path, target: &Path, text: &[u8]) -> Result<()> {
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(text)?;
    if let Ok(old) = std::fs::metadata(target) {
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.sync_all()?;
    Ok(std::fs::rename(temporary, target)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::environment::User;
    use super::*;

    /// A home directory whose helpers keep their secrets below it.
    struct Home(tempfile::TempDir);

    impl Home {
        fn new(config: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("keychain")).unwrap();
            std::fs::write(dir.path().join("config.json"), config).unwrap();
            Self(dir)
        }

        fn file(&self) -> PathBuf {
            self.0.path().join("config.json")
        }

        fn environment(&self) -> Environment {
            let bin = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/config/bin");
            let path = format!("{bin}:{}:/usr/bin:/bin", self.0.path().join("keychain").display());
            let dir = self.0.path().to_str().unwrap();
            Environment::of(User::Ordinary, &[("DOCKER_CONFIG", dir), ("PATH", &path), ("XDG_RUNTIME_DIR", dir)])
        }

        fn load(&self) -> DockerConfig {
            DockerConfig::load(&self.environment()).unwrap()
        }
    }

    #[test]
    fn proxies_become_build_arguments_in_both_cases() {
        let home = Home::new(
            r#"{"proxies": {"default": {"httpProxy": "http://p", "noProxy": ""}, "tcp://x:1": {"allProxy": "socks5://q"}}}"#,
        );
        let args = |host: &str| home.load().proxy_args(host).into_iter().collect::<Vec<_>>();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(args("unix:///x"), [pair("HTTP_PROXY", "http://p"), pair("http_proxy", "http://p")]);
        assert_eq!(args("tcp://x:1"), [pair("ALL_PROXY", "socks5://q"), pair("all_proxy", "socks5://q")]);
        assert_eq!(Home::new("{}").load().proxy_args("x").len(), 0);
    }

    #[test]
    fn entries_are_found_by_domain_however_they_were_written() {
        let auth = |name: &str| {
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{name}:p"));
            format!(r#"{{"auth": "{text}"}}"#)
        };
        let home = Home::new(&format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {}, "https://a.example/v2/": {}, "b.example:5000": {}}}}}"#,
            auth("hub"),
            auth("a"),
            auth("b")
        ));
        let config = home.load();
        let user = |domain: &str| config.credentials(domain).unwrap().map(|found| found.username().to_owned());
        assert_eq!(user("docker.io").as_deref(), Some("hub"));
        assert_eq!(user("a.example").as_deref(), Some("a"));
        assert_eq!(user("b.example:5000").as_deref(), Some("b"));
        assert_eq!(user("b.example"), None);
    }

    #[test]
    fn login_keeps_what_else_the_file_holds_and_makes_it_private() {
        let home =
            Home::new(r#"{"HttpHeaders": {"X": "y"}, "auths": {"other.example": {"auth": "YTpi"}}, "psFormat": "z"}"#);
        std::fs::set_permissions(home.file(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let credentials = Credentials::password("me", "secret");
        assert_eq!(home.load().login("docker.io", &credentials).unwrap(), Stored::File(home.file()));
        assert_eq!(std::fs::metadata(home.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(home.load().credentials("docker.io").unwrap(), Some(credentials));
        let text = std::fs::read_to_string(home.file()).unwrap();
        let expected = "{\n\t\"HttpHeaders\": {\n\t\t\"X\": \"y\"\n\t},\n\t\"auths\": {\n\t\t\"other.example\": {\n\t\t\t\
                        \"auth\": \"YTpi\"\n\t\t},\n\t\t\"https://index.docker.io/v1/\": {\n\t\t\t\"auth\": \
                        \"bWU6c2VjcmV0\"\n\t\t}\n\t},\n\t\"psFormat\": \"z\"\n}";
        assert_eq!(text, expected);
        assert!(home.load().logout("docker.io").unwrap() && !home.load().logout("docker.io").unwrap());
        assert_eq!(home.load().credentials("docker.io").unwrap(), None);
    }

    #[test]
    fn login_makes_a_missing_file_and_follows_a_link_to_one() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere.json");
        std::fs::write(&elsewhere, "{}").unwrap();
        for (name, linked) in [("fresh", false), ("linked", true)] {
            let home = dir.path().join(name);
            if linked {
                std::fs::create_dir(&home).unwrap();
                std::os::unix::fs::symlink(&elsewhere, home.join("config.json")).unwrap();
            }
            let environment = Environment::of(User::Root, &[("DOCKER_CONFIG", home.to_str().unwrap())]);
            let mut config = DockerConfig::load(&environment).unwrap();
            config.login("r.example", &Credentials::password("a", "b")).unwrap();
            let link = std::fs::symlink_metadata(home.join("config.json")).unwrap().is_symlink();
            assert_eq!(link, linked);
            assert!(DockerConfig::load(&environment).unwrap().credentials("r.example").unwrap().is_some());
        }
        assert!(std::fs::read_to_string(&elsewhere).unwrap().contains("r.example"));
    }

    #[test]
    fn a_helper_keeps_the_secrets_out_of_the_file() {
        let home = Home::new(r#"{"credsStore": "files"}"#);
        for (domain, credentials) in [
            ("docker.io", Credentials::password("me", "secret")),
            ("b.example:5000", Credentials::from_pair("<token>", "secret").unwrap()),
        ] {
            assert_eq!(home.load().credentials(domain).unwrap(), None);
            assert_eq!(home.load().login(domain, &credentials).unwrap(), Stored::Helper("files".to_owned()));
            assert_eq!(home.load().credentials(domain).unwrap(), Some(credentials));
        }
        assert!(!std::fs::read_to_string(home.file()).unwrap().contains("secret"));
        let all: Vec<_> = home.load().all().unwrap().into_keys().collect();
        assert_eq!(all, ["b.example:5000", "https://index.docker.io/v1/"]);
        assert!(home.load().logout("docker.io").unwrap());
        assert_eq!(home.load().credentials("docker.io").unwrap(), None);
        assert!(!home.load().logout("docker.io").unwrap());
    }

    #[test]
    fn a_helper_of_one_registry_does_not_serve_others() {
        let home = Home::new(r#"{"credHelpers": {"broken.example": "broken", "gone.example": "gone"}}"#);
        let config = home.load();
        assert_eq!(config.credentials("docker.io").unwrap(), None);
        let error = config.credentials("broken.example").unwrap_err().to_string();
        assert!(error.contains("docker-credential-broken get") && error.contains("keychain is locked"), "{error}");
        let error = config.credentials("gone.example").unwrap_err().to_string();
        assert!(error.contains("`docker-credential-gone` is not in PATH"), "{error}");
    }

    #[test]
    fn podmans_logins_are_read_but_namespaces_are_not_whole_registries() {
        let home = Home::new("{}");
        std::fs::create_dir(home.0.path().join("containers")).unwrap();
        let auths = r#"{"auths": {"quay.example/team": {"auth": "YTpi"}, "r.example": {"auth": "YTpi"}}}"#;
        std::fs::write(home.0.path().join("containers/auth.json"), auths).unwrap();
        let config = home.load();
        assert!(config.credentials("r.example").unwrap().is_some());
        assert_eq!(config.credentials("quay.example").unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_named_with_the_place_and_not_quoted() {
        let home = Home::new("{\n  \"auths\": hunter2\n}");
        let error = DockerConfig::load(&home.environment()).unwrap_err().to_string();
        assert!(error.contains("config.json:2:") && !error.contains("hunter2"), "{error}");
    }
}
