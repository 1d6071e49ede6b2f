//! A file system in memory whose faults are made on purpose, for tests and for the simulator: a disk that
//! is full, writes and syncs that fail, a folder that is gone, a crash that keeps what the disk happened
//! to have.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::files::{Files, MappedFile, SegmentFile};

/// One file. Space that was taken and not written reads as zeros.
#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    len: u64,
}

impl Content {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (start, end) = (index(offset), index(offset) + bytes.len());
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(bytes);
        self.len = self.len.max(end as u64);
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let read = bytes.len().min(index(self.len).saturating_sub(offset));
        let from = offset.min(self.bytes.len());
        let have = read.min(self.bytes.len() - from);
        bytes[..have].copy_from_slice(&self.bytes[from..from + have]);
        bytes[have..read].fill(0);
        read
    }

    fn truncate(&mut self, len: u64) {
        self.bytes.truncate(index(len));
        self.len = len;
    }
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Write(offset, bytes) => content.write(*offset, bytes),
            Self::Length(len) if *len < content.len => content.truncate(*len),
            Self::Length(len) => content.len = *len,
        }
    }
}

/// A file: as programs see it, as the disk has it, and what lies between.
#[derive(Default)]
struct Inode {
    seen: Content,
    durable: Content,
    unsynced: Vec<Change>,
    /// Written like memory: the disk takes what it likes, when it likes.
    mapped: bool,
}

/// Bytes that the disk takes of a mapped file at once.
const PAGE_BYTES: usize = 4096;

impl Inode {
    /// What a mapped file has after a power cut: some pages old, some new.
    fn some_pages(&self, keep: &mut impl FnMut(usize) -> usize) -> Content {
        let mut content = Content { bytes: vec![0; self.seen.bytes.len()], len: self.seen.len };
        let pages = content.bytes.chunks_mut(PAGE_BYTES).zip(self.seen.bytes.chunks(PAGE_BYTES));
        for (number, (page, seen)) in pages.enumerate() {
            if keep(number) > 0 {
                page.copy_from_slice(seen);
            }
        }
        content
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.unsynced.push(change);
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a length that fits into memory")
}

/// What is broken now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The disk takes no more than so many bytes in all files together.
    pub space_bytes: Option<u64>,
    /// Writes take this many bytes of what they are given, and then fail.
    pub torn_writes: Option<usize>,
    /// Syncs of files fail. What was not synced is then forgotten as dirty, as Linux does: the next sync
    /// succeeds and makes it no more durable.
    pub failing_syncs: bool,
    /// Nothing in the folder can be reached.
    pub gone: bool,
}

#[derive(Default)]
struct Disk {
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    faults: Faults,
    syncs: u64,
}

