//! Tests of logs: what is written is read, in docker's format, within bounds, also while it is being written.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::task::Cancel;

fn log() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x-json.log");
    (dir, path)
}

fn read(path: &Path, range: Range) -> Vec<(i64, String)> {
    let mut entries = Vec::new();
    LogReader::new(path, range)
        .read(&mut |entry| {
            entries.push((entry.time_ns, String::from_utf8(entry.text).unwrap()));
            Ok(())
        })
        .unwrap();
    entries
}

fn texts(path: &Path, range: Range) -> Vec<String> {
    read(path, range).into_iter().map(|(_, text)| text).collect()
}

#[test]
fn the_file_is_what_dockers_json_file_driver_writes() {
    let (_dir, path) = log();
    let mut writer = LogWriter::open(&path, Bounds::default()).unwrap();
    writer.write(Output::Stdout, b"a \"quoted\" <line>\n", 1_700_000_000_120_000_000).unwrap();
    writer.write(Output::Stderr, b"\xff\n", 1_700_000_001_000_000_000).unwrap();
    let expected = concat!(
        r#"{"log":"a \"quoted\" <line>\n","stream":"stdout","time":"2023-11-14T22:13:20.12Z"}"#,
        "\n",
        "{\"log\":\"\u{fffd}\\n\",\"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:21Z\"}\n",
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn a_line_that_arrives_in_pieces_is_one_entry_and_a_long_one_is_several() {
    let (_dir, path) = log();
    let mut writer = LogWriter::open(&path, Bounds::default()).unwrap();
    writer.write(Output::Stdout, b"one", 1).unwrap();
    writer.write(Output::Stderr, b"other\n", 2).unwrap();
    writer.write(Output::Stdout, b" line\ntail", 3).unwrap();
    writer.write(Output::Stdout, &vec![b'x'; 20_000], 4).unwrap();
    writer.finish(5).unwrap();
    let texts = texts(&path, Range::default());
    assert_eq!(texts[..2], ["other\n", "one line\n"]);
    assert_eq!(texts[2].len() + texts[3].len(), 20_004);
    assert_eq!(texts[2].len(), 16 << 10);
}

#[test]
fn a_log_never_outgrows_its_bounds() {
    let (dir, path) = log();
    let bounds = Bounds { max_size_bytes: 1000, max_files: 3 };
    let mut writer = LogWriter::open(&path, bounds).unwrap();
    for n in 0..200 {
        writer.write(Output::Stdout, format!("line {n}\n").as_bytes(), n).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        assert!(file.unwrap().metadata().unwrap().len() < 1200);
    }
    let texts = texts(&path, Range::default());
    assert_eq!(texts.last().unwrap(), "line 199\n");
    assert!(texts.len() > 25, "the newest files are kept");
    let numbers: Vec<i64> = read(&path, Range::default()).iter().map(|(time, _)| *time).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "entries come in order, none twice");
}

#[test]
fn tail_since_and_until_choose_entries() {
    let (_dir, path) = log();
    let mut writer = LogWriter::open(&path, Bounds { max_size_bytes: 300, max_files: 9 }).unwrap();
    for n in 0..10 {
        writer.write(Output::Stdout, format!("{n}\n").as_bytes(), n).unwrap();
    }
    let choose = |tail, since_ns, until_ns| texts(&path, Range { tail, since_ns, until_ns }).concat().replace('\n', "");
    assert_eq!(choose(None, None, None), "0123456789");
    assert_eq!(choose(Some(3), None, None), "789");
    assert_eq!(choose(Some(0), None, None), "");
    assert_eq!(choose(None, Some(4), Some(6)), "456");
    assert_eq!(choose(Some(2), None, Some(6)), "56");
}

#[test]
fn half_a_line_left_by_a_crash_is_skipped() {
    let (_dir, path) = log();
    let mut writer = LogWriter::open(&path, Bounds::default()).unwrap();
    writer.write(Output::Stdout, b"before\n", 1).unwrap();
    std::fs::write(&path, [std::fs::read(&path).unwrap(), b"{\"log\":\"hal\n".to_vec()].concat()).unwrap();
    let mut writer = LogWriter::open(&path, Bounds::default()).unwrap();
    writer.write(Output::Stdout, b"after\n", 2).unwrap();
    assert_eq!(texts(&path, Range::default()), ["before\n", "after\n"]);
}

#[test]
fn a_follower_sees_every_line_through_rotations_and_ends_with_the_writer() {
    let (_dir, path) = log();
    let live = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (live, path) = (&live, &path);
        let follower = scope.spawn(move || {
            let mut seen = Vec::new();
            let mut reader = LogReader::new(path, Range::default());
            let is_live = || live.load(Ordering::SeqCst);
            reader
                .follow(&Cancel::new(), &is_live, &mut |entry| {
                    seen.push(entry.time_ns);
                    Ok(())
                })
                .unwrap();
            seen
        });
        let mut writer = LogWriter::open(path, Bounds { max_size_bytes: 4000, max_files: 100 }).unwrap();
        for n in 0..1000 {
            writer.write(Output::Stdout, b"some text\n", n).unwrap();
        }
        live.store(false, Ordering::SeqCst);
        drop(writer);
        assert_eq!(follower.join().unwrap(), (0..1000).collect::<Vec<_>>());
    });
}

#[test]
fn a_cancelled_follower_stops() {
    let (_dir, path) = log();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = LogReader::new(&path, Range::default()).follow(&cancel, &|| true, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Cancelled);
}
