//! Where a record is until it is synced in a segment: a ring of bytes in a mapped file, `audit.ring`.
//!
//! A record that is copied here is with the operating system, without a system call and without a disk to wait for.
//! The writer copies from here into the segment, and the place is used again once that is synced. After a crash of
//! the process, the lines that no segment has are found here by their numbers and checksums. After a power cut the
//! file holds what the disk happened to have; what fits is taken, and nothing was promised.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::TrailConfig;
use crate::error::AuditError;
use crate::files::{Files, MappedFile, SegmentFile};
use crate::record::RECORD_BYTES_MAX;
use crate::segment;
use crate::walk::Walk;

/// The most that waits to be synced: half a second of 50,000 calls a second.
pub(crate) const BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bytes ahead of the newest record that are kept ready.
const READY_BYTES: u64 = 256 * 1024;

/// The file's name. It is there from the trail's opening until it is closed in order.
pub(crate) const NAME: &str = "audit.ring";

/// The file.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// The end of a record: where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Bytes of all records before, since the trail was opened.
    pub(crate) position: u64,
    /// The number of the next record.
    pub(crate) sequence: u64,
}

/// A stream of bytes of which the last ones are kept. One writer at a time; whoever reads stays behind it.
pub(crate) struct Ring {
    memory: Arc<dyn MappedFile>,
    size: u64,
}

/// A place or a number of bytes of memory.
pub(crate) fn index(place: u64) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}

impl Ring {
    /// Makes the file anew: half as large as a segment, 2 to 32 MiB.
    pub(crate) fn create(files: &dyn Files, config: &TrailConfig) -> Result<Self, AuditError> {
        let size = (config.segment_bytes / 2).clamp(RECORD_BYTES_MAX as u64, BYTES_MAX);
        let path = path(&config.folder);
        let memory = files.map(&path, index(size));
        let memory = memory.map_err(|error| {
            // Its space is needed.
            let _ = files.remove(&path);
            AuditError::file("take space for", path)(error)
        })?;
        Ok(Self { memory, size })
    }

    /// Bytes that it holds.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Where a stream's position lies, and how many bytes there are up to the end of memory.
    fn place(&self, position: u64) -> (usize, usize) {
        let at = position % self.size;
        (index(at), index(self.size - at))
    }

    pub(crate) fn write(&self, position: u64, bytes: &[u8]) {
        let (at, left) = self.place(position);
        let (first, rest) = bytes.split_at(bytes.len().min(left));
        self.memory.write(at, first);
        self.memory.write(0, rest);
    }

    /// Reads the bytes from that position on.
    pub(crate) fn read(&self, from: u64, bytes: &mut [u8]) {
        let (at, left) = self.place(from);
        let (first, rest) = bytes.split_at_mut(bytes.len().min(left));
        self.memory.read(at, first);
        self.memory.read(0, rest);
    }

    /// Has the bytes from that position on ready to be written, without waiting for a disk then.
    pub(crate) fn prepare(&self, position: u64) {
        let (at, left) = self.place(position);
        let bytes = index(READY_BYTES.min(self.size));
        self.memory.prepare(at..at + bytes.min(left));
        self.memory.prepare(0..bytes.saturating_sub(left));
    }
}

/// The lines that follow each other from record `first` on, out of what the file holds.
pub(crate) fn lines_from(held: &[u8], first: u64) -> Vec<u8> {
    let mut run = Run { found: Vec::new(), next: first };
    // Around: a line, and the run of lines, may go over the end.
    let mut rest = held;
    while let Some((line, after)) = segment::split_line(rest) {
        if run.ends_with(line) {
            return run.found;
        }
        rest = after;
    }
    let Some((head, mut after)) = segment::split_line(held) else { return run.found };
    if run.ends_with(&[rest, head].concat()) {
        return run.found;
    }
    while let Some((line, further)) = segment::split_line(after) {
        // The run did not begin in the first round: nor does it here.
        if run.next == first || run.ends_with(line) {
            break;
        }
        after = further;
    }
    run.found
}

