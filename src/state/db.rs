//! The SQLite database: connections, transactions and schema upgrades.
//!
//! `synchronous=NORMAL` in WAL mode, and a log that outlives the processes that write it: a commit waits for no disk, except
//! once in a thousand pages, when the log is copied into the database. After a power cut the last transactions may be missing,
//! but the database is whole; [`super::durable`] deals with records that outlived what they describe.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::lock::{FileLock, LockMode};
use crate::error::{Error, Result, ResultExt as _};

/// The tables of one module: a list of SQL scripts, each run once, in order. Scripts are only ever appended.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// The module's name.
    pub module: &'static str,
    /// The scripts.
    pub scripts: &'static [&'static str],
}

/// How much of the database a connection keeps in memory at most: more than SQLite's 2 MiB, which the records of a build of
/// 10,000 steps do not fit in.
const CACHE_KIB: i64 = 8 << 10;

/// How long a transaction waits for another process's.
const BUSY: Duration = Duration::from_secs(60);

/// A database and its idle connections. Each connection serves one operation at a time.
#[derive(Debug)]
pub struct Db {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Db {
    /// Opens the database and runs the scripts it has not seen. Blocking.
    ///
    /// # Errors
    /// When the file cannot be opened or is no database, or a newer Kiln has added scripts this one does not know.
    pub fn open(path: &Path, schemas: &[Schema]) -> Result<Self> {
        // SQLite does not wait when two connections make a database a WAL one at the same time: the second fails at once.
        let turn = FileLock::acquire(&path.with_extension("db-open"), LockMode::Exclusive)?;
        let mut connection = connect(path)?;
        drop(turn);
        upgrade(&mut connection, schemas).context(|| format!("open {}", path.display()))?;
        Ok(Self { path: path.to_owned(), idle: Mutex::new(vec![connection]) })
    }

    /// Runs an operation that only reads; several statements may see different states. Blocking.
    ///
    /// # Errors
    /// Those of `operation`.
    pub fn read<T>(&self, operation: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let connection = self.take()?;
        let result = operation(&connection);
        self.put(connection);
        result
    }

    /// Runs an operation in a write transaction: it alone writes, and its changes appear together or, on error, not at all.
    /// Blocking; waits for other processes' transactions.
    ///
    /// # Errors
    /// Those of `operation`; `Timeout` when another process holds the database for a minute.
    pub fn write<T>(&self, operation: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut connection = self.take()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = operation(&transaction)?;
        transaction.commit()?;
        self.put(connection);
        Ok(value)
    }

    /// Waits until everything written so far is on the disk. Blocking, and slow: for what must not be forgotten before something
    /// irrevocable is done.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<()> {
        // What was copied out of the log into the database has been synced by SQLite itself.
        let log = self.path.with_extension("db-wal");
        match std::fs::File::open(&log) {
            Ok(log) => Ok(log.sync_data()?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context(|| format!("open {}", log.display())),
        }
    }

    fn take(&self) -> Result<Connection> {
        let idle = self.idle.lock().expect("no panic happens while the lock is held").pop();
        idle.map_or_else(|| connect(&self.path), Ok)
    }

    fn put(&self, connection: Connection) {
        self.idle.lock().expect("no panic happens while the lock is held").push(connection);
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags).context(|| format!("open {}", path.display()))?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Else each process that closes last waits for the disk (a checkpoint), and so does the next that writes (a new log).
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Setting the mode again on a database that has it costs one read.
    connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY;")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

/// Runs missing scripts. `user_version` counts all scripts ever run, so that the usual case reads one number.
fn upgrade(connection: &mut Connection, schemas: &[Schema]) -> Result<()> {
    let wanted: usize = schemas.iter().map(|schema| schema.scripts.len()).sum();
    let version =
        |connection: &Connection| connection.query_row("PRAGMA user_version", [], |row| row.get::<_, usize>(0));
    if wanted != 0 && version(connection)? == wanted {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction
        .execute_batch("CREATE TABLE IF NOT EXISTS schema (module TEXT PRIMARY KEY, scripts INTEGER NOT NULL)")?;
    for schema in schemas {
        let done = transaction
            .prepare_cached("SELECT scripts FROM schema WHERE module = ?1")?
            .query_row([schema.module], |row| row.get::<_, usize>(0));
        let done = match done {
            Err(rusqlite::Error::QueryReturnedNoRows) => 0,
            other => other?,
        };
        let missing = schema.scripts.get(done..).ok_or_else(|| {
            Error::unsupported(format!("the tables of `{}` were made by a newer version of Kiln", schema.module))
        })?;
        for script in missing {
            transaction.execute_batch(script).context(|| format!("upgrade the tables of `{}`", schema.module))?;
        }
        transaction
            .prepare_cached("INSERT INTO schema VALUES (?1, ?2) ON CONFLICT (module) DO UPDATE SET scripts = ?2")?
            .execute((schema.module, schema.scripts.len()))?;
    }
    let total: usize = transaction.query_row("SELECT coalesce(sum(scripts), 0) FROM schema", [], |row| row.get(0))?;
    transaction.pragma_update(None, "user_version", total)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Schema = Schema { module: "a", scripts: &["CREATE TABLE a (n INTEGER)"] };
    const TWO: Schema = Schema { module: "a", scripts: &["CREATE TABLE a (n INTEGER)", "ALTER TABLE a ADD m INTEGER"] };

    fn open(dir: &tempfile::TempDir, schema: Schema) -> Result<Db> {
        Db::open(&dir.path().join("kiln.db"), &[schema])
    }

    #[test]
    fn an_upgrade_runs_only_the_missing_scripts() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir, ONE).unwrap());
        let db = open(&dir, TWO).unwrap();
        db.write(|tx| Ok(tx.execute("INSERT INTO a VALUES (1, 2)", [])?)).unwrap();
        drop(open(&dir, TWO).unwrap());
        let error = open(&dir, ONE).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Unsupported);
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir, ONE).unwrap();
        let result = db.write(|tx| {
            tx.execute("INSERT INTO a VALUES (1)", [])?;
            Err::<(), _>(Error::invalid("stop"))
        });
        assert!(result.is_err());
        let rows: usize = db.read(|c| Ok(c.query_row("SELECT count(*) FROM a", [], |row| row.get(0))?)).unwrap();
        assert_eq!(rows, 0);
    }

    #[test]
    fn a_process_that_closes_last_leaves_the_log_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir, ONE).unwrap();
        db.write(|tx| Ok(tx.execute("INSERT INTO a VALUES (1)", [])?)).unwrap();
        drop(db);
        assert!(std::fs::metadata(dir.path().join("kiln.db-wal")).unwrap().len() > 0);
        let db = open(&dir, ONE).unwrap();
        let rows: usize = db.read(|c| Ok(c.query_row("SELECT count(*) FROM a", [], |row| row.get(0))?)).unwrap();
        assert_eq!(rows, 1);
    }

    #[test]
    fn writers_of_several_handles_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let handles: Vec<_> = (0..4).map(|_| open(&dir, ONE).unwrap()).collect();
        std::thread::scope(|scope| {
            for db in &handles {
                scope.spawn(|| {
                    for n in 0..50 {
                        db.write(|tx| Ok(tx.execute("INSERT INTO a VALUES (?1)", [n])?)).unwrap();
                    }
                });
            }
        });
        let rows: usize = handles[0].read(|c| Ok(c.query_row("SELECT count(*) FROM a", [], |r| r.get(0))?)).unwrap();
        assert_eq!(rows, 200);
    }
}
