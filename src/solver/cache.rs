//! The build cache: which step gave which snapshot.
//!
//! A record names a snapshot of the store; the collector of the store keeps what a record names. Records are small and kept
//! for explanations as well: the parts of the key stand beside it.

use kiln_graph::Digest;
use kiln_graph::op::Part;
use rusqlite::{Connection, OptionalExtension as _};

use super::copy::Listing;
use super::key::Key;
use crate::error::Result;
use crate::state::Schema;
use crate::store::{ActiveId, Roots, SnapshotId};

/// The tables of the build cache.
pub const SCHEMA: Schema = Schema {
    module: "solver",
    scripts: &[
        "CREATE TABLE steps (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key BLOB NOT NULL UNIQUE,
        op BLOB NOT NULL,
        snapshot INTEGER NOT NULL,
        chain TEXT NOT NULL,
        name TEXT NOT NULL,
        parts TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        used_ns INTEGER NOT NULL,
        uses INTEGER NOT NULL DEFAULT 0,
        boot TEXT
    );
    CREATE INDEX steps_by_op ON steps (op, id);
    CREATE INDEX steps_by_snapshot ON steps (snapshot);
    CREATE INDEX steps_not_durable ON steps (boot) WHERE boot IS NOT NULL;
    CREATE TABLE contents (
        chain TEXT NOT NULL,
        selector TEXT NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (chain, selector)
    ) WITHOUT ROWID;
    -- What the last run of a copy took, path by path; snapshot holds it.
    CREATE TABLE listings (
        op BLOB PRIMARY KEY,
        snapshot INTEGER NOT NULL,
        entries BLOB NOT NULL
    ) WITHOUT ROWID;
    -- Directories of cache mounts. number tells those of one name apart that are used at the same time.
    CREATE TABLE cache_mounts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        active INTEGER NOT NULL,
        created_ns INTEGER NOT NULL,
        used_ns INTEGER NOT NULL,
        uses INTEGER NOT NULL DEFAULT 0,
        UNIQUE (name, number)
    );",
        super::remote::TABLES,
        USES,
    ],
};

/// When a record was needed, apart from the record: a build that finds ten thousand steps says so of each, and would else write
/// all pages of their records anew.
const USES: &str = "CREATE TABLE step_uses (
        step INTEGER PRIMARY KEY REFERENCES steps (id) ON DELETE CASCADE,
        used_ns INTEGER NOT NULL,
        uses INTEGER NOT NULL DEFAULT 0
    );
    INSERT INTO step_uses SELECT id, used_ns, uses FROM steps;
    ALTER TABLE steps DROP COLUMN used_ns;
    ALTER TABLE steps DROP COLUMN uses;";

/// A step's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Names the record.
    pub id: i64,
    /// The snapshot with the result.
    pub snapshot: SnapshotId,
    /// The chain ID of the result.
    pub chain: Digest,
    /// What progress showed.
    pub name: String,
    /// When it ran, in nanoseconds since 1970.
    pub created_ns: i64,
    /// When it was last needed.
    pub used_ns: i64,
    /// How often it was found.
    pub uses: u64,
}

/// What is recorded of a step that ran.
#[derive(Clone, Debug)]
pub struct NewStep<'a> {
    /// Identifies the result.
    pub key: Key,
    /// Identifies the operation without its inputs.
    pub op: Key,
    /// The snapshot with the result.
    pub snapshot: SnapshotId,
    /// The chain ID of the result.
    pub chain: Digest,
    /// What progress showed.
    pub name: &'a str,
    /// The parts of the key, as [`super::key::Parts::stored`] makes them.
    pub parts: &'a [Part],
    /// When it ran, in nanoseconds since 1970.
    pub now_ns: i64,
    /// The id of this boot; see [`crate::state::drop_lost`].
    pub boot: &'a str,
}

fn chain(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    let malformed =
        |error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error));
    row.get_ref(column)?.as_str()?.parse().map_err(malformed)
}

fn step(row: &rusqlite::Row<'_>) -> rusqlite::Result<Step> {
    Ok(Step {
        id: row.get(0)?,
        snapshot: row.get(1)?,
        chain: chain(row, 2)?,
        name: row.get(3)?,
        created_ns: row.get(4)?,
        used_ns: row.get(5)?,
        uses: row.get(6)?,
    })
}

