//! The size of a root directory: the hard cap, why things stay, and that all who ask hear the same.

mod support;

use kiln::client::{Client, Dialer};
use kiln::types::build::control_client::ControlClient;
use kiln::types::build::{DiskUsageRequest, PruneRequest};
use serde_json::Value;
use support::{Daemon, Docker, Kiln, is_root};

/// Names, with what each takes on the disk.
type Sizes = std::collections::BTreeMap<String, i64>;

#[test]
fn privileged_the_hard_cap_holds_and_what_can_be_spared_goes_first() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let taken = support::command::run("du", ["-s", "--block-size=1", kiln.root().to_str().expect("letters")]);
    let taken: u64 = taken.split_whitespace().next().expect("a number").parse().expect("a number");
    let cap = taken + 40_000_000;
    let config = kiln.write("config.toml", format!("[gc]\nhard-cap = {cap}\n"));
    let build = |name: &str, run: &str| {
        kiln.write(format!("{name}/Dockerfile"), format!("FROM busybox\nRUN {run}\n"));
        kiln.command(["build", "--progress=plain", "-o", "type=cacheonly", "--config"]).arg(&config).arg(name)
    };
    let fill = |mb: u32, from: u32| format!("dd if=/dev/urandom of=/data{from} bs=1M count={mb} 2> /dev/null");
    build("one", &fill(25, 1)).ok();
    // There is no room for both: the first one's record goes.
    build("two", &fill(25, 2)).ok();
    let left = kiln.ok(["builder", "du"]);
    assert!(left.contains("Total") && left.matches("step").count() == 1, "{left}");
    let failed = build("three", &format!("{}; sleep 600", fill(200, 3))).fails();
    assert!(
        failed.stderr.contains("hard cap") && failed.stderr.contains("kiln system prune -a"),
        "{}",
        failed.report()
    );
    // Nothing is left of it, and others can be built.
    build("four", &fill(20, 4)).ok();
    let refused = kiln.command(["load", "--config"]).arg(&config).stdin(vec![b'x'; 100]).output();
    assert_ne!(refused.code, 0);
}

#[test]
fn privileged_everything_is_told_with_who_needs_it() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    kiln.write("Dockerfile", "FROM busybox\nRUN echo a > /a\nRUN --mount=type=cache,target=/c echo b > /c/b\n");
    kiln.ok(["build", "-q", "-t", "app", "."]);
    kiln.ok(["create", "--name", "box", "app"]);
    let why = || -> Value { serde_json::from_str(&kiln.ok(["gc", "--why", "--format", "json"])).expect("JSON") };
    let held = |why: &Value, holder: &str| {
        let objects = why["Objects"].as_array().expect("a list").clone();
        let by = |object: &Value| {
            object["KeptBy"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one.as_str().is_some_and(|one| one.starts_with(holder))))
        };
        objects.iter().filter(|object| by(object)).count()
    };
    let before = why();
    for holder in ["image app:latest", "image busybox:latest", "container box", "build cache step", "build cache mount"]
    {
        assert!(held(&before, holder) > 0, "{holder}: {before:#}");
    }
    let records = before["Records"].as_array().expect("a list");
    assert!(records.iter().all(|record| record["Removed"] == false), "{records:?}");
    assert!(
        records.iter().any(|record| record["Why"].as_str().is_some_and(|why| why.contains("an image is made of it")))
    );

    kiln.ok(["builder", "prune", "-af"]);
    kiln.ok(["rm", "box"]);
    let config = kiln.write("config.toml", "[[gc.policy]]\nall = true\nmax-used-space = 1\n");
    kiln.ok(["build", "-q", "."]);
    let text = kiln.command(["builder", "gc", "--why", "--config"]).arg(&config).ok();
    assert!(text.contains("policy 1") && text.contains("goes"), "{text}");
    let collected = kiln.command(["gc", "--config"]).arg(&config).ok();
    assert!(collected.contains("records of the build cache"), "{collected}");
    let after = why();
    let records = after["Records"].as_array().expect("a list");
    assert!(records.iter().all(|record| record["Removed"] == false), "{after:#}");
    assert!(after["Objects"].as_array().expect("a list").iter().all(|object| object["Removed"] == false), "{after:#}");
    assert_eq!(held(&after, "container box"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_clients_of_both_apis_hear_the_same_of_the_cache() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nCOPY a /a\nRUN cat /a > /b\nRUN --mount=type=cache,target=/c echo b > /c/b\n");
    daemon.kiln.write("a", "one");
    daemon.command(&["build", "-q", "."]).ok();
    let client = Client::new(Dialer::new(daemon.host.parse().expect("a host")).expect("a dialer"));
    let mut control = ControlClient::new(client.grpc().await.expect("reach the build service"));
    let used = control.disk_usage(DiskUsageRequest::default()).await.unwrap().into_inner().record;
    let used: Sizes = used.into_iter().map(|record| (record.id, record.size)).collect();

    let why: Value = serde_json::from_str(&daemon.command(&["gc", "--why", "--format", "json"]).ok()).expect("JSON");
    let records = why["Records"].as_array().expect("a list").iter();
    let told: Sizes = records
        .map(|record| (record["ID"].as_str().unwrap_or_default().to_owned(), record["Size"].as_i64().unwrap_or(-1)))
        .collect();
    assert_eq!(told, used);
    let listed = daemon.command(&["builder", "du"]).ok();
    assert!(used.keys().all(|id| listed.contains(id.as_str())), "{listed}");
    if let Some(docker) = Docker::with_buildx() {
        let df = daemon.docker(&docker, &["system", "df", "-v", "--format", "json"]).output();
        let df: Value = serde_json::from_str(&df.stdout).unwrap_or_default();
        let ids = df["BuildCache"].as_array().cloned().unwrap_or_default();
        let of: Vec<&str> = ids.iter().filter_map(|record| record["ID"].as_str()).collect();
        assert!(of.is_empty() || of.len() == used.len(), "{of:?}");
        let du = daemon.docker(&docker, &["buildx", "du"]).ok();
        assert!(used.keys().all(|id| du.contains(id.as_str())), "{du}");
    }

    let pruned = control.prune(PruneRequest { all: true, ..PruneRequest::default() }).await.unwrap();
    let mut pruned = pruned.into_inner();
    let mut removed = Sizes::new();
    while let Some(record) = pruned.message().await.unwrap() {
        removed.insert(record.id, record.size);
    }
    assert_eq!(removed, used);
    let empty = daemon.command(&["builder", "du"]).ok();
    assert!(!empty.contains("step") && !empty.contains("mount"), "{empty}");
}
