//! A store in memory that forgets as a disk does: what was not synced is lost in a crash.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::codec;
use crate::store::{Batch, Change, Checkpoint, Install, Look, Moment, Store, Table, Visit};

type Rows = BTreeMap<(Table8, Vec<u8>), Vec<u8>>;
type Row = ((Table8, Vec<u8>), Vec<u8>);
type Table8 = u8;

#[derive(Clone, Default)]
struct Disk {
    /// What readers see.
    visible: Rows,
    /// What survives a crash.
    durable: Rows,
    /// Written and not yet synced, in order.
    unsynced: Vec<Batch>,
    /// What was overwritten or deleted, and is still in the files until they are purged.
    leftovers: Vec<(Table8, Vec<u8>)>,
    /// Set by a crash: a task of the old process that is still being dropped must not write.
    cut: bool,
    faults: DiskFaults,
    /// A sync has failed: nothing more is taken before the next start, as RocksDB has it.
    failed: bool,
    syncs: u64,
    installs: u64,
    /// The last checkpoint: hard links to the files as they were.
    checkpoint: Arc<Vec<u8>>,
    /// What is being received of other stores' checkpoints, by number.
    incoming: BTreeMap<u64, Vec<u8>>,
    begun: u64,
}

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// Nothing can be written any more.
    pub full: bool,
    /// Syncs fail. What they should have covered may be lost in a power cut.
    pub failing_syncs: bool,
    /// A row cannot be read: its checksum does not fit. Found by every reader, and when the store is opened.
    pub rotten: bool,
}

/// A store in memory. Clones share the content.
#[derive(Clone, Default)]
pub struct MemStore {
    disk: Arc<Mutex<Disk>>,
}

const fn table_number(table: Table) -> Table8 {
    table as Table8
}

/// Changes the rows. Returns the values that are rows no longer.
fn apply(rows: &mut Rows, batch: &Batch) -> Vec<(Table8, Vec<u8>)> {
    let mut left = Vec::new();
    for change in &batch.changes {
        match change {
            Change::Put(table, key, value) => {
                let table = table_number(*table);
                let old = rows.insert((table, key.clone()), value.clone());
                left.extend(old.map(|old| (table, old)));
            }
            Change::Delete(table, key) => {
                let table = table_number(*table);
                left.extend(rows.remove(&(table, key.clone())).map(|old| (table, old)));
            }
            Change::DeleteRange(table, from, to) => {
                let table = table_number(*table);
                let doomed: Vec<_> = rows
                    .range((table, from.clone())..(table, to.clone()))
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in doomed {
                    left.extend(rows.remove(&key).map(|old| (table, old)));
                }
            }
        }
    }
    left
}

impl MemStore {
    /// The disk after a power cut: everything synced, and the first `kept` of the batches that were
    /// not. The store that crashed refuses every call from now on.
    #[must_use]
    pub fn crash(&self, kept: usize) -> Self {
        let mut disk = self.disk.lock();
        disk.cut = true;
        let mut durable = disk.durable.clone();
        for batch in disk.unsynced.iter().take(kept) {
            apply(&mut durable, batch);
        }
        let next = Disk {
            visible: durable.clone(),
            durable,
            leftovers: disk.leftovers.clone(),
            faults: disk.faults,
            installs: disk.installs,
            ..Disk::default()
        };
        Self { disk: Arc::new(Mutex::new(next)) }
    }

    /// A copy of the disk as it is now, as one makes of a folder's files.
    #[must_use]
    pub fn copied(&self) -> Self {
        let disk = self.disk.lock();
        let copy = Disk {
            durable: disk.visible.clone(),
            unsynced: Vec::new(),
            faults: DiskFaults::default(),
            failed: false,
            // What the next start removes.
            checkpoint: Arc::default(),
            incoming: BTreeMap::new(),
            ..disk.clone()
        };
        Self { disk: Arc::new(Mutex::new(copy)) }
    }