/// The result of a step that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Names the record.
    pub id: i64,
    /// The snapshot with the result.
    pub snapshot: SnapshotId,
    /// The chain ID of the result.
    pub chain: Digest,
}

/// Finds the result of a step. Planning asks this for each step, so it reads no more than is needed.
///
/// # Errors
/// When the database fails.
pub fn find(connection: &Connection, key: &Key) -> Result<Option<Hit>> {
    let mut statement = connection.prepare_cached("SELECT id, snapshot, chain FROM steps WHERE key = ?1")?;
    let hit = |row: &rusqlite::Row<'_>| Ok(Hit { id: row.get(0)?, snapshot: row.get(1)?, chain: chain(row, 2)? });
    Ok(statement.query_row([key.as_bytes()], hit).optional()?)
}

/// Notes that records were needed, so that pruning spares them.
///
/// # Errors
/// When the database fails.
pub fn touch(tx: &Connection, ids: &[i64], now_ns: i64) -> Result<()> {
    let sql = "UPDATE step_uses SET used_ns = ?3, uses = uses + 1 WHERE step BETWEEN ?1 AND ?2";
    let mut statement = tx.prepare_cached(sql)?;
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    // The steps of a build were mostly recorded one after the other.
    for run in ids.chunk_by(|one, next| one + 1 == *next) {
        statement.execute((run.first(), run.last(), now_ns))?;
    }
    Ok(())
}

/// Says whether this operation ever ran, on whatever inputs.
///
/// # Errors
/// When the database fails.
pub fn knows(connection: &Connection, op: &Key) -> Result<bool> {
    Ok(connection.prepare_cached("SELECT 1 FROM steps WHERE op = ?1 LIMIT 1")?.exists([op.as_bytes()])?)
}

/// Returns the parts of the last run of this operation.
///
/// # Errors
/// When the database fails or the record is malformed.
pub fn last_parts(connection: &Connection, op: &Key) -> Result<Option<Vec<Part>>> {
    let sql = "SELECT parts FROM steps WHERE op = ?1 ORDER BY id DESC LIMIT 1";
    let text: Option<String> =
        connection.prepare_cached(sql)?.query_row([op.as_bytes()], |row| row.get(0)).optional()?;
    let Some(text) = text else { return Ok(None) };
    let pairs: Vec<(String, String)> = serde_json::from_str(&text)?;
    Ok(Some(pairs.into_iter().map(|(name, value)| Part { name, value }).collect()))
}

/// Records the result of a step; a result of the same key is replaced.
///
/// # Errors
/// When the database fails.
pub fn record(tx: &Connection, new: &NewStep<'_>) -> Result<()> {
    let pairs: Vec<(&str, &str)> = new.parts.iter().map(|part| (part.name.as_str(), part.value.as_str())).collect();
    tx.prepare_cached("DELETE FROM steps WHERE key = ?1")?.execute([new.key.as_bytes()])?;
    let sql = "INSERT INTO steps (key, op, snapshot, chain, name, parts, created_ns, boot)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    tx.prepare_cached(sql)?.execute((
        new.key.as_bytes(),
        new.op.as_bytes(),
        new.snapshot,
        new.chain.to_string(),
        new.name,
        serde_json::to_string(&pairs)?,
        new.now_ns,
        new.boot,
    ))?;
    let sql = "INSERT INTO step_uses (step, used_ns) VALUES (?1, ?2)";
    tx.prepare_cached(sql)?.execute((tx.last_insert_rowid(), new.now_ns))?;
    Ok(())
}

/// Returns all records, the longest unused first.
///
/// # Errors
/// When the database fails.
pub fn all(connection: &Connection) -> Result<Vec<Step>> {
    let sql = "SELECT id, snapshot, chain, name, created_ns, used_ns, uses
               FROM steps JOIN step_uses ON step = id ORDER BY used_ns, id";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map([], step)?.collect::<rusqlite::Result<_>>()?)
}

