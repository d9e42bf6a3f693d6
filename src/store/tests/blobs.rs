//! Blobs: written, ingested, resumed, followed; verified always.

use std::io::{Read as _, Write as _};

use kiln_graph::{Algorithm, Digest};

use super::*;

fn ready(world: &World, digest: &Digest, size: Option<u64>) -> Ingest {
    match world.store.ingest(&world.lease, digest, size).unwrap() {
        IngestState::Ready(ingest) => ingest,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_blob_is_known_by_its_digest_and_found_by_others() {
    let world = World::native();
    let mut writer = world.store.blob_writer(&world.lease).unwrap();
    writer.write_all(b"hello ").unwrap();
    writer.write_all(b"world").unwrap();
    let blob = writer.finish().unwrap();
    assert_eq!((*blob.digest(), blob.size()), (Digest::of(b"hello world"), 11));
    let other = world.other();
    let lease = other.lease("another").unwrap();
    assert_eq!(other.blob(&lease, blob.digest()).unwrap().unwrap().read(100).unwrap(), b"hello world");
    assert_eq!(other.write_blob(&lease, b"hello world").unwrap().digest(), blob.digest());
    assert_eq!(blob.read(10).unwrap_err().kind(), Kind::InvalidArgument);
    assert!(other.blob(&lease, &Digest::of(b"other")).unwrap().is_none());
    assert_eq!(names(&world.root().join("ingest")), [""; 0]);
}

#[test]
fn a_blob_that_is_not_finished_is_nothing() {
    let world = World::native();
    let mut writer = world.store.blob_writer(&world.lease).unwrap();
    writer.write_all(b"half").unwrap();
    drop(writer);
    assert_holds(&world.root(), 0, 0);
}

#[test]
fn an_ingest_takes_only_what_was_promised() {
    let world = World::native();
    let digest = Digest::of(b"right");
    let mut ingest = ready(&world, &digest, Some(5));
    ingest.write_all(b"wrong").unwrap();
    let error = ingest.commit().unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&digest.to_string()) && error.to_string().contains("has the digest"), "{error}");
    assert_holds(&world.root(), 0, 0);
    let mut short = ready(&world, &digest, Some(5));
    short.write_all(b"rig").unwrap();
    let error = short.commit().unwrap_err();
    assert!(error.to_string().contains("3 bytes arrived, and its descriptor says 5"), "{error}");
    let mut long = ready(&world, &digest, Some(5));
    long.write_all(b"righ").unwrap();
    let error = Error::from(long.write_all(b"t and more").unwrap_err());
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    long.discard().unwrap();
    let mut ingest = ready(&world, &digest, None);
    ingest.write_all(b"right").unwrap();
    assert_eq!(ingest.commit().unwrap().read(5).unwrap(), b"right");
    assert!(matches!(world.store.ingest(&world.lease, &digest, None).unwrap(), IngestState::Exists(_)));
    assert_holds(&world.root(), 1, 0);
}

