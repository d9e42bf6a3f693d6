//! What is remembered of files fetched by HTTP, so that an unchanged one is not fetched again.

use kiln_graph::Digest;
use rusqlite::{Connection, OptionalExtension as _};

use crate::error::Result;
use crate::registry::FileHead;

/// The table; an address is kept as its hash, for it may hold what is nobody else's business.
pub(in crate::solver) const TABLES: &str = "CREATE TABLE http_files (
        address BLOB PRIMARY KEY,
        etag TEXT,
        modified TEXT,
        name TEXT,
        size INTEGER,
        digest TEXT NOT NULL,
        fetched_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX http_files_by_age ON http_files (fetched_ns);";

/// How many files are remembered.
const MAX_RECORDS: i64 = 10_000;

/// A file that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) head: FileHead,
    pub(super) digest: Digest,
}

fn hashed(address: &str) -> [u8; 32] {
    *blake3::hash(address.as_bytes()).as_bytes()
}

/// Finds what was fetched from an address last.
pub(super) fn find(connection: &Connection, address: &str) -> Result<Option<Fetched>> {
    let sql = "SELECT etag, modified, name, size, digest FROM http_files WHERE address = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        let digest: String = row.get(4)?;
        let head = FileHead {
            unchanged: false,
            etag: row.get(0)?,
            modified: row.get(1)?,
            name: row.get(2)?,
            size: row.get(3)?,
        };
        Ok((head, digest))
    };
    let found = connection.prepare_cached(sql)?.query_row([hashed(address)], read).optional()?;
    Ok(found.and_then(|(head, digest)| Some(Fetched { head, digest: digest.parse().ok()? })))
}

/// Remembers what was fetched from an address.
pub(super) fn record(tx: &Connection, address: &str, fetched: &Fetched, now_ns: i64) -> Result<()> {
    let Fetched { head, digest } = fetched;
    let sql = "INSERT OR REPLACE INTO http_files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    tx.prepare_cached(sql)?.execute((
        hashed(address),
        &head.etag,
        &head.modified,
        &head.name,
        head.size,
        digest.to_string(),
        now_ns,
    ))?;
    let sql = "DELETE FROM http_files WHERE address IN
               (SELECT address FROM http_files ORDER BY fetched_ns DESC LIMIT -1 OFFSET ?1)";
    tx.prepare_cached(sql)?.execute([MAX_RECORDS])?;
    Ok(())
}
