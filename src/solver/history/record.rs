//! The rows of the history.

use std::collections::BTreeMap;

use kiln_graph::Digest;
use rusqlite::{Connection, OptionalExtension as _};

use super::{Attached, Content, Counts, Failed, NewBuild, Outcome, Record};
use crate::error::Result;
use crate::solver::request::Exporter;
use crate::state::Schema;

/// The tables of the history.
pub const SCHEMA: Schema = Schema {
    module: "history",
    scripts: &[
        "CREATE TABLE builds (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        ref TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        frontend TEXT NOT NULL,
        attrs TEXT NOT NULL,
        exporters TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        completed_ns INTEGER,
        code INTEGER,
        message TEXT,
        status TEXT,
        response TEXT NOT NULL DEFAULT '{}',
        cached INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL DEFAULT 0,
        completed INTEGER NOT NULL DEFAULT 0,
        warnings INTEGER NOT NULL DEFAULT 0,
        pinned INTEGER NOT NULL DEFAULT 0,
        generation INTEGER NOT NULL DEFAULT 0,
        log TEXT,
        log_bytes INTEGER
    );
    CREATE INDEX builds_by_log ON builds (log);
    -- Documents about results; the statuses of failed builds and traces, which have no predicate type.
    CREATE TABLE build_documents (
        build INTEGER NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        predicate_type TEXT NOT NULL,
        platform TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (build, digest, platform)
    ) WITHOUT ROWID;
    CREATE INDEX build_documents_by_digest ON build_documents (digest);",
        "ALTER TABLE builds ADD COLUMN trace TEXT;",
    ],
};

const COLUMNS: &str =
    "id, ref, name, frontend, attrs, exporters, created_ns, completed_ns, code, message, status, response,
    cached, total, completed, warnings, pinned, generation, log, log_bytes, trace";

/// Inserts the record of a build that begins; returns its row.
pub(super) fn insert(tx: &Connection, build: &NewBuild, now_ns: i64) -> Result<i64> {
    let exporters: Vec<(&str, &BTreeMap<String, String>)> =
        build.exporters.iter().map(|exporter| (exporter.kind.as_str(), &exporter.attrs)).collect();
    let sql = "INSERT INTO builds (ref, name, frontend, attrs, exporters, created_ns) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    tx.prepare_cached(sql)?.execute((
        &build.reference,
        &build.name,
        &build.frontend,
        serde_json::to_string(&build.attrs)?,
        serde_json::to_string(&exporters)?,
        now_ns,
    ))?;
    Ok(tx.last_insert_rowid())
}

/// Writes down how a build ended, unless that was done. Without counts, those that are there stay.
pub(super) fn complete(
    tx: &Connection,
    row: i64,
    now_ns: i64,
    outcome: &Outcome,
    counts: Option<Counts>,
    log: Option<&Content>,
) -> Result<()> {
    let failed = outcome.failed.as_ref();
    let status = failed.filter(|failed| !failed.status.is_empty());
    let sql = "UPDATE builds SET completed_ns = ?2, code = ?3, message = ?4, status = ?5, response = ?6, log = ?7,
        log_bytes = ?8, generation = generation + 1 WHERE id = ?1 AND completed_ns IS NULL";
    let changed = tx.prepare_cached(sql)?.execute((
        row,
        now_ns,
        failed.map(|failed| failed.code),
        failed.map(|failed| &failed.message),
        status.map(|failed| Digest::of(&failed.status).to_string()),
        serde_json::to_string(&outcome.response)?,
        log.map(|log| log.digest.to_string()),
        log.map(|log| log.size),
    ))?;
    if changed == 0 {
        return Ok(());
    }
    if let Some(Counts { cached, total, completed, warnings }) = counts {
        let sql = "UPDATE builds SET cached = ?2, total = ?3, completed = ?4, warnings = ?5 WHERE id = ?1";
        tx.prepare_cached(sql)?.execute((row, cached, total, completed, warnings))?;
    }
    let sql = "INSERT OR IGNORE INTO build_documents VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut insert = tx.prepare_cached(sql)?;
    for document in &outcome.documents {
        let digest = Digest::of(&document.data).to_string();
        insert.execute((row, digest, &document.predicate_type, &document.platform, document.data.as_ref()))?;
    }
    if let Some(failed) = status {
        insert.execute((row, Digest::of(&failed.status).to_string(), "", "", &failed.status))?;
    }
    Ok(())
}

/// Returns all records, or that of one build, the oldest first.
pub(super) fn all(connection: &Connection, reference: Option<&str>) -> Result<Vec<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM builds WHERE ?1 IS NULL OR ref = ?1 ORDER BY created_ns, id");
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map([reference], |row| {
        Ok(Row {
            record: Record {
                row: row.get(0)?,
                build: NewBuild {
                    reference: row.get(1)?,
                    name: row.get(2)?,
                    frontend: row.get(3)?,
                    attrs: BTreeMap::new(),
                    exporters: Vec::new(),
                },
                created_ns: row.get(6)?,
                completed_ns: row.get(7)?,
                failed: match row.get::<_, Option<i32>>(8)? {
                    Some(code) => {
                        let message: Option<String> = row.get(9)?;
                        Some(Failed { code, message: message.unwrap_or_default(), status: Vec::new() })
                    }
                    None => None,
                },
                response: BTreeMap::new(),
                counts: Counts {
                    cached: row.get(12)?,
                    total: row.get(13)?,
                    completed: row.get(14)?,
                    warnings: row.get(15)?,
                },
                pinned: row.get(16)?,
                generation: row.get(17)?,
                log: None,
                attached: Vec::new(),
                status: None,
                trace: None,
            },
            attrs: row.get(4)?,
            exporters: row.get(5)?,
            response: row.get(11)?,
            log: row.get(18)?,
            log_bytes: row.get(19)?,
            trace: row.get(20)?,
        })
    })?;
    let rows = rows.collect::<rusqlite::Result<Vec<Row>>>()?;
    rows.into_iter().map(|row| row.read(connection)).collect()
}

