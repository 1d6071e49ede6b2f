//! The [`Store`] on RocksDB: one database a store, one column family a table, checkpoints as hard links.
//!
//! Layout of a store's folder: `CURRENT-DB` names the sub-folder that holds the database (`db-<n>`), so
//! that a received checkpoint takes its place in one rename; `checkpoint/` holds the latest checkpoint, which is made anew after a start.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use keyward_state::{Batch, Change, Checkpoint, Install, Look, Store, Table, Visit};
use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBRecoveryMode, ErrorKind, FlushOptions, IteratorMode, Options, ReadOptions, ReadTier,
    WriteBatch, WriteOptions,
};

mod moment;
mod sum;

pub(crate) use moment::read_left_behind;

const CURRENT: &str = "CURRENT-DB";
/// After the name of a database that has not been made whole yet.
const BEING_MADE: &str = " being made";
const CHECKPOINT: &str = "checkpoint";
/// How the names of folders begin that snapshots are received in.
const INCOMING: &str = "incoming-";

/// A store on disk.
#[derive(Clone)]
pub struct RocksStore {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    tables: &'static [Table],
    db: ArcSwap<DB>,
    /// The sum over all rows (`sum.rs`). Held while a batch is written.
    sum: Mutex<u64>,
    /// Checkpoints and installs, one at a time.
    maintenance: Mutex<()>,
    /// Held shared while somebody looks at one moment: RocksDB keeps what was deleted since, and a purge waits for it.
    looking: RwLock<()>,
    /// Snapshots that were begun to be received.
    incoming: AtomicU64,
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

/// Makes a rename durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_missing_column_families(true);
    // A node holds little: sealed tokens and metadata. Small buffers keep it under 60 MB at rest.
    options.set_write_buffer_size(4 * 1024 * 1024);
    options.set_arena_block_size(32 * 1024);
    options.set_stats_dump_period_sec(0);
    options.set_db_write_buffer_size(16 * 1024 * 1024);
    options.set_max_write_buffer_number(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1024 * 1024);
    options.set_max_open_files(256);
    options.set_max_background_jobs(2);
    options.set_max_total_wal_size(16 * 1024 * 1024);
    // A torn record at the end of the write-ahead file is what a power cut leaves; anything else in it
    // is damage, and is told.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // Tables are written out together, and a write-ahead file that is missing is noticed: a list of files that
    // has lost its end must not bring some tables back as they were, beside others that are newer.
    options.set_atomic_flush(true);
    options.set_track_and_verify_wals_in_manifest(true);
    // A deleted token must not live on in a recycled file.
    options.set_recycle_log_file_num(0);
    options.set_paranoid_checks(true);
    options
}

/// Only a new database may be made: one whose files are missing is damaged, not new.
fn open_db(path: &Path, tables: &[Table], new: bool) -> io::Result<(DB, u64)> {
    let families = tables.iter().map(|table| ColumnFamilyDescriptor::new(table.name(), options()));
    let mut options = options();
    options.create_if_missing(new);
    let failed = |e: rocksdb::Error| io::Error::other(format!("database {}: {e}", path.display()));
    let db = DB::open_cf_descriptors(&options, path, families).map_err(failed)?;
    // Every row is read once, those that newer ones hide too: damage shows now, and not when tables are merged.
    let mut found = 0_u64;
    for table in tables {
        let mut once = ReadOptions::default();
        once.fill_cache(false);
        for row in db.iterator_cf_opt(family(&db, *table)?, once, IteratorMode::Start) {
            let (key, value) = row.map_err(failed)?;
            found = found.wrapping_add(sum::of_row(*table, &key, &value));
        }
    }
    let kept = db.get(sum::KEY).map_err(failed)?;
    let kept = kept.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    if kept != found {
        return Err(io::Error::other(format!(
            "database {}: rows are missing or older than others: its list of files (MANIFEST) or a write-ahead file has \
             lost its end",
            path.display()
        )));
    }
    Ok((db, found))
}

