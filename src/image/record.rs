//! Image records: which images there are, what they are called, and under which digests registries know them.
//!
//! An image's id is the digest of its configuration, so it does not depend on compression. A pulled or pushed image also has a
//! manifest; a built one has none until something needs its layers compressed.
//!
//! A build for several platforms makes an index of several images. Its name stands for the one that runs here (the first of
//! the index in the records), and remembers the index, which is what is pushed.

use std::collections::BTreeSet;
use std::str::FromStr as _;

use kiln_graph::{Digest, Reference};
use rusqlite::{Connection, OptionalExtension as _, Row};

use crate::error::{Error, Kind, Result};
use crate::state::Schema;

/// The tables of images.
pub const SCHEMA: Schema = Schema {
    module: "image",
    scripts: &[
        "CREATE TABLE images (
        id TEXT PRIMARY KEY,
        manifest TEXT,
        added_ns INTEGER NOT NULL,
        used_ns INTEGER NOT NULL,
        boot TEXT
    );
    CREATE INDEX images_not_durable ON images (boot) WHERE boot IS NOT NULL;
    CREATE TABLE image_names (
        name TEXT PRIMARY KEY,
        image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
    );
    CREATE INDEX image_names_by_image ON image_names (image_id);
    CREATE TABLE repository_digests (
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        PRIMARY KEY (repository, digest)
    );
    CREATE INDEX repository_digests_by_image ON repository_digests (image_id);",
        "ALTER TABLE image_names ADD COLUMN index_digest TEXT;
    CREATE TABLE index_images (
        digest TEXT NOT NULL,
        position INTEGER NOT NULL,
        image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        PRIMARY KEY (digest, position)
    );
    CREATE INDEX index_images_by_image ON index_images (image_id);",
    ],
};

/// The tables whose records a power cut may lose; they come before those of the store.
pub const DURABLE_TABLES: &[&str] = &["images"];

/// An image's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The image's id: the digest of its configuration.
    pub id: Digest,
    /// The digest of its manifest, when it has one.
    pub manifest: Option<Digest>,
    /// When it came here, in nanoseconds since 1970.
    pub added_ns: i64,
    /// Its names, with tags, in order.
    pub names: Vec<Reference>,
    /// Repositories with the digest they know it by.
    pub repository_digests: Vec<Reference>,
}

fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|error| Error::from(error).with_kind(Kind::Corrupt))
}

fn load(connection: &Connection, row: &Row<'_>) -> Result<Record> {
    let id: String = row.get(0)?;
    let manifest: Option<String> = row.get(1)?;
    let names = |sql: &str| -> Result<Vec<Reference>> {
        let mut statement = connection.prepare_cached(sql)?;
        let texts: Vec<String> = statement.query_map([&id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        texts.iter().map(|text| Ok(Reference::from_str(text)?)).collect()
    };
    Ok(Record {
        id: digest(&id)?,
        manifest: manifest.as_deref().map(digest).transpose()?,
        added_ns: row.get(2)?,
        names: names("SELECT name FROM image_names WHERE image_id = ?1 ORDER BY name")?,
        repository_digests: names(
            "SELECT repository || '@' || digest FROM repository_digests WHERE image_id = ?1 ORDER BY repository, digest",
        )?,
    })
}

const COLUMNS: &str = "id, manifest, added_ns";

fn query(connection: &Connection, condition: &str, value: &str) -> Result<Vec<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM images WHERE {condition}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([value])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(load(connection, row)?);
    }
    Ok(records)
}

/// Returns the image of an id.
///
/// # Errors
/// When the database fails.
pub fn get(connection: &Connection, id: &Digest) -> Result<Option<Record>> {
    Ok(query(connection, "id = ?1", &id.to_string())?.pop())
}

/// Returns all images, newest first.
///
/// # Errors
/// When the database fails.
pub fn all(connection: &Connection) -> Result<Vec<Record>> {
    query(connection, "?1 = ?1 ORDER BY added_ns DESC, id", "")
}

/// Returns the image a name or a repository digest stands for.
///
/// # Errors
/// When the database fails.
pub fn by_name(connection: &Connection, name: &Reference) -> Result<Option<Record>> {
    let id: Option<String> = match name.digest() {
        Some(digest) => connection
            .prepare_cached("SELECT image_id FROM repository_digests WHERE repository = ?1 AND digest = ?2")?
            .query_row((name.repository(), digest.to_string()), |row| row.get(0))
            .optional()?,
        None => connection
            .prepare_cached("SELECT image_id FROM image_names WHERE name = ?1")?
            .query_row([name.clone().with_default_tag().to_string()], |row| row.get(0))
            .optional()?,
    };
    match id {
        Some(id) => Ok(query(connection, "id = ?1", &id)?.pop()),
        None => Ok(None),
    }
}

/// How a text named an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// By a name or a repository digest, in normalised form.
    Name(Reference),
    /// By its id or the beginning of it.
    Id,
}

