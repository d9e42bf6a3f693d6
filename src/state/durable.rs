//! Records that a power cut may lose.
//!
//! Nothing on the hot path waits for a disk. A record of an object (a blob, a snapshot, a build step) carries the id of the
//! boot it was made under in its column `boot`, until a later `syncfs` has made the object safe and [`mark_durable`] sets
//! the column to NULL. After a boot under another id, [`drop_lost`] deletes what is still marked: its files may be missing
//! or empty. A crash of the program alone loses nothing, because the kernel keeps what was written.

use rusqlite::Connection;

use super::Root;
use crate::error::{Result, ResultExt as _};

/// Returns the id of this boot.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> Result<String> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(FILE).context(|| format!("read {FILE}"))?.trim().to_owned())
}

/// Deletes the records of `table` that an earlier boot left unfinished; returns how many.
///
/// `table` has a nullable text column `boot`.
///
/// # Errors
/// When the database fails.
pub fn drop_lost(connection: &Connection, table: &str, boot_id: &str) -> Result<usize> {
    let sql = format!("DELETE FROM {table} WHERE boot IS NOT NULL AND boot <> ?1");
    Ok(connection.prepare_cached(&sql)?.execute([boot_id])?)
}

/// Deletes the records of `tables` that an earlier boot left unfinished. Cheap when there are none. Blocking.
///
/// # Errors
/// When the database fails.
pub fn recover(root: &Root, tables: &[&str]) -> Result<()> {
    let any = |table: &&str| -> Result<bool> {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE boot IS NOT NULL AND boot <> ?1)");
        root.db().read(|c| Ok(c.prepare_cached(&sql)?.query_row([root.boot_id()], |row| row.get(0))?))
    };
    let lost: Vec<bool> = tables.iter().map(any).collect::<Result<_>>()?;
    if !lost.contains(&true) {
        return Ok(());
    }
    root.db().write(|tx| tables.iter().try_for_each(|table| drop_lost(tx, table, root.boot_id()).map(drop)))
}

/// Writes the root's file system to disk and marks all records of `tables` made before as durable. Blocking, and slow when
/// much was written.
///
/// # Errors
/// When the disk or the database fails; the records stay marked.
pub fn mark_durable(root: &Root, tables: &[&str]) -> Result<()> {
    let last: Vec<i64> = root.db().read(|connection| {
        let max = |table: &&str| {
            let sql = format!("SELECT coalesce(max(rowid), 0) FROM {table} WHERE boot IS NOT NULL");
            Ok(connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)
        };
        tables.iter().map(max).collect()
    })?;
    if last.iter().all(|row| *row == 0) {
        return Ok(());
    }
    rustix::fs::syncfs(root.dir()).context(|| "write the store to disk")?;
    root.db().write(|transaction| {
        for (table, row) in tables.iter().zip(&last) {
            let sql = format!("UPDATE {table} SET boot = NULL WHERE boot IS NOT NULL AND rowid <= ?1");
            transaction.prepare_cached(&sql)?.execute([row])?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Schema;

    #[test]
    fn only_records_of_another_boot_that_were_never_synced_are_lost() {
        let dir = tempfile::tempdir().unwrap();
        let schema = Schema { module: "t", scripts: &["CREATE TABLE t (id INTEGER PRIMARY KEY, boot TEXT)"] };
        let root = Root::open(dir.path(), &[schema]).unwrap();
        let insert = |boot: &str| root.db().write(|tx| Ok(tx.execute("INSERT INTO t (boot) VALUES (?1)", [boot])?));
        let count =
            || -> i64 { root.db().read(|c| Ok(c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)).unwrap() };
        insert("an earlier boot").unwrap();
        mark_durable(&root, &["t"]).unwrap();
        insert("an earlier boot").unwrap();
        insert(root.boot_id()).unwrap();
        assert_eq!(root.db().write(|tx| drop_lost(tx, "t", root.boot_id())).unwrap(), 1);
        assert_eq!(count(), 2);
    }
}
