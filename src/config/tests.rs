//! Tests of reading and merging configuration files.

use std::path::{Path, PathBuf};

use super::*;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/config").join(name)
}

fn load(file: &str, environment: &[(&str, &str)]) -> Config {
    let flags = Flags { config: Some(testdata(file)), ..Flags::default() };
    Config::load(&flags, &Environment::of(User::Root, environment)).unwrap()
}

#[test]
fn every_complaint_names_file_line_and_key() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(testdata("bad")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let expected = text.lines().next().unwrap().trim_start_matches("# ");
        let name = Path::new(file.file_name().unwrap());
        let error = File::parse(name, &text).expect_err(expected);
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), crate::error::Kind::InvalidArgument);
    }
}

#[test]
fn every_key_reaches_the_configuration() {
    let config = load("full.toml", &[]);
    assert_eq!(config.root, Path::new("/srv/kiln"));
    assert_eq!(config.host.as_deref(), Some("unix:///run/kiln.sock"));
    let mirrors = config.registries.host("docker.io").mirrors;
    assert_eq!(mirrors, ["mirror.example.com".parse().unwrap(), "http://localhost:5000/hub".parse().unwrap()]);
    let expected = HostConfig {
        mirrors: Vec::new(),
        http: Some(false),
        insecure: Some(true),
        ca: vec![testdata("ca.pem"), PathBuf::from("/etc/ssl/ca.pem")],
        keypairs: vec![KeyPair { key: testdata("client.key"), cert: testdata("client.pem") }],
    };
    assert_eq!(config.registries.host("registry.example.com:5000"), expected);
    assert_eq!(config.registries.transfer, Transfer { downloads: 3, uploads: 2, attempts: 9 });
    assert_eq!(config.log, Log { max_size_bytes: Some(10_000_000), max_files: Some(3) });
    assert_eq!((config.daemon.hosts.len(), config.daemon.group.as_deref()), (2, Some("kiln")));
    assert_eq!(config.daemon.tls.ca, Some(testdata("ca.pem")));
    assert_eq!(config.daemon.tls.cert.as_deref(), Some(Path::new("/etc/kiln/cert.pem")));
    let limits =
        GcLimits { reserved: Some(Space::Percent(10)), max_used: Some(Space::Bytes(100_000_000_000)), min_free: None };
    assert_eq!((config.gc.enabled, config.gc.limits), (Some(false), limits));
    let policy = GcPolicy {
        kinds: vec!["exec.cachemount".to_owned(), "source.local".to_owned()],
        all: true,
        keep: Some(std::time::Duration::from_hours(48)),
        limits: GcLimits { min_free: Some(Space::Bytes(7)), ..GcLimits::default() },
    };
    assert_eq!(config.gc.policies, [policy]);
    assert_eq!(config.gc.hard_cap, Some(Space::Bytes(200_000_000_000)));
    let builder = Builder {
        max_parallelism: Some(4),
        entitlements: Some(vec!["network.host".to_owned()]),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        device_dirs: Some(vec![testdata("cdi")]),
        ..Builder::default()
    };
    assert_eq!(config.builder, builder);
    let history = History { max_age: Some(std::time::Duration::from_hours(24)), max_entries: Some(7) };
    assert_eq!(config.history, history);
    assert_eq!(config.dns.nameservers.len(), 2);
    assert_eq!((config.dns.search.len(), config.dns.options.len()), (1, 1));
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_files() {
    let environment = [("KILN_ROOT", "/env"), ("DOCKER_HOST", "tcp://docker"), ("KILN_HOST", "tcp://kiln")];
    let config = load("full.toml", &environment);
    assert_eq!((config.root.as_path(), config.host.as_deref()), (Path::new("/env"), Some("tcp://kiln")));
    let flags = Flags {
        config: Some(testdata("full.toml")),
        root: Some(PathBuf::from("/flag")),
        host: Some("tcp://flag".to_owned()),
        ..Flags::default()
    };
    let config = Config::load(&flags, &Environment::of(User::Root, &environment)).unwrap();
    assert_eq!((config.root.as_path(), config.host.as_deref()), (Path::new("/flag"), Some("tcp://flag")));
}

#[test]
fn the_users_file_wins_over_the_systems_key_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let system = dir.path().join("system.toml");
    let user = dir.path().join("kiln/config.toml");
    std::fs::create_dir(user.parent().unwrap()).unwrap();
    let environment = Environment::of(User::Ordinary, &[("XDG_CONFIG_HOME", dir.path().to_str().unwrap())]);
    assert_eq!(read_default_files(&system, &environment).unwrap().root, None);

    std::fs::write(&system, "root = '/a'\n[registry.'r.example']\nhttp = true\nmirrors = ['m']\n[log]\nmax-file = 2")
        .unwrap();
    std::fs::write(&user, "[registry.'r.example']\nhttp = false\n[registry.'docker.io']\ninsecure = true").unwrap();
    let file = read_default_files(&system, &environment).unwrap();
    let config = Config::merge(&Flags::default(), &environment, file).unwrap();
    assert_eq!(config.root, Path::new("/a"));
    assert_eq!(config.log.max_files, Some(2));
    let host = config.registries.host("r.example");
    assert_eq!((host.http, host.mirrors.len()), (Some(false), 1));
    assert_eq!(config.registries.host("docker.io").insecure, Some(true));
}

#[test]
fn the_root_directory_depends_on_whose_system_it_is() {
    let root = |user, variables: &[(&str, &str)]| default_root(&Environment::of(user, variables));
    assert_eq!(root(User::Root, &[("HOME", "/root")]).unwrap(), Path::new("/var/lib/kiln"));
    assert_eq!(root(User::Ordinary, &[("HOME", "/h")]).unwrap(), Path::new("/h/.local/share/kiln"));
    assert_eq!(root(User::Ordinary, &[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]).unwrap(), Path::new("/d/kiln"));
    assert!(root(User::Ordinary, &[]).is_err());
}

#[test]
fn a_file_that_was_named_must_exist() {
    let environment = Environment::of(User::Root, &[("KILN_CONFIG", "/does/not/exist.toml")]);
    let error = Config::load(&Flags::default(), &environment).unwrap_err();
    assert!(error.to_string().contains("/does/not/exist.toml"), "{error}");
}

#[test]
fn tls_is_asked_for_as_docker_is() {
    let dir = tempfile::tempdir().unwrap();
    let tls = |flags: &Flags, variables: &[(&str, &str)]| {
        let config = Config::load(flags, &Environment::of(User::Root, variables));
        config.map(|config| config.tls)
    };
    let flags = Flags { config: Some(testdata("full.toml")), ..Flags::default() };
    let path = dir.path().to_str().unwrap();
    assert_eq!(tls(&flags, &[("DOCKER_CERT_PATH", path)]).unwrap(), None, "nothing asks for it");
    let asked = [("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", path)];
    let without_pair = TlsFiles { ca: Some(dir.path().join("ca.pem")), ..TlsFiles::default() };
    assert_eq!(tls(&flags, &asked).unwrap(), Some(without_pair));
    for name in ["cert.pem", "key.pem"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let files = tls(&flags, &asked).unwrap().unwrap();
    assert_eq!((files.cert, files.key), (Some(dir.path().join("cert.pem")), Some(dir.path().join("key.pem"))));
    let half = TlsFiles { ca: Some("ca".into()), cert: Some("cert".into()), key: None };
    let half = Flags { tls: half, ..flags };
    assert!(tls(&half, &[("HOME", "/nonexistent")]).unwrap_err().to_string().contains("both --tlscert and --tlskey"));
}
