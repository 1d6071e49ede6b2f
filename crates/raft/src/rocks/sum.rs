//! A sum over all rows of a database, kept in it and changed with every batch. A database whose list of files has lost
//! its end opens without a complaint, with some rows as they were and others newer; the sum does not fit then.
//!
//! The sum of the rows' hashes (SHA-256, cut to 64 bits), so that it does not depend on their order. It finds accidents
//! and not forgers.

use std::collections::BTreeMap;
use std::io;

use keyward_state::{Batch, Change, Table};
use ring::digest::{Context, SHA256};
use rocksdb::{DB, IteratorMode};

use super::{family, other};

/// Key of the sum, in the database's own table.
pub(super) const KEY: &[u8] = b"sum";

/// One row's part.
pub(super) fn of_row(table: Table, key: &[u8], value: &[u8]) -> u64 {
    let mut context = Context::new(&SHA256);
    for part in [table.name().as_bytes(), key] {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    context.update(value);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&context.finish().as_ref()[..8]);
    u64::from_le_bytes(bytes)
}

/// The sum once `batch` is written, from what it is now.
pub(super) fn after(db: &DB, now: u64, batch: &Batch) -> io::Result<u64> {
    let mut sum = now;
    // What the batch itself has changed so far.
    let mut changed: BTreeMap<(Table, Vec<u8>), Option<u64>> = BTreeMap::new();
    let mut replace = |sum: &mut u64, table: Table, key: &[u8], new: Option<u64>| {
        let old = match changed.get(&(table, key.to_vec())) {
            Some(known) => *known,
            None => {
                let value = db.get_pinned_cf(family(db, table)?, key).map_err(other)?;
                value.map(|value| of_row(table, key, &value))
            }
        };
        *sum = sum.wrapping_sub(old.unwrap_or(0)).wrapping_add(new.unwrap_or(0));
        changed.insert((table, key.to_vec()), new);
        io::Result::Ok(())
    };
    for change in &batch.changes {
        match change {
            Change::Put(table, key, value) => {
                replace(&mut sum, *table, key, Some(of_row(*table, key, value)))?;
            }
            Change::Delete(table, key) => replace(&mut sum, *table, key, None)?,
            Change::DeleteRange(table, from, to) => {
                let mode = IteratorMode::From(from, rocksdb::Direction::Forward);
                for row in db.iterator_cf(family(db, *table)?, mode) {
                    let (key, _) = row.map_err(other)?;
                    if key.as_ref() >= to.as_slice() {
                        break;
                    }
                    replace(&mut sum, *table, &key, None)?;
                }
                // Rows that the batch itself had put into the range before.
                let put = batch.changes.iter().filter_map(|change| match change {
                    Change::Put(at, key, _) if at == table && key >= from && key < to => Some(key),
                    _ => None,
                });
                for key in put {
                    replace(&mut sum, *table, key, None)?;
                }
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use keyward_state::{MemStore, Store};
    use proptest::prelude::*;

    use crate::rocks::{RocksStore, open_db};

    use super::*;

    const TABLES: [Table; 2] = Table::LOG;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        (0_u8..6).prop_map(|key| vec![key])
    }

    fn change() -> impl Strategy<Value = Change> {
        let table = || proptest::sample::select(TABLES.to_vec());
        prop_oneof![
            4 => (table(), key(), any::<u16>())
                .prop_map(|(table, key, value)| Change::Put(table, key, value.to_le_bytes().to_vec())),
            2 => (table(), key()).prop_map(|(table, key)| Change::Delete(table, key)),
            1 => (table(), key(), key()).prop_map(|(table, from, to)| Change::DeleteRange(
                table,
                from.clone().min(to.clone()),
                from.max(to)
            )),
        ]
    }

    fn rows(store: &dyn Store) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        for table in TABLES {
            let visit = &mut |key: &[u8], value: &[u8]| {
                rows.push((table, key.to_vec(), value.to_vec()));
                Ok(())
            };
            store.scan(table, visit).expect("read");
        }
        rows
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Whatever batches do, also to rows of their own, the sum is that of the rows that are there in the end: the
        /// store opens again. The store in memory has the same rows.
        #[test]
        fn the_sum_follows_every_batch(
            batches in proptest::collection::vec(proptest::collection::vec(change(), 1..8), 1..8),
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let memory = MemStore::default();
            let store = RocksStore::open(folder.path(), &Table::LOG).expect("made");
            for changes in batches {
                memory.write(Batch { changes: changes.clone() }, false).expect("written");
                store.write(Batch { changes }, false).expect("written");
            }
            prop_assert_eq!(rows(&store), rows(&memory));
            drop(store);
            let store = RocksStore::open(folder.path(), &Table::LOG).expect("opened again");
            prop_assert_eq!(rows(&store), rows(&memory));
        }
    }

    #[test]
    fn a_row_that_is_missing_older_or_elsewhere_is_found() {
        for harm in ["missing", "older", "elsewhere"] {
            let folder = tempfile::tempdir().expect("a folder");
            let store = RocksStore::open(folder.path(), &Table::LOG).expect("made");
            for value in [b"first", b"other"] {
                let mut batch = Batch::default();
                batch.put(Table::Log, b"key", value.to_vec());
                store.write(batch, true).expect("written");
            }
            drop(store);
            let path = folder.path().join("db-1");
            let (db, _) = open_db(&path, &Table::LOG, false).expect("whole");
            let table = family(&db, Table::Log).expect("a table");
            match harm {
                "older" => db.put_cf(table, b"key", b"first").expect("changed"),
                _ => db.delete_cf(table, b"key").expect("changed"),
            }
            if harm == "elsewhere" {
                let table = family(&db, Table::LogMeta).expect("a table");
                db.put_cf(table, b"key", b"other").expect("changed");
            }
            drop(db);
            let error = RocksStore::open(folder.path(), &Table::LOG).err().expect("refused");
            assert!(error.to_string().contains("rows are missing or older"), "{harm}: {error}");
        }
    }
}
