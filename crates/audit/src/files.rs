//! The file system, as far as the trail needs it: the seam at which tests and the simulator make faults.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::mapped::Mapped;

/// Reading and writing for the owner, reading for the group: those who look at the trail need not be able
/// to change it.
const FILE_MODE: u32 = 0o640;
/// The same for the folder.
const FOLDER_MODE: u32 = 0o750;

/// A folder's files. Calls may block on a disk: keep them off async threads.
pub trait Files: Send + Sync + 'static {
    /// Makes a folder, mode 0750, and those above it, unless it is there.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;

    /// The names of the files in a folder, in any order.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Makes an empty file, mode 0640, for reading and writing; one of that name is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>>;

    /// Opens a file for reading, and for writing too where `write` says so.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn SegmentFile>>;

    /// Gives a file another name, in the place of a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a file of `bytes` bytes, all zeros, mode 0640, that can be written like memory; one of that name is
    /// emptied. It takes its space from the disk now.
    fn map(&self, path: &Path, bytes: usize) -> io::Result<Arc<dyn MappedFile>>;

    /// Makes names durable: after it, files made, renamed and removed are so after a power cut too.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// An open file.
pub trait SegmentFile: Send + Sync {
    /// Takes space from the disk up to `len` bytes; it reads as zeros. A file system that cannot is no
    /// error.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Writes all the bytes at that place.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads at that place: fewer bytes than fit only at the end of the file.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Makes what was written durable (`fdatasync`). After an error the file is not to be trusted: the
    /// system may have dropped what was not written, and calls it clean the next time.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file at that length.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
}

/// A file that is memory too. What is written is with the operating system at once, without a system call: the
/// death of the process takes nothing of it. Whoever opens the file reads it. Callers see to it that nobody reads
/// bytes while they are written.
pub trait MappedFile: Send + Sync {
    /// Writes at that place, which must lie within the file.
    fn write(&self, at: usize, bytes: &[u8]);

    /// Reads at that place, which must lie within the file.
    fn read(&self, at: usize, bytes: &mut [u8]);

    /// Sees to it that writing there soon does not wait for a disk. May itself block on one.
    fn prepare(&self, range: Range<usize>);
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let names =
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        // A name that is no UTF-8 is none of ours.
        names.filter_map(io::Result::transpose).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(write).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn map(&self, path: &Path, bytes: usize) -> io::Result<Arc<dyn MappedFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
        let file = RealFile(options.open(path)?);
        file.allocate(bytes as u64)?;
        file.truncate(bytes as u64)?;
        let mapped = Mapped::new(&file.0)?;
        mapped.prepare(0..bytes);
        Ok(Arc::new(mapped))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

struct RealFile(File);

impl SegmentFile for RealFile {
    fn allocate(&self, len: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // NFS before 4.2, ZFS: the trail works there, and a full disk shows in the middle of a segment.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < bytes.len() {
            match self.0.read_at(&mut bytes[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