#[test]
fn a_sha512_blob_is_verified_as_such() {
    let world = World::native();
    // NIST's test vector for "abc".
    let digest: Digest = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        .parse()
        .unwrap();
    assert_eq!(digest.algorithm(), Algorithm::Sha512);
    assert_eq!(world.store.put_blob(&world.lease, &digest, b"abd").unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(world.store.put_blob(&world.lease, &digest, b"abc").unwrap().read(3).unwrap(), b"abc");
    assert_holds(&world.root(), 1, 0);
}

#[test]
fn an_interrupted_ingest_goes_on_where_it_broke_off() {
    let world = World::native();
    let data = noise(1_000_000, 1);
    let digest = Digest::of(&data);
    let mut first = ready(&world, &digest, Some(data.len() as u64));
    first.write_all(&data[..600_000]).unwrap();
    drop(first);
    // Another command, later.
    let later =
        World { store: world.other(), lease: world.other().lease("later").unwrap(), dir: tempfile::tempdir().unwrap() };
    let mut second = ready(&later, &digest, Some(data.len() as u64));
    assert_eq!(second.offset(), 600_000);
    second.write_all(&data[600_000..]).unwrap();
    assert_eq!(second.commit().unwrap().size(), 1_000_000);
    // What was left by a transfer of something longer is of no use.
    let digest = Digest::of(b"small");
    let mut wrong = ready(&world, &digest, None);
    wrong.write_all(b"much longer than that").unwrap();
    drop(wrong);
    assert_eq!(ready(&world, &digest, Some(5)).offset(), 0);
}

#[test]
fn one_writes_a_blob_and_others_wait() {
    let world = World::native();
    let digest = Digest::of(b"data");
    let mut mine = ready(&world, &digest, None);
    let other = world.other();
    let lease = other.lease("another").unwrap();
    assert!(matches!(other.ingest(&lease, &digest, None).unwrap(), IngestState::Busy));
    mine.write_all(b"data").unwrap();
    mine.commit().unwrap();
    assert!(matches!(other.ingest(&lease, &digest, None).unwrap(), IngestState::Exists(_)));
    assert_holds(&world.root(), 1, 0);
}

#[test]
fn a_follower_reads_all_that_arrives_and_ends_with_the_commit() {
    let world = World::native();
    let data = noise(3_000_000, 2);
    let digest = Digest::of(&data);
    let mut ingest = ready(&world, &digest, None);
    let mut follow = ingest.follow().unwrap();
    let (read, ()) = crate::task::beside(
        "follow",
        move || {
            let mut read = Vec::new();
            follow.read_to_end(&mut read).map(|_| read)
        },
        || {
            data.chunks(70_001).for_each(|piece| ingest.write_all(piece).unwrap());
            ingest.commit().unwrap();
        },
    )
    .unwrap();
    assert!(read.unwrap() == data);
}

#[test]
fn a_follower_learns_that_the_transfer_broke_off_or_began_anew() {
    let world = World::native();
    let read = |follow: &mut Follow| {
        let mut byte = [0];
        follow.read(&mut byte).map(|n| byte[..n].to_vec()).map_err(Error::from)
    };
    let mut ingest = ready(&world, &Digest::of(b"x"), None);
    ingest.write_all(b"old").unwrap();
    let (mut early, mut late) = (ingest.follow().unwrap(), ingest.follow().unwrap());
    assert_eq!(read(&mut early).unwrap(), b"o");
    ingest.restart().unwrap();
    ingest.write_all(b"new").unwrap();
    assert_eq!(read(&mut early).unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(read(&mut late).unwrap(), b"n", "who has read nothing yet reads the new start");
    drop(ingest);
    assert_eq!(read(&mut late).unwrap_err().kind(), Kind::Unavailable);
}

#[test]
fn a_follower_never_mixes_two_starts() {
    let world = World::native();
    let mut ingest = ready(&world, &Digest::of(b"x"), None);
    for round in 0..200_u8 {
        ingest.restart().unwrap();
        let mut follow = ingest.follow().unwrap();
        let (read, ()) = crate::task::beside(
            "follow",
            move || {
                let mut read = Vec::new();
                let outcome = follow.read_to_end(&mut read);
                (read, outcome)
            },
            || {
                for value in [round, round.wrapping_add(1)] {
                    ingest.write_all(&[value; 3000]).unwrap();
                    ingest.write_all(&[value; 3000]).unwrap();
                    ingest.restart().unwrap();
                }
                ingest.write_all(&[round.wrapping_add(2); 10]).unwrap();
                let done = std::mem::replace(&mut ingest, ready(&world, &Digest::of(&[round]), None));
                drop(done);
            },
        )
        .unwrap();
        let (read, outcome) = read;
        assert_eq!(Error::from(outcome.unwrap_err()).kind(), Kind::Unavailable);
        assert!(read.windows(2).all(|pair| pair[0] == pair[1]), "bytes of two starts in one stream");
    }
}

#[test]
fn a_blob_whose_file_was_damaged_by_hand_is_not_used() {
    let world = World::native();
    let blob = world.store.write_blob(&world.lease, b"precious").unwrap();
    let path = world.root().join("blobs/sha256").join(blob.digest().hex());
    std::fs::write(&path, b"prec1ous").unwrap();
    assert_eq!(blob.read(100).unwrap_err().kind(), Kind::Corrupt);
    std::fs::write(&path, b"shorter").unwrap();
    assert!(world.store.blob(&world.lease, blob.digest()).unwrap().is_none());
    let again = world.store.write_blob(&world.lease, b"precious").unwrap();
    assert_eq!(again.read(100).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    assert!(world.store.blob(&world.lease, blob.digest()).unwrap().is_none());
}