/// Deletes a record; its snapshot goes with the next collection unless something else needs it.
///
/// # Errors
/// When the database fails.
pub fn forget(tx: &Connection, id: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM steps WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Returns the last result of a copy, with what it took.
///
/// # Errors
/// When the database fails.
pub fn find_listing(connection: &Connection, op: &Key) -> Result<Option<(SnapshotId, Listing)>> {
    let sql = "SELECT snapshot, entries FROM listings WHERE op = ?1";
    let found: Option<(SnapshotId, Vec<u8>)> =
        connection.prepare_cached(sql)?.query_row([op.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(found.and_then(|(snapshot, entries)| Some((snapshot, Listing::decode(&entries)?))))
}

/// Remembers what a copy took, in the place of what was remembered of its earlier run.
///
/// # Errors
/// When the database fails.
pub fn record_listing(tx: &Connection, op: &Key, snapshot: SnapshotId, entries: &[u8]) -> Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO listings VALUES (?1, ?2, ?3)")?.execute((
        op.as_bytes(),
        snapshot,
        entries,
    ))?;
    Ok(())
}

/// A cache mount's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Numbers the record.
    pub id: i64,
    /// The name it is asked for by.
    pub name: String,
    /// Tells those of one name apart; negative for one that a source keeps.
    pub number: i64,
    /// Its directory.
    pub active: ActiveId,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
    /// When it was last used.
    pub used_ns: i64,
    /// How often it was used.
    pub uses: u64,
}

/// Returns the records of all cache mounts, the longest unused first.
///
/// # Errors
/// When the database fails.
pub fn all_mounts(connection: &Connection) -> Result<Vec<Mount>> {
    let sql = "SELECT id, name, active, created_ns, used_ns, uses, number FROM cache_mounts ORDER BY used_ns, id";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Mount {
            id: row.get(0)?,
            name: row.get(1)?,
            active: row.get(2)?,
            created_ns: row.get(3)?,
            used_ns: row.get(4)?,
            uses: row.get(5)?,
            number: row.get(6)?,
        })
    };
    Ok(connection.prepare_cached(sql)?.query_map([], read)?.collect::<rusqlite::Result<_>>()?)
}

/// Finds the directory of a cache mount.
///
/// # Errors
/// When the database fails.
pub fn find_mount(connection: &Connection, name: &str, number: i64) -> Result<Option<ActiveId>> {
    let sql = "SELECT active FROM cache_mounts WHERE name = ?1 AND number = ?2";
    Ok(connection.prepare_cached(sql)?.query_row((name, number), |row| row.get(0)).optional()?)
}

/// Records a cache mount, in the place of one whose directory has gone.
///
/// # Errors
/// When the database fails.
pub fn record_mount(tx: &Connection, name: &str, number: i64, active: ActiveId, now_ns: i64) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO cache_mounts (name, number, active, created_ns, used_ns)
               VALUES (?1, ?2, ?3, ?4, ?4)";
    tx.prepare_cached(sql)?.execute((name, number, active, now_ns))?;
    Ok(())
}

/// Notes that a cache mount was used.
///
/// # Errors
/// When the database fails.
pub fn touch_mount(tx: &Connection, name: &str, number: i64, now_ns: i64) -> Result<()> {
    let sql = "UPDATE cache_mounts SET used_ns = ?3, uses = uses + 1 WHERE name = ?1 AND number = ?2";
    tx.prepare_cached(sql)?.execute((name, number, now_ns))?;
    Ok(())
}