    /// Whether these bytes are in any value that the files hold: of a row, or of one that was overwritten or
    /// deleted and not purged since; or a checkpoint's, or what was received of one.
    #[must_use]
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let disk = self.disk.lock();
        let within = |value: &[u8]| value.windows(bytes.len()).any(|window| window == bytes);
        disk.visible.values().chain(disk.durable.values()).any(|value| within(value))
            || disk.leftovers.iter().any(|(_, value)| within(value))
            || within(&disk.checkpoint)
            || disk.incoming.values().any(|received| within(received))
            || disk.unsynced.iter().flat_map(|batch| &batch.changes).any(|change| match change {
                Change::Put(_, _, value) => within(value),
                Change::Delete(..) | Change::DeleteRange(..) => false,
            })
    }

    /// Breaks the disk, or mends it. A process that has failed on it stays so.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.disk.lock().faults = faults;
    }

    /// Whether a process that has it open cannot write to it: for a fault now, or for one that it met.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        let disk = self.disk.lock();
        disk.failed || disk.faults != DiskFaults::default()
    }

    /// What a start looks at first: that everything can be read and something written.
    ///
    /// # Errors
    /// What is wrong with the disk.
    pub fn check(&self) -> io::Result<()> {
        self.scan(Table::Meta, &mut |_, _| Ok(()))?;
        self.write(Batch::default(), true)
    }

    /// How many batches a crash would lose now.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.disk.lock().unsynced.len()
    }

    /// How many times the disk was synced.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.disk.lock().syncs
    }

    /// How many checkpoints were taken over, since the machine's first day.
    #[must_use]
    pub fn installs(&self) -> u64 {
        self.disk.lock().installs
    }

    fn open<T>(&self, work: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        if disk.cut {
            return Err(io::Error::other("this store belongs to a process that has crashed"));
        }
        if disk.faults.rotten {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a block's checksum does not fit",
            ));
        }
        work(&mut disk)
    }

    fn open_to_write<T>(&self, work: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        self.open(|disk| match (disk.failed, disk.faults.full) {
            (true, _) => Err(io::Error::other("a sync of this store has failed before")),
            (_, true) => Err(io::ErrorKind::StorageFull.into()),
            _ => work(disk),
        })
    }
}

impl Store for MemStore {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.open(|disk| Ok(disk.visible.get(&(table_number(table), key.to_vec())).cloned()))
    }

    fn scan(&self, table: Table, visit: Visit<'_>) -> io::Result<()> {
        let table = table_number(table);
        self.open(|disk| {
            for ((_, key), value) in
                disk.visible.range((table, vec![])..).take_while(|((t, _), _)| *t == table)
            {
                visit(key, value)?;
            }
            Ok(())
        })
    }

    fn at_one_moment(&self, look: Look<'_>) -> io::Result<()> {
        let rows = self.open(|disk| Ok(disk.visible.clone()))?;
        look(&MemMoment(rows))
    }

    fn write(&self, batch: Batch, sync: bool) -> io::Result<()> {
        self.open_to_write(|disk| {
            // Nobody looks for leftovers of tables that hold no sealed material.
            let left = apply(&mut disk.visible, &batch).into_iter().filter(|(table, _)| {
                [Table::Tokens, Table::Log].iter().any(|kept| table_number(*kept) == *table)
            });
            disk.leftovers.extend(left);
            disk.unsynced.push(batch);
            if sync {
                if disk.faults.failing_syncs {
                    disk.failed = true;
                    return Err(io::Error::other("the disk did not take the data"));
                }
                disk.syncs += 1;
                for batch in std::mem::take(&mut disk.unsynced) {
                    apply(&mut disk.durable, &batch);
                }
            }
            Ok(())
        })
    }

    fn checkpoint(&self) -> io::Result<Arc<dyn Checkpoint>> {
        self.write(Batch::default(), true)?;
        self.open(|disk| {
            let rows = disk.visible.iter().collect::<Vec<_>>();
            disk.checkpoint = Arc::new(codec::encode(&(rows, &disk.leftovers)));
            let bytes = Arc::clone(&disk.checkpoint);
            Ok(Arc::new(MemCheckpoint { bytes }) as Arc<dyn Checkpoint>)
        })
    }

    fn purge(&self, tables: &[Table]) -> io::Result<()> {
        self.write(Batch::default(), true)?;
        self.open(|disk| {
            disk.leftovers
                .retain(|(left, _)| tables.iter().all(|table| table_number(*table) != *left));
            Ok(())
        })
    }

    fn begin_install(&self) -> io::Result<Box<dyn Install>> {
        let mut disk = self.disk.lock();
        disk.begun += 1;
        let number = disk.begun;
        disk.incoming.insert(number, Vec::new());
        Ok(Box::new(MemInstall { store: self.clone(), number }))
    }
}

struct MemMoment(Rows);

