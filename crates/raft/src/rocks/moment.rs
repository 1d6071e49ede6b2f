//! A database as it was at one moment (a snapshot of RocksDB's), and one that a node has left behind.

use std::io;
use std::path::Path;

use keyward_state::{Moment, Table, Visit};
use rocksdb::{DB, IteratorMode, Options, ReadOptions, Snapshot};

use super::{CURRENT, family, other, read_current};

/// A database as it was when it was asked for.
pub(super) struct RocksMoment<'a> {
    db: &'a DB,
    rows: Snapshot<'a>,
}

impl<'a> RocksMoment<'a> {
    pub(super) fn of(db: &'a DB) -> Self {
        Self { db, rows: db.snapshot() }
    }
}

impl Moment for RocksMoment<'_> {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.rows.get_cf(family(self.db, table)?, key).map_err(other)
    }

    fn scan(&self, table: Table, visit: Visit<'_>) -> io::Result<()> {
        let mut once = ReadOptions::default();
        once.fill_cache(false);
        let family = family(self.db, table)?;
        for row in self.rows.iterator_cf_opt(family, once, IteratorMode::Start) {
            let (key, value) = row.map_err(other)?;
            visit(&key, &value)?;
        }
        Ok(())
    }
}

/// Reads a store that no process has open, and changes nothing of it: what a lost node has left behind may be all that
/// there is.
pub(crate) fn read_left_behind(
    folder: &Path,
    tables: &[Table],
    look: &mut dyn FnMut(&dyn Moment) -> io::Result<()>,
) -> io::Result<()> {
    if !folder.join(CURRENT).is_file() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} holds no database", folder.display()),
        ));
    }
    let current = read_current(folder)?;
    let path = folder.join(&current);
    let names = tables.iter().map(|table| table.name());
    let db = DB::open_cf_for_read_only(&Options::default(), &path, names, false)
        .map_err(|e| io::Error::other(format!("database {}: {e}", path.display())))?;
    look(&RocksMoment::of(&db))
}

#[cfg(test)]
mod tests {
    use keyward_state::{Batch, Store};

    use super::*;
    use crate::rocks::RocksStore;

    fn row(store: &dyn Store, key: &str, value: &str) {
        let mut batch = Batch::default();
        batch.put(Table::Tokens, key, value.as_bytes().to_vec());
        store.write(batch, true).unwrap();
    }

    fn rows(moment: &dyn Moment) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        moment
            .scan(Table::Tokens, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                Ok(())
            })
            .unwrap();
        rows
    }

    #[test]
    fn a_moment_does_not_change_while_it_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let store = RocksStore::open(folder.path(), &Table::STATE).unwrap();
        row(&store, "a", "1");
        store
            .at_one_moment(&mut |moment| {
                row(&store, "a", "2");
                row(&store, "b", "3");
                assert_eq!(rows(moment), [(b"a".to_vec(), b"1".to_vec())]);
                assert_eq!(moment.get(Table::Tokens, b"b")?, None);
                Ok(())
            })
            .unwrap();
        let mut later = 0;
        store
            .at_one_moment(&mut |moment| {
                later = rows(moment).len();
                Ok(())
            })
            .unwrap();
        assert_eq!(later, 2);
    }

    #[test]
    fn what_was_left_behind_is_read_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let read = |look: &mut dyn FnMut(&dyn Moment)| {
            read_left_behind(folder.path(), &Table::STATE, &mut |moment| {
                look(moment);
                Ok(())
            })
        };
        let error = read(&mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made");
        let store = RocksStore::open(folder.path(), &Table::STATE).unwrap();
        row(&store, "a", "1");
        drop(store);
        read(&mut |moment| assert_eq!(rows(moment).len(), 1)).unwrap();
        let store = RocksStore::open(folder.path(), &Table::STATE).unwrap();
        assert_eq!(store.get(Table::Tokens, b"a").unwrap(), Some(b"1".to_vec()));
    }
}
