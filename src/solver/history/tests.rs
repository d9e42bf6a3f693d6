//! Tests of the history: records, their ends, their limits.

use super::*;
use crate::solver::progress::{Event, Progress, VertexState};

struct World {
    history: History,
    root: Root,
    dir: tempfile::TempDir,
}

fn clock() -> Clock {
    Clock::system()
}

impl World {
    fn open(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &[SCHEMA]).unwrap();
        Self { history: History::new(root.clone(), clock(), Tasks::new(), limits), root, dir }
    }

    /// Another engine of the same root.
    fn another(&self) -> History {
        let root = Root::open(self.dir.path(), &[SCHEMA]).unwrap();
        History::new(root, clock(), Tasks::new(), Limits::default())
    }

    async fn record(&self, reference: &str, outcome: Outcome) -> Record {
        let progress = Progress::new(clock());
        let recording = self.history.begin(build(reference), progress.watch(), encode);
        progress.report(vertex("a", true));
        progress.report(vertex("b", false));
        progress.report(log("printed\n"));
        progress.end();
        recording.end(outcome).await.unwrap();
        self.history.find(reference).unwrap().unwrap()
    }
}

fn build(reference: &str) -> NewBuild {
    NewBuild {
        reference: reference.to_owned(),
        name: "app".to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        attrs: [("target".to_owned(), "x".to_owned())].into(),
        exporters: vec![Exporter { kind: "image".to_owned(), attrs: [("name".to_owned(), "n".to_owned())].into() }],
    }
}

fn vertex(name: &str, cached: bool) -> Event {
    Event::Vertex(VertexState {
        digest: Digest::of(name.as_bytes()),
        name: name.to_owned(),
        inputs: Vec::new(),
        cached,
        started_ns: Some(1),
        completed_ns: Some(2),
        group: None,
        error: None,
    })
}

fn log(text: &'static str) -> Event {
    Event::Log { vertex: Digest::of(b"b"), stream: 1, data: text.into(), time_ns: 0 }
}

#[expect(clippy::needless_pass_by_value, reason = "it is an `Encode`")]
fn encode(events: Vec<Event>) -> Vec<u8> {
    let texts = events.iter().filter_map(|event| match event {
        Event::Log { data, .. } => Some(data.to_vec()),
        _ => None,
    });
    texts.collect::<Vec<_>>().concat()
}

fn read(stored: Stored) -> Vec<u8> {
    use std::io::Read as _;
    match stored {
        Stored::Bytes(bytes) => bytes,
        Stored::File(mut file) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        }
    }
}

#[tokio::test]
async fn a_record_tells_what_was_asked_and_what_came_of_it() {
    let world = World::open(Limits::default());
    let document = Document { predicate_type: "p".to_owned(), platform: String::new(), data: "{}".into() };
    let response = BTreeMap::from([("image.name".to_owned(), "n".to_owned())]);
    let outcome = Outcome { failed: None, response: response.clone(), documents: vec![document] };
    let record = world.record("r1", outcome).await;
    assert_eq!((record.build.attrs["target"].as_str(), record.build.exporters[0].kind.as_str()), ("x", "image"));
    assert_eq!((record.response, record.failed), (response, None));
    assert_eq!(record.counts, Counts { cached: 1, total: 2, completed: 2, warnings: 0 });
    let content = |digest: &Digest| read(world.history.content(digest).unwrap().unwrap());
    assert_eq!(content(&record.log.unwrap().digest), b"printed\n");
    assert_eq!(content(&record.attached[0].content.digest), b"{}");
    assert!(world.history.content(&Digest::of(b"other")).unwrap().is_none());
}

#[tokio::test]
async fn a_failure_is_kept_with_its_details() {
    let world = World::open(Limits::default());
    let failed = Failed { code: 2, message: "no".to_owned(), status: b"status".to_vec() };
    let record = world.record("r1", Outcome { failed: Some(failed.clone()), ..Outcome::default() }).await;
    assert_eq!(record.failed, Some(failed));
    assert_eq!(read(world.history.content(&record.status.unwrap().digest).unwrap().unwrap()), b"status");
}

#[tokio::test]
async fn a_build_that_is_dropped_was_cancelled() {
    let world = World::open(Limits::default());
    let progress = Progress::new(clock());
    let recording = world.history.begin(build("r1"), progress.watch(), encode);
    drop(recording);
    progress.end();
    assert!(world.history.0.tasks.shutdown(Duration::from_secs(60)).await);
    let record = world.history.find("r1").unwrap().unwrap();
    assert_eq!(record.failed.unwrap().message, "context canceled");
}

#[tokio::test]
async fn others_read_along_and_learn_when_the_engine_has_died() {
    let world = World::open(Limits::default());
    let progress = Progress::new(clock());
    let recording = world.history.begin(build("r1"), progress.watch(), encode);
    let other = world.another();
    let started = tokio::time::Instant::now();
    while other.find("r1").unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(60));
        tokio::task::yield_now().await;
    }
    let record = other.find("r1").unwrap().unwrap();
    assert_eq!(record.completed_ns, None, "it runs");
    assert!(other.open_log(&record).unwrap().1);
    assert_eq!(other.remove("r1").unwrap_err().kind(), crate::error::Kind::Conflict);
    progress.end();
    recording.end(Outcome::default()).await.unwrap();
    assert!(other.find("r1").unwrap().unwrap().completed_ns.is_some());

    // What a killed engine leaves: a record without an end, whose log nobody holds.
    let row = world.root.db().write(|tx| record::insert(tx, &build("dead"), 1)).unwrap();
    std::fs::write(world.history.log_path(row).unwrap(), "half").unwrap();
    let dead = other.find("dead").unwrap().unwrap();
    assert!(dead.failed.unwrap().message.contains("engine ended"));
    assert_eq!(dead.log.unwrap().size, 4);
}

#[tokio::test]
async fn old_records_go_unless_they_are_pinned_or_few() {
    let world = World::open(Limits { max_age: Duration::ZERO, max_entries: 2 });
    for reference in ["a", "b"] {
        world.record(reference, Outcome::default()).await;
    }
    world.history.pin("a", true).unwrap();
    for reference in ["c", "d"] {
        world.record(reference, Outcome::default()).await;
    }
    let left = |world: &World| -> Vec<String> {
        world.history.list().unwrap().into_iter().map(|record| record.build.reference).collect()
    };
    assert_eq!(left(&world), ["a", "c", "d"]);
    world.history.remove("c").unwrap();
    assert_eq!(left(&world), ["a", "d"]);
    assert_eq!(std::fs::read_dir(world.dir.path().join("history")).unwrap().count(), 2, "logs go with their records");
    std::fs::write(world.dir.path().join("history/999.log"), "left behind").unwrap();
    world.history.remove_orphans().unwrap();
    assert_eq!(std::fs::read_dir(world.dir.path().join("history")).unwrap().count(), 2);
    assert!(world.history.pin("c", true).is_err() && world.history.remove("c").is_err());
}

#[tokio::test]
async fn records_that_are_young_stay_however_many_there_are() {
    let world = World::open(Limits { max_age: Duration::from_hours(48), max_entries: 1 });
    for reference in ["a", "b", "c"] {
        world.record(reference, Outcome::default()).await;
    }
    assert_eq!(world.history.list().unwrap().len(), 3);
}