/// A row whose texts are not read yet.
struct Row {
    record: Record,
    attrs: String,
    exporters: String,
    response: String,
    log: Option<String>,
    log_bytes: Option<u64>,
    trace: Option<String>,
}

impl Row {
    fn read(self, connection: &Connection) -> Result<Record> {
        let Self { mut record, attrs, exporters, response, log, log_bytes, trace } = self;
        record.build.attrs = serde_json::from_str(&attrs)?;
        let exporters: Vec<(String, BTreeMap<String, String>)> = serde_json::from_str(&exporters)?;
        record.build.exporters = exporters.into_iter().map(|(kind, attrs)| Exporter { kind, attrs }).collect();
        record.response = serde_json::from_str(&response)?;
        if let (Some(digest), Some(size)) = (log, log_bytes) {
            record.log = Some(Content { digest: digest.parse()?, size });
        }
        let sql = "SELECT digest, predicate_type, platform, length(data) FROM build_documents WHERE build = ?1
            ORDER BY platform, digest";
        let mut select = connection.prepare_cached(sql)?;
        let documents = select.query_map([record.row], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, u64>(3)?))
        })?;
        for document in documents {
            let (digest, predicate_type, platform, size) = document?;
            let content = Content { digest: digest.parse()?, size };
            match predicate_type.is_empty() {
                true if trace.as_ref() == Some(&digest) => record.trace = Some(content),
                true => record.status = Some(content),
                false => record.attached.push(Attached { content, predicate_type, platform }),
            }
        }
        if let (Some(failed), Some(status)) = (&mut record.failed, &record.status) {
            failed.status = document(connection, &status.digest)?.unwrap_or_default();
        }
        Ok(record)
    }
}

/// Finds a document.
pub(super) fn document(connection: &Connection, digest: &Digest) -> Result<Option<Vec<u8>>> {
    let sql = "SELECT data FROM build_documents WHERE digest = ?1 LIMIT 1";
    Ok(connection.prepare_cached(sql)?.query_row([digest.to_string()], |row| row.get(0)).optional()?)
}

/// Finds the build whose log this is, and the log's size.
pub(super) fn row_of_log(connection: &Connection, digest: &Digest) -> Result<Option<(i64, u64)>> {
    let sql = "SELECT id, log_bytes FROM builds WHERE log = ?1 LIMIT 1";
    let found = connection.prepare_cached(sql)?.query_row([digest.to_string()], |row| Ok((row.get(0)?, row.get(1)?)));
    Ok(found.optional()?)
}

/// Says whether there is a record of this row.
pub(super) fn exists(connection: &Connection, row: i64) -> Result<bool> {
    Ok(connection.prepare_cached("SELECT 1 FROM builds WHERE id = ?1")?.exists([row])?)
}

/// Adds the trace of a build to its record, if that is there.
pub(super) fn attach_trace(tx: &Connection, reference: &str, trace: &[u8]) -> Result<()> {
    let digest = Digest::of(trace).to_string();
    let sql = "INSERT OR IGNORE INTO build_documents SELECT id, ?2, '', '', ?3 FROM builds WHERE ref = ?1";
    tx.prepare_cached(sql)?.execute((reference, &digest, trace))?;
    let sql = "UPDATE builds SET trace = ?2, generation = generation + 1 WHERE ref = ?1";
    tx.prepare_cached(sql)?.execute((reference, digest))?;
    Ok(())
}

/// Pins a record; says whether there is one.
pub(super) fn pin(tx: &Connection, reference: &str, pinned: bool) -> Result<bool> {
    let sql = "UPDATE builds SET pinned = ?2, generation = generation + 1 WHERE ref = ?1";
    Ok(tx.prepare_cached(sql)?.execute((reference, pinned))? > 0)
}

/// Removes a record.
pub(super) fn remove(tx: &Connection, row: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM builds WHERE id = ?1")?.execute([row])?;
    Ok(())
}

/// Removes ended builds that are not pinned, older than this, and not among the newest `max_entries`; returns their rows.
pub(super) fn remove_old(tx: &Connection, oldest_ns: i64, max_entries: u64) -> Result<Vec<i64>> {
    let sql = "DELETE FROM builds WHERE completed_ns IS NOT NULL AND NOT pinned AND created_ns < ?1
        AND id NOT IN (SELECT id FROM builds ORDER BY created_ns DESC, id DESC LIMIT ?2) RETURNING id";
    let max_entries = i64::try_from(max_entries).unwrap_or(i64::MAX);
    let mut delete = tx.prepare_cached(sql)?;
    Ok(delete.query_map((oldest_ns, max_entries), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}