/// Lines that follow each other by number.
struct Run {
    found: Vec<u8>,
    next: u64,
}

impl Run {
    /// Takes the line, if it is the next one. True if there is a run, and this line is not of it.
    fn ends_with(&mut self, line: &[u8]) -> bool {
        if segment::sequence_of(line) == Some(self.next) && segment::check_line(line).is_ok() {
            self.found.extend_from_slice(line);
            self.found.push(b'\n');
            self.next += 1;
            return false;
        }
        !self.found.is_empty()
    }
}

/// The same, from the file. One that is not there holds nothing.
///
/// # Errors
/// It cannot be read: what it holds must not be taken for nothing.
pub(crate) fn left_behind(files: &dyn Files, folder: &Path, first: u64) -> io::Result<Vec<u8>> {
    let file = match files.open(&path(folder), false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut held = vec![0; index(file.length()?.min(BYTES_MAX))];
    let read = file.read_at(0, &mut held)?;
    Ok(lines_from(&held[..read], first))
}

/// A walk through the lines of the file from record `first` on, if there are any: the end of the trail, of which no
/// segment has them yet.
///
/// # Errors
/// As [`left_behind`].
pub(crate) fn walk(files: &dyn Files, folder: &Path, first: u64) -> io::Result<Option<Walk>> {
    let lines = left_behind(files, folder, first)?;
    if lines.is_empty() {
        return Ok(None);
    }
    let text = [segment::header(0, first), lines].concat();
    Ok(Some(Walk::new(path(folder), Arc::new(Text(text)), first, None)))
}

/// Bytes that are read like a file.
struct Text(Vec<u8>);

impl SegmentFile for Text {
    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let rest = self.0.get(index(offset)..).unwrap_or_default();
        let read = rest.len().min(bytes.len());
        bytes[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FaultyFiles;

    fn line(sequence: u64, body: &str) -> Vec<u8> {
        let mut line = Vec::new();
        segment::line(&mut line, sequence, 1, 0, format!(",\"x\":\"{body}\"}}}}").as_bytes());
        line
    }

    /// A small ring, its folder, and lines put in one after the other from record 1 on.
    fn filled(lines: &[Vec<u8>]) -> Vec<u8> {
        let files = FaultyFiles::new();
        let memory = files.map(Path::new("/ring"), 700).expect("a file");
        let ring = Ring { memory, size: 700 };
        let mut position = 0;
        for line in lines {
            ring.write(position, line);
            let mut back = vec![0; line.len()];
            ring.read(position, &mut back);
            assert_eq!(back, *line);
            position += line.len() as u64;
        }
        let mut held = vec![0; 700];
        ring.memory.read(0, &mut held);
        held
    }

    #[test]
    fn lines_are_found_by_number_wherever_they_stand_and_whatever_is_around_them() {
        let lines: Vec<_> = (1..=20).map(|n| line(n, &"y".repeat(n as usize))).collect();
        for put in 1..=lines.len() {
            let held = filled(&lines[..put]);
            for first in 1..=put {
                let found = lines_from(&held, first as u64);
                let all = lines[first - 1..put].concat();
                // Older ones may have been overwritten.
                let kept = 700 - lines[put - 1].len();
                if all.len() <= kept {
                    assert_eq!(found, all, "from {first} of {put}");
                } else {
                    assert!(found.is_empty() || found == all, "from {first} of {put}");
                }
            }
            assert!(lines_from(&held, put as u64 + 1).is_empty());
        }
    }

    #[test]
    fn a_line_that_is_half_there_ends_what_is_found() {
        let lines: Vec<_> = (1..=3).map(|n| line(n, "y")).collect();
        let mut held = filled(&lines);
        let torn = lines[0].len() + lines[1].len() + 60;
        held[torn] ^= 1;
        assert_eq!(lines_from(&held, 1), lines[..2].concat());
        assert!(lines_from(&[0; 500], 1).is_empty());
        assert!(lines_from(&[], 1).is_empty());
    }
}
