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