/// Finds the image a user means: a full id, a name, or an unambiguous beginning of an id, in this order.
///
/// # Errors
/// `NotFound` in docker's words; `InvalidArgument` when several ids begin so.
pub fn find(connection: &Connection, text: &str) -> Result<(Record, NamedBy)> {
    let missing = || Error::not_found(format!("No such image: {text}"));
    if let Ok(id) = Digest::from_str(text) {
        let found = match get(connection, &id)? {
            None => index_images(connection, &id)?.into_iter().next(),
            found => found,
        };
        return found.map(|record| (record, NamedBy::Id)).ok_or_else(missing);
    }
    if let Ok(name) = Reference::from_str(text)
        && let Some(record) = by_name(connection, &name)?
    {
        return Ok((record, NamedBy::Name(name.with_default_tag())));
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(missing());
    }
    let mut found = query(connection, "id >= ?1 AND id < ?1 || 'g' LIMIT 2", &format!("sha256:{digits}"))?;
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(missing()),
        (Some(record), true) => Ok((record, NamedBy::Id)),
        (Some(_), false) => Err(Error::invalid(format!("multiple images match the id prefix {text:?}"))),
    }
}

/// Adds an image, or updates what is known of it: a manifest replaces none.
///
/// # Errors
/// When the database fails.
pub fn insert(tx: &Connection, id: &Digest, manifest: Option<&Digest>, now_ns: i64, boot: &str) -> Result<()> {
    let sql = "INSERT INTO images (id, manifest, added_ns, used_ns, boot) VALUES (?1, ?2, ?3, ?3, ?4)
               ON CONFLICT (id) DO UPDATE SET manifest = coalesce(excluded.manifest, manifest), used_ns = excluded.used_ns";
    let manifest = manifest.map(Digest::to_string);
    tx.prepare_cached(sql)?.execute((id.to_string(), manifest, now_ns, boot))?;
    Ok(())
}

/// Gives an image a name, taking it from the image that had it; `name` has a tag.
///
/// # Errors
/// When the image does not exist or the database fails.
pub fn set_name(tx: &Connection, name: &Reference, id: &Digest) -> Result<()> {
    name_image(tx, name, id, None)
}

/// Gives a name to an index that was added, taking it from the image that had it; `name` has a tag.
///
/// # Errors
/// `NotFound` when there is no such index; when the database fails.
pub fn set_index_name(tx: &Connection, name: &Reference, index: &Digest) -> Result<()> {
    let main = index_images(tx, index)?.into_iter().next();
    let main = main.ok_or_else(|| Error::not_found(format!("No such image: {index}")))?;
    name_image(tx, name, &main.id, Some(index))
}

fn name_image(tx: &Connection, name: &Reference, id: &Digest, index: Option<&Digest>) -> Result<()> {
    let sql = "INSERT INTO image_names (name, image_id, index_digest) VALUES (?1, ?2, ?3)
               ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id, index_digest = excluded.index_digest";
    tx.prepare_cached(sql)?.execute((name.to_string(), id.to_string(), index.map(Digest::to_string)))?;
    Ok(())
}

/// Adds an index of images that were added, that for this host first.
///
/// # Errors
/// When an image does not exist or the database fails.
pub fn insert_index(tx: &Connection, index: &Digest, images: &[Digest]) -> Result<()> {
    let sql = "INSERT INTO index_images (digest, position, image_id) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    for (position, id) in images.iter().enumerate() {
        tx.prepare_cached(sql)?.execute((index.to_string(), position as u64, id.to_string()))?;
    }
    Ok(())
}

/// Returns the index that a name stands for, if it is one that was made here.
///
/// # Errors
/// When the database fails.
pub fn index_of(connection: &Connection, name: &Reference) -> Result<Option<Digest>> {
    let sql = "SELECT index_digest FROM image_names WHERE name = ?1";
    let found: Option<Option<String>> = connection
        .prepare_cached(sql)?
        .query_row([name.clone().with_default_tag().to_string()], |row| row.get(0))
        .optional()?;
    found.flatten().as_deref().map(digest).transpose()
}

/// Returns the images of an index, that for this host first; none when there is no such index.
///
/// # Errors
/// When the database fails.
pub fn index_images(connection: &Connection, index: &Digest) -> Result<Vec<Record>> {
    let condition = "id IN (SELECT image_id FROM index_images WHERE digest = ?1)
        ORDER BY (SELECT min(position) FROM index_images WHERE digest = ?1 AND image_id = id)";
    query(connection, condition, &index.to_string())
}

/// Returns all indexes.
///
/// # Errors
/// When the database fails.
pub fn indexes(connection: &Connection) -> Result<Vec<Digest>> {
    let mut statement = connection.prepare_cached("SELECT DISTINCT digest FROM index_images")?;
    let texts: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    texts.iter().map(|text| digest(text)).collect()
}

/// Returns the nameless images that are here for the sake of an index: another image of it has a name.
///
/// # Errors
/// When the database fails.
pub fn members(connection: &Connection) -> Result<BTreeSet<Digest>> {
    let sql = "SELECT m.image_id FROM index_images m WHERE
        NOT EXISTS (SELECT 1 FROM image_names n WHERE n.image_id = m.image_id)
        AND EXISTS (SELECT 1 FROM image_names n WHERE n.index_digest = m.digest)";
    let mut statement = connection.prepare_cached(sql)?;
    let texts: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    texts.iter().map(|text| digest(text)).collect()
}

