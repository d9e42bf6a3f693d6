//! Several processes on one root, and processes that are killed in the middle of everything.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_graph::Digest;

use super::tars::Tar;
use super::views::Tree;
use super::*;

/// A process that works on a root; see [`child`].
struct Worker {
    process: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(root: &Path, work: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::child", "--ignored", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let order = format!("{} {work}\n", root.display());
        process.stdin.as_mut().unwrap().write_all(order.as_bytes()).unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self { process, said }
    }

    /// Waits until it has said a word so many times. The harness puts words of its own before the first.
    fn wait_for(&mut self, word: &str, times: usize) {
        let mut line = String::new();
        for _ in 0..times {
            while !line.trim_end().ends_with(word) {
                line.clear();
                assert!(self.said.read_line(&mut line).unwrap() > 0, "the worker ended before it said {word}");
            }
            line.clear();
        }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn finish(mut self) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        assert!(self.process.wait().unwrap().success(), "{rest}");
    }
}

/// The work of a [`Worker`]: not a test by itself. The first line of its input says what to do.
#[test]
#[ignore = "started by other tests"]
fn child() {
    let mut order = String::new();
    std::io::stdin().lock().read_line(&mut order).unwrap();
    let Some((root, work)) = order.trim_end().split_once(' ') else { return };
    let store = open(Path::new(root), None).unwrap();
    let lease = store.lease(work).unwrap();
    match work.split_once(' ') {
        Some(("ingest", seed)) => {
            let data = noise(1 << 20, seed.parse().unwrap());
            let IngestState::Ready(mut ingest) = store.ingest(&lease, &Digest::of(&data), None).unwrap() else {
                panic!()
            };
            ingest.write_all(&data[..600_000]).unwrap();
            say("half");
            forever();
        }
        Some(("unpack", _)) => {
            let tar = layer();
            let unpacker = store.unpacker(&lease, &[Digest::of(&tar)]).unwrap();
            let half = tar[..tar.len() / 2].chain(Stops);
            unpacker.layer(0, half, &Cancel::new()).unwrap();
        }
        Some(("storm", number)) => storm(&store, number.parse().unwrap(), usize::MAX),
        Some(("rounds", number)) => storm(&store, number.parse().unwrap(), 12),
        _ => panic!("no such work: {work}"),
    }
}

/// Says that it was reached, and never ends.
struct Stops;

impl Read for Stops {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        say("half");
        forever()
    }
}

fn say(word: &str) {
    println!("\n{word}");
}

fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

/// A layer of many files.
fn layer() -> Vec<u8> {
    (0..200).fold(Tar::new().dir("d/"), |tar, n| tar.file(&format!("d/{n}"), noise(5000, n))).finish()
}

/// Makes and checks everything a store holds, over and over, and collects now and then.
fn storm(store: &Store, number: u64, rounds: usize) {
    for round in 0..rounds as u64 {
        let lease = store.lease("storm").unwrap();
        // The same for all that storm, so that they meet.
        let shared = noise(300_000, round % 5);
        let blob = loop {
            match store.ingest(&lease, &Digest::of(&shared), Some(300_000)).unwrap() {
                IngestState::Exists(blob) => break blob,
                IngestState::Busy => std::thread::yield_now(),
                IngestState::Ready(mut ingest) => {
                    let from = usize::try_from(ingest.offset()).unwrap();
                    shared[from..].chunks(50_000).for_each(|piece| ingest.write_all(piece).unwrap());
                    break ingest.commit().unwrap();
                }
            }
        };
        let tar = Tar::new()
            .dir("s/")
            .file("s/round", (round % 3).to_string())
            .file("s/data", noise(20_000, round % 3))
            .finish();
        let base = unpack(store, &lease, &tar);
        let active = store.prepare(&lease, Some(base)).unwrap();
        Tree::at(active.dir()).file("mine", number.to_string());
        let top = active.commit().unwrap();
        let digests = store.layer_digests(top, &Cancel::new()).unwrap();
        let top = store.identify(&lease, top, &digests).unwrap();
        if round % 4 == number % 4 {
            store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
        }
        // What is leased is there and whole, whoever has collected meanwhile.
        assert!(blob.read(1 << 20).unwrap() == shared);
        let compressed = store.layer_blob(&lease, top.id, compression::Compression::GZIP, &Cancel::new()).unwrap();
        assert_eq!(compressed.diff_id, top.diff_id.unwrap());
        let Rootfs::Dir { path, .. } = store.rootfs(Some(top.id)).unwrap() else { panic!("not the copying driver") };
        assert_eq!(std::fs::read_to_string(path.join("s/round")).unwrap(), (round % 3).to_string());
        assert_eq!(std::fs::read_to_string(path.join("mine")).unwrap(), number.to_string());
        say("round");
    }
}

