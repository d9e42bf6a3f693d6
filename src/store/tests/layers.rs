//! Layers as blobs: compressed forms, and what is known of them.

use std::io::Write as _;

use kiln_graph::Digest;

use super::tars::Tar;
use super::views::Tree;
use super::*;
use crate::store::compression::{Compression, Decoder, Encoder, Format};

fn compressed(data: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn form(blob: &Blob, suffix: &str) -> LayerBlob {
    LayerBlob { digest: *blob.digest(), size: blob.size(), media_suffix: suffix.to_owned() }
}

/// A snapshot made here, identified.
fn made(world: &World) -> Snapshot {
    let active = world.store.prepare(&world.lease, None).unwrap();
    Tree::at(active.dir()).file("f", noise(300_000, 1));
    let id = active.commit().unwrap();
    let digests = world.store.layer_digests(id, &Cancel::new()).unwrap();
    world.store.identify(&world.lease, id, &digests).unwrap()
}

/// A snapshot of a layer that this program would pack in another way.
fn pulled(world: &World) -> (Snapshot, Vec<u8>) {
    let tar = Tar::new().dir("d/").file("d/f", noise(300_000, 2)).finish();
    let diff_id = Digest::of(&tar);
    let unpacker = world.store.unpacker(&world.lease, &[diff_id]).unwrap();
    unpacker.layer(0, tar.as_slice(), &Cancel::new()).unwrap();
    unpacker.finish(&Cancel::new()).unwrap();
    (world.store.by_chain(&world.lease, &diff_id).unwrap().unwrap(), tar)
}

fn format_of(blob: &Blob) -> Format {
    Decoder::new(blob.open().unwrap()).unwrap().format()
}

#[test]
fn a_layer_is_compressed_once_for_each_way() {
    let world = World::native();
    let snapshot = made(&world);
    let get = |compression| world.store.layer_blob(&world.lease, snapshot.id, compression, &Cancel::new()).unwrap();
    let gzip = get(Compression::GZIP);
    assert_eq!((Some(gzip.diff_id), format_of(&gzip.blob)), (snapshot.diff_id, Format::Gzip));
    let zstd = get(Compression::ZSTD);
    assert_eq!(format_of(&zstd.blob), Format::Zstd);
    let plain = get(Compression::None);
    assert_eq!(Some(*plain.blob.digest()), snapshot.diff_id);
    assert_eq!(get(Compression::GZIP).blob.digest(), gzip.blob.digest());
    assert_eq!(names(&world.root().join("blobs/sha256")).len(), 3);
    let known = world.store.layer_blobs(&gzip.diff_id).unwrap();
    assert_eq!(known.len(), 3);
    assert!(known.contains(&form(&gzip.blob, "+gzip")) && known.contains(&form(&zstd.blob, "+zstd")));
}

#[test]
fn a_layer_that_came_compressed_is_given_as_it_came() {
    let world = World::native();
    let (snapshot, tar) = pulled(&world);
    let get = |compression| world.store.layer_blob(&world.lease, snapshot.id, compression, &Cancel::new());
    let error = get(Compression::GZIP).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("must be pulled again"), "{error}");
    let blob = world.store.write_blob(&world.lease, &compressed(&tar, Compression::Gzip { level: 1 })).unwrap();
    world.store.verify_layer_blob(&snapshot.diff_id.unwrap(), &blob, &Cancel::new()).unwrap();
    assert_eq!(get(Compression::GZIP).unwrap().blob.digest(), blob.digest(), "at the level it came with");
    assert_eq!(get(Compression::ZSTD).unwrap().blob.digest(), blob.digest(), "there is nothing else");
}

#[test]
fn a_blob_that_is_not_the_layer_it_claims_to_be_is_not_remembered() {
    let world = World::native();
    let (snapshot, tar) = pulled(&world);
    let diff_id = snapshot.diff_id.unwrap();
    let put = |bytes: &[u8]| world.store.write_blob(&world.lease, bytes).unwrap();
    let verify = |blob: &Blob| world.store.verify_layer_blob(&diff_id, blob, &Cancel::new());
    let other = put(&compressed(&Tar::new().file("evil", "").finish(), Compression::GZIP));
    let error = verify(&other).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&diff_id.to_string()), "{error}");
    let whole = compressed(&tar, Compression::GZIP);
    assert_eq!(verify(&put(&whole[..whole.len() / 2])).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(verify(&put(b"no tar at all")).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(world.store.layer_blobs(&diff_id).unwrap(), []);
    let right = put(&whole);
    verify(&right).unwrap();
    verify(&right).unwrap();
    assert_eq!(world.store.layer_blobs(&diff_id).unwrap(), [form(&right, "+gzip")]);
    let foreign = world.store.root().db().read(|c| world.store.foreign_layer_blobs(c, &diff_id)).unwrap();
    assert_eq!(foreign, [*right.digest()]);
}

#[test]
fn a_wrong_layer_is_refused_and_stays_missing() {
    let world = World::native();
    let right = Tar::new().file("f", "right").finish();
    let unpacker = world.store.unpacker(&world.lease, &[Digest::of(&right)]).unwrap();
    let unpack = |bytes: &[u8]| unpacker.layer(0, bytes, &Cancel::new());
    let error = unpack(&Tar::new().file("f", "wrong").finish()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&format!("unpack layer {}", Digest::of(&right))), "{error}");
    assert_eq!(unpack(&right[..700]).unwrap_err().kind(), Kind::Corrupt);
    let escaping = Tar::new().file("../canary", "").finish();
    let unpacker_of = world.store.unpacker(&world.lease, &[Digest::of(&escaping)]).unwrap();
    let error = unpacker_of.layer(0, escaping.as_slice(), &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("unpack ../canary: the path leads out of the root"), "{error}");
    assert!(!world.root().join("snapshots/canary").exists());
    assert_eq!(unpacker.missing(), [0]);
    assert_holds(&world.root(), 0, 0);
    unpack(&right).unwrap();
    unpacker.finish(&Cancel::new()).unwrap().unwrap();
    let incomplete = world.store.unpacker(&world.lease, &[Digest::of(b"never")]).unwrap();
    assert_eq!(incomplete.finish(&Cancel::new()).unwrap_err().kind(), Kind::Conflict);
}

#[test]
fn threads_unpack_the_layers_of_one_image_at_once() {
    let world = World::native();
    let tars: Vec<Vec<u8>> =
        (0..6).map(|n| Tar::new().dir("d/").file(&format!("d/{n}"), noise(100_000, n)).finish()).collect();
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let unpacker = world.store.unpacker(&world.lease, &diff_ids).unwrap();
    std::thread::scope(|scope| {
        for index in unpacker.missing().into_iter().rev() {
            let (unpacker, tar) = (&unpacker, &tars[index]);
            scope.spawn(move || unpacker.layer(index, tar.as_slice(), &Cancel::new()).unwrap());
        }
    });
    let top = unpacker.finish(&Cancel::new()).unwrap().unwrap();
    let Rootfs::Dir { path, .. } = world.store.rootfs(Some(top)).unwrap() else { panic!() };
    assert_eq!(names(&path.join("d")), ["0", "1", "2", "3", "4", "5"]);
}
