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