fn unpack(store: &Store, lease: &Lease, tar: &[u8]) -> SnapshotId {
    let unpacker = store.unpacker(lease, &[Digest::of(tar)]).unwrap();
    for index in unpacker.missing() {
        unpacker.layer(index, tar, &Cancel::new()).unwrap();
    }
    unpacker.finish(&Cancel::new()).unwrap().unwrap()
}

/// Checks that every record stands for something whole.
fn check(store: &Store) {
    let lease = store.lease("check").unwrap();
    let digests: Vec<String> = store
        .root()
        .db()
        .read(|c| {
            let mut select = c.prepare("SELECT digest FROM blobs WHERE NOT removing")?;
            Ok(select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap();
    for digest in digests {
        let digest = digest.parse().unwrap();
        store.blob(&lease, &digest).unwrap().expect("a record has its file").read(u64::MAX).unwrap();
    }
    let ids: Vec<SnapshotId> = store
        .root()
        .db()
        .read(|c| {
            let mut select = c.prepare("SELECT id FROM snapshots")?;
            Ok(select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap();
    for id in ids {
        let snapshot = store.snapshot(&lease, id).unwrap().unwrap();
        let found = store.layer_digests(id, &Cancel::new()).unwrap().diff_id;
        // What came from elsewhere is packed in our way now.
        let same = snapshot.content.is_none() || snapshot.diff_id == Some(found);
        assert!(same, "snapshot {id} is not what its record says");
    }
}

#[test]
fn a_killed_transfer_is_resumed_by_the_next_process() {
    let world = World::native();
    let mut worker = Worker::start(&world.root(), "ingest 7");
    worker.wait_for("half", 1);
    let data = noise(1 << 20, 7);
    let busy = world.store.ingest(&world.lease, &Digest::of(&data), None).unwrap();
    assert!(matches!(busy, IngestState::Busy), "{busy:?}");
    worker.kill();
    let IngestState::Ready(mut ingest) = world.store.ingest(&world.lease, &Digest::of(&data), None).unwrap() else {
        panic!("the lock has outlived its process")
    };
    assert_eq!(ingest.offset(), 600_000);
    ingest.write_all(&data[600_000..]).unwrap();
    ingest.commit().unwrap();
    world.store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
    assert_holds(&world.root(), 1, 0);
    assert_eq!(names(&world.root().join("leases")).len(), 1, "the lease of the killed process is gone");
}

#[test]
fn a_killed_unpack_leaves_nothing_that_counts() {
    let world = World::native();
    let mut worker = Worker::start(&world.root(), "unpack -");
    worker.wait_for("half", 1);
    // While it lives, its half belongs to it.
    world.store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
    assert_holds(&world.root(), 0, 1);
    worker.kill();
    let tar = layer();
    assert_eq!(world.store.unpacker(&world.lease, &[Digest::of(&tar)]).unwrap().missing(), [0]);
    world.store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
    assert_holds(&world.root(), 0, 0);
    unpack(&world.store, &world.lease, &tar);
    check(&world.store);
}

#[test]
fn processes_that_are_killed_anywhere_leave_a_root_that_the_next_ones_use() {
    let world = World::native();
    for round in 0..6 {
        let mut workers = [0, 1].map(|number| Worker::start(&world.root(), &format!("storm {}", number + round)));
        // Somewhere within a round, not at its end.
        workers[0].wait_for("round", 1 + usize::try_from(round).unwrap());
        let pause = Duration::from_millis(7 * u64::try_from(round).unwrap());
        std::thread::park_timeout(pause);
        workers.into_iter().for_each(Worker::kill);
        check(&world.other());
    }
    world.store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
    assert_holds(&world.root(), 0, 0);
    assert_eq!(names(&world.root().join("leases")).len(), 1);
}

#[test]
fn several_processes_make_and_collect_at_once() {
    let world = World::native();
    let workers: Vec<Worker> = (0..4).map(|number| Worker::start(&world.root(), &format!("rounds {number}"))).collect();
    workers.into_iter().for_each(Worker::finish);
    check(&world.store);
    world.store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
    assert_holds(&world.root(), 0, 0);
}