impl RocksStore {
    /// Opens the store in `folder`, and makes it if it is not there.
    pub fn open(folder: &Path, tables: &'static [Table]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let current = read_current(folder)?;
        let (db, sum) = match current.strip_suffix(BEING_MADE) {
            // Nothing was ever acknowledged from it.
            Some(name) => {
                remove_strays(folder, "")?;
                let opened = open_db(&folder.join(name), tables, true)?;
                set_current(folder, name)?;
                opened
            }
            None => {
                remove_strays(folder, &current)?;
                open_db(&folder.join(&current), tables, false)?
            }
        };
        let shared = Shared {
            folder: folder.to_owned(),
            tables,
            db: ArcSwap::from_pointee(db),
            sum: Mutex::new(sum),
            maintenance: Mutex::new(()),
            looking: RwLock::new(()),
            incoming: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

/// The name of the database's folder. A missing or damaged file is an error: what it names must not be taken
/// for a stray.
fn read_current(folder: &Path) -> io::Result<String> {
    let path = folder.join(CURRENT);
    let refuse = |what: &str| {
        io::Error::other(format!(
            "{} {what}. It names the sub-folder (db-<number>) that holds the database, in one line: restore it, or \
             have the node join anew",
            path.display()
        ))
    };
    let name = match fs::read(&path) {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_default().trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let databases = fs::read_dir(folder)?.flatten();
            if databases.map(|e| e.file_name()).any(|n| n.to_string_lossy().starts_with("db-")) {
                return Err(refuse("is missing"));
            }
            let name = format!("db-1{BEING_MADE}");
            set_current(folder, &name)?;
            return Ok(name);
        }
        Err(error) => return Err(error),
    };
    let known = name.strip_suffix(BEING_MADE).unwrap_or(&name);
    let number = known.strip_prefix("db-").and_then(|number| number.parse::<u64>().ok());
    if number.is_none() || (known == name && !folder.join(known).is_dir()) {
        return Err(refuse("is damaged, or names a folder that is not there"));
    }
    Ok(name)
}

fn set_current(folder: &Path, name: &str) -> io::Result<()> {
    let draft = folder.join("CURRENT-DB.new");
    let mut file = fs::File::create(&draft)?;
    writeln!(file, "{name}")?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(CURRENT))?;
    sync_folder(folder)
}

/// Removes databases and transfers that a crash left behind.
fn remove_strays(folder: &Path, current: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let stray = name.starts_with(INCOMING)
            || name == CHECKPOINT
            || name == "checkpoint.new"
            || (name.starts_with("db-") && name != current);
        if stray {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn family(db: &DB, table: Table) -> io::Result<&ColumnFamily> {
    db.cf_handle(table.name())
        .ok_or_else(|| io::Error::other(format!("table {} is not in this store", table.name())))
}

impl Store for RocksStore {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let db = self.shared.db.load();
        db.get_cf(family(&db, table)?, key).map_err(other)
    }

    fn at_hand(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut in_memory = ReadOptions::default();
        in_memory.set_read_tier(ReadTier::BlockCache);
        let db = self.shared.db.load();
        match db.get_cf_opt(family(&db, table)?, key, &in_memory) {
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            read => read.map_err(other),
        }
    }

    fn scan(&self, table: Table, visit: Visit<'_>) -> io::Result<()> {
        let db = self.shared.db.load_full();
        for row in db.iterator_cf(family(&db, table)?, IteratorMode::Start) {
            let (key, value) = row.map_err(other)?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn at_one_moment(&self, look: Look<'_>) -> io::Result<()> {
        let _not_purged = self.shared.looking.read();
        let db = self.shared.db.load_full();
        look(&moment::RocksMoment::of(&db))
    }

    fn write(&self, batch: Batch, sync: bool) -> io::Result<()> {
        let mut sum = self.shared.sum.lock();
        let db = self.shared.db.load();
        let mut rows = WriteBatch::default();
        for change in &batch.changes {
            match change {
                Change::Put(table, key, value) => rows.put_cf(family(&db, *table)?, key, value),
                Change::Delete(table, key) => rows.delete_cf(family(&db, *table)?, key),
                Change::DeleteRange(table, from, to) => {
                    rows.delete_range_cf(family(&db, *table)?, from, to);
                }
            }
        }
        let after = sum::after(&db, *sum, &batch)?;
        rows.put(sum::KEY, after.to_le_bytes());
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        db.write_opt(rows, &options).map_err(other)?;
        *sum = after;
        Ok(())
    }

    fn checkpoint(&self) -> io::Result<Arc<dyn Checkpoint>> {
        let _one_at_a_time = self.shared.maintenance.lock();
        let folder = &self.shared.folder;
        let (draft, place) = (folder.join("checkpoint.new"), folder.join(CHECKPOINT));
        let db = self.shared.db.load_full();
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        rocksdb::checkpoint::Checkpoint::new(&db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(&draft))
            .map_err(other)?;
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::rename(&draft, &place)?;
        sync_folder(folder)?;
        Ok(Arc::new(RocksCheckpoint::open(&place)?))
    }

    fn purge(&self, tables: &[Table]) -> io::Result<()> {
        let _nobody_looks = self.shared.looking.write();
        let _one_at_a_time = self.shared.maintenance.lock();
        let db = self.shared.db.load_full();
        // All tables are flushed: a write-ahead file goes once nothing in it is still in memory only.
        let families = self
            .shared
            .tables
            .iter()
            .map(|table| family(&db, *table))
            .chain(db.cf_handle("default").map(Ok))
            .collect::<io::Result<Vec<_>>>()?;
        db.flush_cfs_opt(&families, &FlushOptions::default()).map_err(other)?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        options.set_exclusive_manual_compaction(true);
        let failures = || db.property_int_value("rocksdb.background-errors").map_err(other);
        let before = failures()?;
        for table in tables {
            let none: Option<&[u8]> = None;
            db.compact_range_cf_opt(family(&db, *table)?, none, none, &options);
        }
        // A compaction does not say how it went.
        if failures()? > before {
            return Err(io::Error::other(format!(
                "the database in {} could not be compacted: is the disk full?",
                self.shared.folder.display()
            )));
        }
        Ok(())
    }

    fn begin_install(&self) -> io::Result<Box<dyn Install>> {
        // One that is about to be taken over may still be there.
        let number = self.shared.incoming.fetch_add(1, Ordering::Relaxed);
        let folder = self.shared.folder.join(format!("{INCOMING}{number}"));
        fs::create_dir(&folder)?;
        Ok(Box::new(RocksInstall { shared: Arc::clone(&self.shared), folder, taken_over: false }))
    }
}

/// The files are opened at once: hard links and open handles keep their content even when the next
/// checkpoint takes the folder's place.
struct RocksCheckpoint {
    files: Vec<(String, u64, Mutex<fs::File>)>,
}

impl RocksCheckpoint {
    fn open(folder: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let file = fs::File::open(entry.path())?;
            files.push((name, file.metadata()?.len(), Mutex::new(file)));
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self { files })
    }
}

impl Checkpoint for RocksCheckpoint {
    fn files(&self) -> Vec<(String, u64)> {
        self.files.iter().map(|(name, len, _)| (name.clone(), *len)).collect()
    }

    fn read(&self, file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (_, _, handle) = self
            .files
            .iter()
            .find(|(name, _, _)| name == file)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, file.to_owned()))?;
        let mut handle = handle.lock();
        handle.seek(io::SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut *handle).take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

struct RocksInstall {
    shared: Arc<Shared>,
    folder: PathBuf,
    taken_over: bool,
}

impl Drop for RocksInstall {
    fn drop(&mut self) {
        if !self.taken_over
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(folder = %self.folder.display(), %error, "what was received of a snapshot stays behind");
        }
    }
}

impl Install for RocksInstall {
    fn write(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Only names as RocksDB makes them: a peer must not write outside the folder.
        let plain = !file.is_empty()
            && file.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !file.starts_with('.');
        if !plain {
            return Err(io::Error::other(format!("a checkpoint file of an odd name: {file:?}")));
        }
        let mut target =
            fs::OpenOptions::new().create(true).append(true).open(self.folder.join(file))?;
        if target.metadata()?.len() != offset {
            return Err(io::Error::other("pieces of a checkpoint arrived out of order"));
        }
        target.write_all(bytes)
    }

    fn commit(mut self: Box<Self>) -> io::Result<()> {
        let _one_at_a_time = self.shared.maintenance.lock();
        let folder = &self.shared.folder;
        for entry in fs::read_dir(&self.folder)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        sync_folder(&self.folder)?;
        let old = fs::read_to_string(folder.join(CURRENT))?.trim().to_owned();
        let number: u64 = old.strip_prefix("db-").and_then(|n| n.parse().ok()).unwrap_or(1);
        let name = format!("db-{}", number + 1);
        fs::rename(&self.folder, folder.join(&name))?;
        self.taken_over = true;
        sync_folder(folder)?;
        let (db, sum) = open_db(&folder.join(&name), self.shared.tables, false)?;
        set_current(folder, &name)?;
        let mut kept = self.shared.sum.lock();
        self.shared.db.store(Arc::new(db));
        *kept = sum;
        drop(kept);
        // Readers that still hold the old database keep its open files; the folder can go.
        fs::remove_dir_all(folder.join(old))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Batch {
        let mut batch = Batch::default();
        batch.put(Table::Keys, key, value.as_bytes().to_vec());
        batch
    }

    #[test]
    fn rows_survive_reopening_and_a_checkpoint_replaces_another_store() {
        let folder = tempfile::tempdir().unwrap();
        let store = RocksStore::open(&folder.path().join("a"), &Table::STATE).unwrap();
        store.write(put("k", "1"), true).unwrap();
        drop(store);
        let store = RocksStore::open(&folder.path().join("a"), &Table::STATE).unwrap();
        assert_eq!(store.get(Table::Keys, b"k").unwrap(), Some(b"1".to_vec()));

        let checkpoint = store.checkpoint().unwrap();
        store.write(put("k", "2"), false).unwrap();
        let target = RocksStore::open(&folder.path().join("b"), &Table::STATE).unwrap();
        target.write(put("old", "x"), true).unwrap();
        let mut install = target.begin_install().unwrap();
        for (file, len) in checkpoint.files() {
            let mut offset = 0;
            while offset < len {
                let piece = checkpoint.read(&file, offset, 1000).unwrap();
                install.write(&file, offset, &piece).unwrap();
                offset += piece.len() as u64;
            }
        }
        assert!(install.write("../escape", 0, b"x").is_err());
        install.commit().unwrap();
        assert_eq!(target.get(Table::Keys, b"k").unwrap(), Some(b"1".to_vec()));
        assert_eq!(target.get(Table::Keys, b"old").unwrap(), None);
        drop(target);
        let target = RocksStore::open(&folder.path().join("b"), &Table::STATE).unwrap();
        assert_eq!(target.get(Table::Keys, b"k").unwrap(), Some(b"1".to_vec()));
    }

    #[test]
    fn a_row_is_at_hand_while_it_is_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let store = RocksStore::open(folder.path(), &Table::STATE).unwrap();
        store.write(put("k", "1"), true).unwrap();
        let one = || Some(b"1".to_vec());
        assert_eq!(store.at_hand(Table::Keys, b"k").unwrap(), one(), "not in a file yet");
        assert_eq!(store.at_hand(Table::Keys, b"another").unwrap(), None);
        store.purge(&[Table::Keys]).unwrap();
        drop(store);
        let store = RocksStore::open(folder.path(), &Table::STATE).unwrap();
        assert_eq!(store.at_hand(Table::Keys, b"k").unwrap(), None, "in a file only");
        assert_eq!(store.get(Table::Keys, b"k").unwrap(), one());
        assert_eq!(store.at_hand(Table::Keys, b"k").unwrap(), one(), "it was read");
    }

    #[test]
    fn a_checkpoint_that_is_not_taken_over_leaves_nothing_and_does_not_disturb_another() {
        let folder = tempfile::tempdir().unwrap();
        let source = RocksStore::open(&folder.path().join("a"), &Table::STATE).unwrap();
        source.write(put("k", "1"), true).unwrap();
        let checkpoint = source.checkpoint().unwrap();
        let place = folder.path().join("b");
        let target = RocksStore::open(&place, &Table::STATE).unwrap();
        let receive = || {
            let mut install = target.begin_install().unwrap();
            for (file, len) in checkpoint.files() {
                let bytes = checkpoint.read(&file, 0, usize::try_from(len).unwrap()).unwrap();
                install.write(&file, 0, &bytes).unwrap();
            }
            install
        };
        let received = || {
            let names = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with(INCOMING)).count()
        };
        let (first, second) = (receive(), receive());
        assert_eq!(received(), 2);
        drop(second);
        assert_eq!(received(), 1);
        first.commit().unwrap();
        assert_eq!(received(), 0);
        assert_eq!(target.get(Table::Keys, b"k").unwrap(), Some(b"1".to_vec()));
    }
}