/// Takes a name away; says whether it was there.
///
/// # Errors
/// When the database fails.
pub fn remove_name(tx: &Connection, name: &Reference) -> Result<bool> {
    let removed = match name.digest() {
        Some(digest) => tx
            .prepare_cached("DELETE FROM repository_digests WHERE repository = ?1 AND digest = ?2")?
            .execute((name.repository(), digest.to_string()))?,
        None => tx.prepare_cached("DELETE FROM image_names WHERE name = ?1")?.execute([name.to_string()])?,
    };
    Ok(removed > 0)
}

/// Notes that a repository knows the image by the digest of a manifest or an index.
///
/// # Errors
/// When the database fails.
pub fn set_repository_digest(tx: &Connection, repository: &str, digest: &Digest, id: &Digest) -> Result<()> {
    let sql = "INSERT INTO repository_digests VALUES (?1, ?2, ?3)
               ON CONFLICT (repository, digest) DO UPDATE SET image_id = excluded.image_id";
    tx.prepare_cached(sql)?.execute((repository, digest.to_string(), id.to_string()))?;
    Ok(())
}

/// Deletes an image with its names.
///
/// # Errors
/// When the database fails.
pub fn delete(tx: &Connection, id: &Digest) -> Result<()> {
    tx.prepare_cached("DELETE FROM images WHERE id = ?1")?.execute([id.to_string()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Root;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &[SCHEMA]).unwrap();
        (dir, root)
    }

    fn name(text: &str) -> Reference {
        text.parse::<Reference>().unwrap().with_default_tag()
    }

    #[test]
    fn the_name_of_an_index_is_its_first_image_and_the_others_are_there_for_its_sake() {
        let (_dir, root) = root();
        let (here, other, index) = (Digest::of(b"here"), Digest::of(b"other"), Digest::of(b"index"));
        root.db()
            .write(|tx| {
                insert(tx, &here, None, 1, "boot")?;
                insert(tx, &other, None, 2, "boot")?;
                insert_index(tx, &index, &[here, other])?;
                assert_eq!(find(tx, &index.to_string())?.0.id, here);
                assert!(members(tx)?.is_empty(), "no name stands for the index");
                set_index_name(tx, &name("web"), &index)?;
                assert_eq!((find(tx, "web")?.0.id, index_of(tx, &name("web"))?), (here, Some(index)));
                assert_eq!(members(tx)?.into_iter().collect::<Vec<_>>(), [other]);
                assert_eq!(index_images(tx, &index)?.iter().map(|record| record.id).collect::<Vec<_>>(), [here, other]);
                set_name(tx, &name("web"), &here)?;
                assert_eq!((index_of(tx, &name("web"))?, members(tx)?.len()), (None, 0));
                delete(tx, &here)?;
                delete(tx, &other)?;
                assert!(indexes(tx)?.is_empty());
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn an_image_is_found_by_id_name_digest_and_prefix() {
        let (_dir, root) = root();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        root.db()
            .write(|tx| {
                insert(tx, &a, None, 1, "boot")?;
                insert(tx, &b, Some(&Digest::of(b"m")), 2, "boot")?;
                set_name(tx, &name("web"), &a)?;
                set_repository_digest(tx, "docker.io/library/web", &Digest::of(b"m"), &b)?;
                let find = |text: &str| find(tx, text).map(|(record, _)| record.id);
                assert_eq!(find("web").unwrap(), a);
                assert_eq!(find("web:latest").unwrap(), a);
                assert_eq!(find(&format!("web@{}", Digest::of(b"m"))).unwrap(), b);
                assert_eq!(find(&b.to_string()).unwrap(), b);
                assert_eq!(find(&b.short()).unwrap(), b);
                assert_eq!(find(&a.hex()).unwrap(), a);
                assert_eq!(find("web:2").unwrap_err().to_string(), "No such image: web:2");
                assert_eq!(all(tx)?.iter().map(|record| record.id).collect::<Vec<_>>(), [b, a]);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_name_moves_to_the_newest_image_and_goes_with_it() {
        let (_dir, root) = root();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        root.db()
            .write(|tx| {
                insert(tx, &a, None, 1, "boot")?;
                insert(tx, &b, None, 2, "boot")?;
                set_name(tx, &name("web"), &a)?;
                set_name(tx, &name("web"), &b)?;
                assert!(get(tx, &a)?.unwrap().names.is_empty());
                delete(tx, &b)?;
                assert!(by_name(tx, &name("web"))?.is_none());
                assert!(!remove_name(tx, &name("web"))?);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_manifest_once_known_stays_known() {
        let (_dir, root) = root();
        let (id, manifest) = (Digest::of(b"a"), Digest::of(b"m"));
        root.db()
            .write(|tx| {
                insert(tx, &id, Some(&manifest), 1, "boot")?;
                insert(tx, &id, None, 2, "boot")?;
                assert_eq!(get(tx, &id)?.unwrap().manifest, Some(manifest));
                Ok(())
            })
            .unwrap();
    }
}