/// Deletes the record of a cache mount; its directory goes with the next collection.
///
/// # Errors
/// When the database fails.
pub fn forget_mount(tx: &Connection, id: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM cache_mounts WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Deletes the records of all cache mounts of a name, so that the next step that asks for one gets a new one.
///
/// # Errors
/// When the database fails.
pub fn forget_mounts_of(tx: &Connection, name: &str) -> Result<()> {
    tx.prepare_cached("DELETE FROM cache_mounts WHERE name = ?1")?.execute([name])?;
    Ok(())
}

/// Adds the snapshots of all steps and the trees of all cache mounts.
///
/// # Errors
/// When the database fails.
pub fn add_roots(connection: &Connection, roots: &mut Roots) -> Result<()> {
    let mut snapshots = connection.prepare_cached("SELECT snapshot FROM steps")?;
    for id in snapshots.query_map([], |row| row.get::<_, SnapshotId>(0))? {
        roots.snapshots.push(id?);
    }
    let mut mounts = connection.prepare_cached("SELECT active FROM cache_mounts")?;
    for id in mounts.query_map([], |row| row.get::<_, ActiveId>(0))? {
        roots.actives.push(id?);
    }
    Ok(())
}

/// Returns each record of the build cache, by its id and name, with what it needs.
///
/// # Errors
/// When the database fails.
pub fn holders(connection: &Connection) -> Result<Vec<(String, Roots)>> {
    let steps = all(connection)?.into_iter().map(|step| {
        let roots = Roots { snapshots: vec![step.snapshot], ..Roots::default() };
        (format!("build cache step{} {}", step.id, step.name), roots)
    });
    let mounts = all_mounts(connection)?.into_iter().map(|mount| {
        let roots = Roots { actives: vec![mount.active], ..Roots::default() };
        (format!("build cache mount{}", mount.id), roots)
    });
    Ok(steps.chain(mounts).collect())
}

/// Finds the content hash of a selection of paths of a file system.
///
/// # Errors
/// When the database fails.
pub fn find_content(connection: &Connection, chain: &Digest, selector: &str) -> Result<Option<[u8; 32]>> {
    let sql = "SELECT hash FROM contents WHERE chain = ?1 AND selector = ?2";
    Ok(connection.prepare_cached(sql)?.query_row((chain.to_string(), selector), |row| row.get(0)).optional()?)
}

/// Remembers the content hash of a selection of paths of a file system.
///
/// # Errors
/// When the database fails.
pub fn record_content(tx: &Connection, chain: &Digest, selector: &str, hash: &[u8; 32]) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO contents VALUES (?1, ?2, ?3)";
    tx.prepare_cached(sql)?.execute((chain.to_string(), selector, hash))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Root;

    fn key(n: u8) -> Key {
        Key::from_bytes([n; 32])
    }

    fn snapshot(root: &Root, number: i64) -> SnapshotId {
        root.db().read(|c| Ok(c.query_row("SELECT ?1", [number], |row| row.get(0))?)).unwrap()
    }

    fn step_of(root: &Root, own: u8, op: u8) -> NewStep<'static> {
        let (snapshot, chain) = (snapshot(root, 7), Digest::of(b"chain"));
        NewStep { key: key(own), op: key(op), snapshot, chain, name: "x", parts: &[], now_ns: 5, boot: "b" }
    }

    #[test]
    fn a_recorded_step_is_found_by_its_key_and_known_by_its_operation() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &[SCHEMA]).unwrap();
        let parts = [Part { name: "command".to_owned(), value: "make".to_owned() }];
        let new = NewStep { name: "RUN make", parts: &parts, ..step_of(&root, 1, 9) };
        root.db().write(|tx| record(tx, &new)).unwrap();
        root.db().write(|tx| record(tx, &NewStep { snapshot: snapshot(&root, 8), ..new.clone() })).unwrap();
        root.db()
            .read(|c| {
                let found = find(c, &key(1))?.unwrap();
                let step = all(c)?.remove(0);
                assert_eq!((found.id, found.snapshot.to_string().as_str()), (step.id, "8"));
                assert_eq!((found.chain, step.name.as_str(), step.uses), (step.chain, "RUN make", 0));
                assert!(find(c, &key(2))?.is_none() && knows(c, &key(9))? && !knows(c, &key(1))?);
                assert_eq!(last_parts(c, &key(9))?.unwrap(), parts);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn what_was_needed_last_is_listed_last() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &[SCHEMA]).unwrap();
        root.db()
            .write(|tx| {
                for n in 1..=3 {
                    record(tx, &step_of(&root, n, n))?;
                }
                touch(tx, &[1], 9)?;
                forget(tx, 2)?;
                let ids: Vec<i64> = all(tx)?.iter().map(|step| step.id).collect();
                assert_eq!(ids, [3, 1]);
                for n in 4..=7 {
                    record(tx, &step_of(&root, n, n))?;
                }
                touch(tx, &[6, 1, 4, 5, 4], 11)?;
                let uses = all(tx)?.iter().map(|step| (step.id, step.used_ns, step.uses)).collect::<Vec<_>>();
                assert_eq!(uses, [(3, 5, 0), (7, 5, 0), (1, 11, 2), (4, 11, 1), (5, 11, 1), (6, 11, 1)]);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn content_hashes_are_remembered_by_chain_and_selector() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &[SCHEMA]).unwrap();
        let chain = Digest::of(b"c");
        root.db().write(|tx| record_content(tx, &chain, "/a", &[1; 32])).unwrap();
        root.db()
            .read(|c| {
                assert_eq!(find_content(c, &chain, "/a")?, Some([1; 32]));
                assert_eq!(find_content(c, &chain, "/b")?, None);
                Ok(())
            })
            .unwrap();
    }
}
