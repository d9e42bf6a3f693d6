//! Archives: saved and loaded here, exchanged with skopeo, damaged and malicious.

use std::io::{Read as _, Write as _};
use std::process::Command;

use super::*;
use crate::store::compression::{Compression, Encoder};

fn saved(world: &World, images: &[&str]) -> Vec<u8> {
    let request = SaveRequest { images: images.iter().map(|&image| image.to_owned()).collect() };
    let mut out = Vec::new();
    world.images.save(&world.lease, &request, &mut out, &Cancel::new()).unwrap();
    out
}

fn load(world: &World, archive: &[u8]) -> Result<Vec<Loaded>> {
    world.images.load(&world.lease, archive, &Cancel::new())
}

fn compressed(data: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn two_layers(world: &World) -> Digest {
    world.image("app:1", &[("base", noise(200_000, 1)), ("app", b"hello".to_vec())])
}

/// The files of an archive, which tests change and put together again.
fn files(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    });
    entries.filter(|(path, _)| !path.ends_with('/')).collect()
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn a_saved_image_is_loaded_as_it_was_however_it_is_compressed() {
    let world = World::new();
    let id = two_layers(&world);
    world.images.tag("app:1", &reference("other:2")).unwrap();
    let plain = saved(&world, &["app:1", "other:2"]);
    assert!(saved(&world, &["app:1", "other:2"]) == plain, "the same images give another archive");
    for archive in [plain.clone(), compressed(&plain, Compression::GZIP), compressed(&plain, Compression::ZSTD)] {
        let fresh = World::new();
        let loaded = load(&fresh, &archive).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].id, id);
        assert_eq!(loaded[0].names.iter().map(Reference::familiar).collect::<Vec<_>>(), ["app:1", "other:2"]);
        assert_eq!(fresh.read("other:2", "base"), Some(noise(200_000, 1)));
        assert_eq!(fresh.read("app:1", "app"), Some(b"hello".to_vec()));
        // Loaded again, nothing changes.
        assert_eq!(load(&fresh, &archive).unwrap(), loaded);
        assert!(saved(&fresh, &["app:1", "other:2"]) == plain, "saved again, it is another archive");
    }
}

#[test]
fn either_half_of_a_saved_archive_is_enough() {
    let world = World::new();
    let id = two_layers(&world);
    let all = files(&saved(&world, &["app:1"]));
    let without = |name: &str| archive(&all.iter().filter(|(path, _)| path != name).cloned().collect::<Vec<_>>());
    for half in [without("manifest.json"), without("index.json")] {
        let fresh = World::new();
        let loaded = load(&fresh, &half).unwrap();
        assert_eq!((loaded[0].id, loaded[0].names[0].familiar().as_str()), (id, "app:1"));
        assert_eq!(fresh.read("app:1", "app"), Some(b"hello".to_vec()));
    }
    let error = load(&World::new(), &archive(&[("x".to_owned(), b"y".to_vec())])).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("neither a docker archive nor an OCI layout"), "{error}");
}

/// Runs skopeo; `None` when it is not installed.
fn skopeo(args: &[&str]) -> Option<()> {
    let Ok(output) = Command::new("skopeo").args(["--insecure-policy", "copy"]).args(args).output() else {
        eprintln!("SKIPPED: skopeo is not installed (apt-get install skopeo)");
        return None;
    };
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

#[test]
fn skopeo_reads_what_we_save_and_we_load_what_it_writes() {
    let world = World::new();
    let id = two_layers(&world);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("ours.tar"), saved(&world, &["app:1"])).unwrap();
    let ours = [format!("docker-archive:{}:app:1", path("ours.tar")), format!("oci-archive:{}:1", path("ours.tar"))];
    let theirs = [
        (format!("docker-archive:{}:app:1", path("docker.tar")), vec![]),
        (format!("oci-archive:{}:1", path("gzip.tar")), vec!["--dest-compress-format=gzip"]),
        (format!("oci-archive:{}:app:1", path("zstd.tar")), vec!["--dest-compress-format=zstd", "--dest-compress"]),
    ];
    for source in &ours {
        for (dest, options) in &theirs {
            let file = dest.split(':').nth(1).unwrap();
            let _ = std::fs::remove_file(file);
            let args: Vec<&str> = options.iter().copied().chain([source.as_str(), dest.as_str()]).collect();
            if skopeo(&args).is_none() {
                return;
            }
            let fresh = World::new();
            let loaded = load(&fresh, &std::fs::read(file).unwrap()).unwrap();
            // From one format to the other, skopeo writes the configuration anew.
            let same_format = source.split(':').next() == dest.split(':').next();
            assert!(loaded[0].id == id || !same_format, "{source} {dest}");
            fresh.images.tag(&loaded[0].id.to_string(), &reference("app:1")).unwrap();
            assert_eq!(fresh.read("app:1", "base"), Some(noise(200_000, 1)));
        }
    }
}