impl Disk {
    fn reach(&self) -> io::Result<()> {
        if self.faults.gone { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }

    fn space(&self, inode: u64, len: u64) -> io::Result<()> {
        if self.inodes.get(&inode).is_some_and(|inode| len <= inode.seen.len) {
            return Ok(());
        }
        let others = self.names.values().filter(|other| **other != inode);
        let used: u64 = others.map(|other| self.inodes[other].seen.len).sum();
        match self.faults.space_bytes {
            Some(space) if used + len > space => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct FaultyFiles(Arc<Mutex<Disk>>);

impl FaultyFiles {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks and mends.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    /// Syncs of files that have succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Cuts the power: names and contents are those that were synced; of the changes since, each is kept
    /// where `keep` says so for its number, in part too: that many bytes of a write. Open files are dead.
    /// What comes back is the disk after the next start.
    #[must_use]
    pub fn crash(&self, mut keep: impl FnMut(usize) -> usize) -> Self {
        let disk = self.0.lock();
        let mut after = Disk { next_inode: disk.next_inode, ..Disk::default() };
        for (name, id) in &disk.durable_names {
            let inode = &disk.inodes[id];
            if inode.mapped {
                let content = inode.some_pages(&mut keep);
                after.inodes.insert(*id, Inode { seen: content, ..Inode::default() });
                after.names.insert(name.clone(), *id);
                continue;
            }
            let mut content = inode.durable.clone();
            for (number, change) in inode.unsynced.iter().enumerate() {
                match change {
                    Change::Write(offset, bytes) => {
                        let kept = keep(number).min(bytes.len());
                        content.write(*offset, &bytes[..kept]);
                    }
                    Change::Length(_) if keep(number) > 0 => change.apply(&mut content),
                    Change::Length(_) => {}
                }
            }
            let inode = Inode { seen: content.clone(), durable: content, ..Inode::default() };
            after.inodes.insert(*id, inode);
            after.names.insert(name.clone(), *id);
        }
        after.durable_names = after.names.clone();
        Self(Arc::new(Mutex::new(after)))
    }

    /// The files' names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// What a file holds, without the zeros of space that was never written.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.0.lock();
        Some(disk.inodes[disk.names.get(path)?].seen.bytes.clone())
    }

    /// Puts a file there, durably.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut disk = self.0.lock();
        disk.next_inode += 1;
        let id = disk.next_inode;
        let content = Content { bytes: bytes.to_vec(), len: bytes.len() as u64 };
        let inode = Inode { seen: content.clone(), durable: content, ..Inode::default() };
        disk.inodes.insert(id, inode);
        disk.names.insert(path.to_owned(), id);
        disk.durable_names.insert(path.to_owned(), id);
    }

    fn handle(&self, inode: u64) -> Arc<dyn SegmentFile> {
        Arc::new(FaultyFile { disk: Arc::clone(&self.0), inode })
    }
}

impl Files for FaultyFiles {
    fn create_folder(&self, _: &Path) -> io::Result<()> {
        self.0.lock().reach()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let disk = self.0.lock();
        disk.reach()?;
        let inside = disk.names.keys().filter(|path| path.parent() == Some(folder));
        let names = inside.filter_map(|path| path.file_name()?.to_str());
        Ok(names.map(str::to_owned).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        let mut disk = self.0.lock();
        disk.reach()?;
        disk.next_inode += 1;
        let id = disk.next_inode;
        let id = *disk.names.entry(path.to_owned()).or_insert(id);
        disk.inode(id).change(Change::Length(0));
        drop(disk);
        Ok(self.handle(id))
    }

    fn open(&self, path: &Path, _: bool) -> io::Result<Arc<dyn SegmentFile>> {
        let disk = self.0.lock();
        disk.reach()?;
        let id = *disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        drop(disk);
        Ok(self.handle(id))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.reach()?;
        let id = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.reach()?;
        disk.names.remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn map(&self, path: &Path, bytes: usize) -> io::Result<Arc<dyn MappedFile>> {
        let mut disk = self.0.lock();
        disk.reach()?;
        disk.next_inode += 1;
        let id = disk.next_inode;
        disk.space(id, bytes as u64)?;
        let seen = Content { bytes: Vec::new(), len: bytes as u64 };
        disk.inodes.insert(id, Inode { seen, mapped: true, ..Inode::default() });
        // Where it was not there before, a power cut takes it, or not: here it does not.
        disk.names.insert(path.to_owned(), id);
        disk.durable_names.insert(path.to_owned(), id);
        Ok(Arc::new(FaultyMemory { disk: Arc::clone(&self.0), inode: id }))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.reach()?;
        let inside = |path: &Path| path.parent() == Some(folder);
        disk.durable_names.retain(|path, _| !inside(path));
        let names: Vec<_> = disk.names.iter().filter(|(path, _)| inside(path)).collect();
        let names: Vec<_> = names.into_iter().map(|(path, id)| (path.clone(), *id)).collect();
        disk.durable_names.extend(names);
        Ok(())
    }
}

struct FaultyFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

impl SegmentFile for FaultyFile {
    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.reach()?;
        disk.space(self.inode, len)?;
        disk.inode(self.inode).change(Change::Length(len));
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.reach()?;
        let grown = disk.inode(self.inode).seen.len.max(offset + bytes.len() as u64);
        disk.space(self.inode, grown)?;
        let torn = disk.faults.torn_writes.map(|torn| torn.min(bytes.len()));
        let written = bytes[..torn.unwrap_or(bytes.len())].to_vec();
        disk.inode(self.inode).change(Change::Write(offset, written));
        if torn.is_some() { Err(io::Error::other("the write was torn")) } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk.lock();
        disk.reach()?;
        Ok(disk.inode(self.inode).seen.read(index(offset), bytes))
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let failing = disk.faults.failing_syncs || disk.faults.gone;
        let inode = disk.inode(self.inode);
        let changes = std::mem::take(&mut inode.unsynced);
        if failing {
            return Err(io::Error::other("the disk did not take the data"));
        }
        changes.iter().for_each(|change| change.apply(&mut inode.durable));
        disk.syncs += 1;
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.reach()?;
        disk.inode(self.inode).change(Change::Length(len));
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut disk = self.disk.lock();
        disk.reach()?;
        Ok(disk.inode(self.inode).seen.len)
    }
}

/// A file that is memory: what is written is seen, whatever the disk does.
struct FaultyMemory {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

impl MappedFile for FaultyMemory {
    fn write(&self, at: usize, bytes: &[u8]) {
        let mut disk = self.disk.lock();
        let seen = &mut disk.inode(self.inode).seen;
        assert!(at as u64 + bytes.len() as u64 <= seen.len, "within the file");
        seen.write(at as u64, bytes);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        let mut disk = self.disk.lock();
        disk.inode(self.inode).seen.read(at, bytes);
    }

    fn prepare(&self, _: Range<usize>) {}
}