impl Moment for MemMoment {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(&(table_number(table), key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, visit: Visit<'_>) -> io::Result<()> {
        let table = table_number(table);
        let rows = self.0.range((table, vec![])..).take_while(|((t, _), _)| *t == table);
        for ((_, key), value) in rows {
            visit(key, value)?;
        }
        Ok(())
    }
}

struct MemCheckpoint {
    bytes: Arc<Vec<u8>>,
}

impl Checkpoint for MemCheckpoint {
    fn files(&self) -> Vec<(String, u64)> {
        vec![("rows".to_owned(), self.bytes.len() as u64)]
    }

    fn read(&self, _file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(len).min(self.bytes.len());
        Ok(self.bytes[start..end].to_vec())
    }
}

struct MemInstall {
    store: MemStore,
    number: u64,
}

impl Drop for MemInstall {
    fn drop(&mut self) {
        self.store.disk.lock().incoming.remove(&self.number);
    }
}

impl Install for MemInstall {
    fn write(&mut self, _file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.store.open_to_write(|disk| {
            let received = disk.incoming.entry(self.number).or_default();
            if offset != received.len() as u64 {
                return Err(io::Error::other("pieces of a checkpoint arrived out of order"));
            }
            received.extend_from_slice(bytes);
            Ok(())
        })
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        self.store.open_to_write(|disk| {
            let received = disk.incoming.remove(&self.number).unwrap_or_default();
            let (rows, leftovers): (Vec<Row>, Vec<(Table8, Vec<u8>)>) =
                codec::decode(&received).map_err(io::Error::other)?;
            if disk.faults.failing_syncs {
                disk.failed = true;
                return Err(io::Error::other("the disk did not take the data"));
            }
            disk.visible = rows.into_iter().collect();
            disk.durable = disk.visible.clone();
            disk.unsynced.clear();
            disk.leftovers = leftovers;
            disk.installs += 1;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Batch {
        let mut batch = Batch::default();
        batch.put(Table::Keys, key.as_bytes(), b"v".to_vec());
        batch
    }

    #[test]
    fn a_crash_loses_what_was_not_synced_and_nothing_else() {
        let store = MemStore::default();
        store.write(put("a"), false).unwrap();
        store.write(put("b"), true).unwrap();
        store.write(put("c"), false).unwrap();
        store.write(put("d"), false).unwrap();
        let after = store.crash(1);
        let has = |key: &str| after.get(Table::Keys, key.as_bytes()).unwrap().is_some();
        assert_eq!([has("a"), has("b"), has("c"), has("d")], [true, true, true, false]);
        assert!(store.write(put("e"), true).is_err(), "the crashed process must not write");
    }

    #[test]
    fn a_disk_that_is_full_takes_nothing_and_one_that_failed_to_sync_takes_nothing_more() {
        let store = MemStore::default();
        store.write(put("a"), true).unwrap();
        store.set_faults(DiskFaults { full: true, ..DiskFaults::default() });
        assert_eq!(store.write(put("b"), true).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(store.get(Table::Keys, b"a").unwrap().is_some(), "and is read all the same");
        store.set_faults(DiskFaults { failing_syncs: true, ..DiskFaults::default() });
        store.write(put("c"), false).unwrap();
        store.write(put("d"), true).unwrap_err();
        store.set_faults(DiskFaults::default());
        store.write(put("e"), true).unwrap_err();
        let killed = store.crash(usize::MAX);
        let has = |store: &MemStore, key: &str| store.get(Table::Keys, key.as_bytes()).unwrap();
        assert!(has(&killed, "d").is_some(), "the system still has it");
        killed.check().unwrap();
        store.set_faults(DiskFaults { rotten: true, ..DiskFaults::default() });
        let rotten = store.crash(0);
        rotten.check().unwrap_err();
        rotten.set_faults(DiskFaults::default());
        assert!(has(&rotten, "d").is_none(), "a power cut took what was not synced");
    }

    #[test]
    fn what_was_deleted_is_in_the_files_until_they_are_purged() {
        let store = MemStore::default();
        let mut batch = Batch::default();
        batch.put(Table::Tokens, b"key".as_slice(), b"a sealed token".to_vec());
        store.write(batch, true).unwrap();
        let earlier = store.copied();
        let mut batch = Batch::default();
        batch.delete(Table::Tokens, b"key".as_slice());
        store.write(batch, true).unwrap();
        assert!(store.holds(b"sealed") && !store.holds(b"opened"));
        let store = store.crash(0);
        assert!(store.holds(b"sealed"));
        store.purge(&[Table::Keys]).unwrap();
        assert!(store.holds(b"sealed"), "another table's files");
        store.purge(&[Table::Tokens]).unwrap();
        assert!(!store.holds(b"sealed") && earlier.holds(b"sealed"));
    }
}