#[test]
fn an_archive_with_something_missing_or_damaged_is_refused_and_leaves_nothing() {
    let world = World::new();
    two_layers(&world);
    let all = files(&saved(&world, &["app:1"]));
    let large = all.iter().position(|(_, content)| content.len() > 200_000).unwrap();
    let mut damaged = all.clone();
    damaged[large].1[100_000] ^= 1;
    let mut missing = all.clone();
    missing.remove(large);
    let whole = archive(&all);
    for (archive, kinds) in [
        (archive(&damaged), [Kind::Corrupt, Kind::Corrupt]),
        (archive(&missing), [Kind::Corrupt, Kind::Corrupt]),
        (whole[..whole.len() / 2].to_vec(), [Kind::Corrupt, Kind::Corrupt]),
        (b"no archive at all".repeat(100), [Kind::InvalidArgument, Kind::Corrupt]),
        (Vec::new(), [Kind::InvalidArgument, Kind::InvalidArgument]),
    ] {
        let fresh = World::new();
        let error = load(&fresh, &archive).unwrap_err();
        assert!(kinds.contains(&error.kind()), "{error}");
        fresh.assert_empty();
    }
}

#[test]
fn a_blob_that_claims_to_be_a_layer_we_have_is_found_out() {
    let world = World::new();
    two_layers(&world);
    let mut all = files(&saved(&world, &["app:1"]));
    let large = all.iter().position(|(_, content)| content.len() > 200_000).unwrap();
    let diff_id: Digest = format!("sha256:{}", all[large].0.rsplit('/').next().unwrap()).parse().unwrap();
    // A docker archive may call its layers as it likes; this one's holds something else.
    let evil = tar::Builder::new(Vec::new()).into_inner().unwrap();
    all[large].1 = compressed(&evil, Compression::GZIP);
    all.retain(|(path, _)| path != "index.json");
    let error = load(&world, &archive(&all)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert_eq!(world.store().layer_blobs(&diff_id).unwrap(), []);
}

#[test]
fn a_header_of_any_size_takes_little_memory() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_path("x").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    let endless = header.as_bytes().as_slice().chain(std::io::repeat(b'x'));
    let world = World::new();
    let error = world.images.load(&world.lease, endless, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    world.assert_empty();
}

#[test]
fn old_archives_link_equal_layers() {
    let world = World::new();
    let id = two_layers(&world);
    let all = files(&saved(&world, &["app:1"]));
    let content = |path: &str| all.iter().find(|(name, _)| name == path).unwrap().1.clone();
    let manifest: serde_json::Value = serde_json::from_slice(&content("manifest.json")).unwrap();
    let layers: Vec<Vec<u8>> =
        manifest[0]["Layers"].as_array().unwrap().iter().map(|l| content(l.as_str().unwrap())).collect();
    let config = content(manifest[0]["Config"].as_str().unwrap());
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content).unwrap();
    };
    add("./one/layer.tar", &layers[0]);
    add("./real/layer.tar", &layers[1]);
    add("config.json", &config);
    add(
        "manifest.json",
        br#"[{"Config":"config.json","RepoTags":["old:1"],"Layers":["one/layer.tar","two/layer.tar"]}]"#,
    );
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "two/layer.tar", "../real/layer.tar").unwrap();
    let fresh = World::new();
    assert_eq!(load(&fresh, &builder.into_inner().unwrap()).unwrap()[0].id, id);
    assert_eq!(fresh.read("old:1", "app"), Some(b"hello".to_vec()));
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let world = World::new();
    let rootfs = archive(&[("etc/motd".to_owned(), b"hi".to_vec()), ("bin/sh".to_owned(), b"#!".to_vec())]);
    let import = |bytes: &[u8]| {
        let what = Imported {
            config: ImageConfig::default(),
            message: "from a test".to_owned(),
            name: Some(reference("imported")),
        };
        world.images.import(&world.lease, bytes, what, &Cancel::new())
    };
    let id = import(&compressed(&rootfs, Compression::GZIP)).unwrap();
    let image = world.images.get(&world.lease, &id).unwrap().unwrap();
    assert_eq!(image.config.history[0].comment, "from a test");
    assert_eq!(world.read("imported:latest", "etc/motd"), Some(b"hi".to_vec()));
    let escaping = {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..9].copy_from_slice(b"../canary");
        header.set_size(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let error = import(&escaping).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("../canary"), "{error}");
    assert!(!world.dir.path().join("canary").exists());
}
