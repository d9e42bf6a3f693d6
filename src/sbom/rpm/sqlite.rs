//! rpm's database in SQLite, which newer distributions use.

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::MAX_HEADERS;
use crate::error::{Error, Result};

/// Returns the header blobs of a database.
///
/// The file is opened in memory, where nothing can be written beside it. A log that was not merged into it is not read.
///
/// # Errors
/// `InvalidArgument` when it is damaged.
pub(super) fn headers(mut bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    // Databases in memory have no write-ahead log; the file's format is the same without.
    for mode in bytes.get_mut(18..20).into_iter().flatten() {
        *mode = 1;
    }
    read(&bytes).map_err(|error| Error::invalid(format!("the SQLite database is damaged: {error}")))
}

fn read(bytes: &[u8]) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut connection = Connection::open_in_memory()?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.deserialize_read_exact("main", bytes, bytes.len(), true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    let mut statement = connection.prepare("SELECT blob FROM Packages ORDER BY hnum LIMIT ?1")?;
    let rows = statement.query_map([i64::try_from(MAX_HEADERS).unwrap_or(i64::MAX)], |row| row.get(0))?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_read_from_a_database_that_had_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpmdb.sqlite");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)").unwrap();
        connection.execute("INSERT INTO Packages (blob) VALUES (x'0102')", []).unwrap();
        connection.close().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[18], 2, "it is in the mode with a log");
        assert_eq!(headers(bytes.clone()).unwrap(), [[1, 2]]);
        assert!(headers(bytes[..200].to_vec()).is_err());
    }
}
