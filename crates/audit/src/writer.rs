//! What touches the disk: one segment is written, synced, rolled, and replaced after a failure.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_model::NodeId;

use crate::config::{SEGMENT_BYTES_MIN, TrailConfig};
use crate::error::AuditError;
use crate::files::{Files, SegmentFile};
use crate::record::RECORD_BYTES_MAX;
use crate::ring::{Mark, Ring, index};
use crate::segment;

/// Bytes of one write at most; the longest record fits in.
const WRITE_BYTES_MAX: u64 = RECORD_BYTES_MAX as u64;

struct Segment {
    file: Arc<dyn SegmentFile>,
    path: PathBuf,
    /// Bytes of the header.
    header: u64,
    /// Bytes written.
    length: u64,
    /// Bytes that are known to be on disk.
    synced: u64,
}

/// The writing end of a trail. Its methods block on the disk.
///
/// A record stays in the ring until it is synced in a segment; after a failure the ring holds all that the disk is
/// not known to have, in order, and that starts the next segment.
pub(crate) struct Writer {
    files: Arc<dyn Files>,
    folder: PathBuf,
    node: NodeId,
    segment_bytes: u64,
    segment: Option<Segment>,
    /// Where lines are on their way into the segment. It stays as long as it once was.
    lines: Vec<u8>,
    /// The end of what is written.
    written: Mark,
    /// The end of what is synced.
    synced: Mark,
    /// The end of what a sync under way covers.
    syncing: Option<Mark>,
    failed: bool,
    rolled: bool,
}

/// A sync under way.
pub(crate) struct Sync {
    file: Arc<dyn SegmentFile>,
    path: PathBuf,
    length: u64,
    end: Mark,
}

impl Sync {
    pub(crate) fn run(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Writer {
    /// A writer whose first segment holds `left_behind`: lines of an earlier life, from record `first` on, and
    /// nothing in the ring before `start`.
    pub(crate) fn open(
        files: Arc<dyn Files>,
        config: &TrailConfig,
        first: u64,
        left_behind: &[u8],
        start: Mark,
    ) -> Result<Self, AuditError> {
        let mut writer = Self {
            files,
            folder: config.folder.clone(),
            node: config.node,
            segment_bytes: config.segment_bytes.max(SEGMENT_BYTES_MIN),
            segment: None,
            lines: Vec::new(),
            written: start,
            synced: start,
            syncing: None,
            failed: false,
            rolled: false,
        };
        writer.replace_segment(first, left_behind)?;
        Ok(writer)
    }

    pub(crate) fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }

    /// The end of what is on disk.
    pub(crate) fn synced(&self) -> Mark {
        self.synced
    }

    /// True when all that was written is on disk, or a sync under way covers it.
    pub(crate) fn is_covered(&self) -> bool {
        self.written == self.syncing.unwrap_or(self.synced)
    }

    /// Tells once that a segment was rolled.
    pub(crate) fn take_rolled(&mut self) -> bool {
        std::mem::take(&mut self.rolled)
    }

    /// Writes the ring's records up to that mark; into new segments where they do not fit any more. No sync may be
    /// under way where [`Writer::may_roll`] says so.
    pub(crate) fn write(&mut self, ring: &Ring, to: Mark) -> Result<(), AuditError> {
        while self.written.position < to.position {
            let from = self.written.position;
            let bytes = index((to.position - from).min(WRITE_BYTES_MAX));
            if self.lines.len() < bytes {
                self.lines.resize(bytes, 0);
            }
            let lines = &mut self.lines[..bytes];
            ring.read(from, lines);
            let Some(segment) = &mut self.segment else { unreachable!("an open trail has one") };
            let room = self.segment_bytes.saturating_sub(segment.length);
            let Some(bytes) = whole_lines(lines, room, segment.length == segment.header) else {
                self.roll()?;
                continue;
            };
            let lines = &lines[..bytes];
            let wrong = AuditError::file("write", segment.path.clone());
            segment.file.write_at(segment.length, lines).map_err(wrong)?;
            segment.length += bytes as u64;
            self.written.position += bytes as u64;
            if self.written.position == to.position {
                self.written.sequence = to.sequence;
            } else {
                let lines = lines.iter().filter(|byte| **byte == b'\n').count();
                self.written.sequence += lines as u64;
            }
        }
        Ok(())
    }

    /// True when writing up to that mark may need a new segment.
    pub(crate) fn may_roll(&self, to: Mark) -> bool {
        let bytes = to.position - self.written.position;
        self.segment.as_ref().is_some_and(|segment| segment.length + bytes > self.segment_bytes)
    }

    fn roll(&mut self) -> Result<(), AuditError> {
        assert!(self.syncing.is_none(), "a sync of the segment is under way");
        self.sync()?;
        self.replace_segment(self.written.sequence, &[])?;
        self.rolled = true;
        Ok(())
    }

    /// Syncs what was written, while nobody else does.
    pub(crate) fn sync(&mut self) -> Result<(), AuditError> {
        match self.begin_sync() {
            Some(sync) => {
                let result = sync.run();
                self.end_sync(sync, result)
            }
            None => Ok(()),
        }
    }

    /// Begins a sync of what was written; `None` when there is nothing to sync, or the segment has failed
    /// and is not to be trusted.
    pub(crate) fn begin_sync(&mut self) -> Option<Sync> {
        let segment = self.segment.as_ref()?;
        if self.is_syncing() || self.failed || self.is_covered() {
            return None;
        }
        self.syncing = Some(self.written);
        Some(Sync {
            file: Arc::clone(&segment.file),
            path: segment.path.clone(),
            length: segment.length,
            end: self.written,
        })
    }

    /// Takes note of how a sync ended.
    pub(crate) fn end_sync(
        &mut self,
        sync: Sync,
        result: io::Result<()>,
    ) -> Result<(), AuditError> {
        self.syncing = None;
        result.map_err(AuditError::file("sync", sync.path))?;
        self.synced = sync.end;
        if let Some(segment) = &mut self.segment {
            segment.synced = sync.length;
        }
        Ok(())
    }

    /// After a failure: nothing is written to this segment any more.
    pub(crate) fn give_up_segment(&mut self) {
        self.failed = true;
    }

    /// After a failure: a new segment with all that is not synced, up to that mark.
    pub(crate) fn start_again(&mut self, ring: &Ring, to: Mark) -> Result<(), AuditError> {
        let mut lines = vec![0; index(to.position - self.synced.position)];
        ring.read(self.synced.position, &mut lines);
        self.replace_segment(self.synced.sequence, &lines)?;
        (self.written, self.synced) = (to, to);
        Ok(())
    }

    /// Starts a segment with these lines, synced, and takes its name only then: so a segment is
    /// there with its header and those records, or not at all. What the one before it holds beyond its
    /// last good sync is in the new one, and is cut off; where that cannot be done, readers pass over it.
    fn replace_segment(&mut self, first: u64, lines: &[u8]) -> Result<(), AuditError> {
        assert!(self.syncing.is_none(), "a sync is under way");
        let unfinished = segment::unfinished_path(&self.folder, first);
        let segment = self.make_segment(&unfinished, first, lines).inspect_err(|_| {
            // Its space is needed. Where it cannot be removed now, the next start does.
            let _ = self.files.remove(&unfinished);
        })?;
        if let Some(old) = self.segment.replace(segment)
            && let Err(error) = old.file.truncate(old.synced)
        {
            tracing::warn!(%error, segment = %old.path.display(), "unused space was not given back");
        }
        self.failed = false;
        Ok(())
    }

    fn make_segment(
        &self,
        unfinished: &Path,
        first: u64,
        lines: &[u8],
    ) -> Result<Segment, AuditError> {
        let folder = &self.folder;
        let path = segment::path(folder, first);
        let wrong = |what| AuditError::file(what, unfinished.to_owned());
        let header = segment::header(self.node, first);
        let length = (header.len() + lines.len()) as u64;
        self.files.create_folder(folder).map_err(AuditError::file("make", folder.clone()))?;
        let file = self.files.create(unfinished).map_err(wrong("make"))?;
        file.allocate(self.segment_bytes.max(length)).map_err(wrong("take space for"))?;
        file.write_at(0, &header)
            .and_then(|()| file.write_at(header.len() as u64, lines))
            .map_err(wrong("write"))?;
        file.sync().map_err(wrong("sync"))?;
        self.files.rename(unfinished, &path).map_err(wrong("rename"))?;
        self.files.sync_folder(folder).map_err(AuditError::file("sync", folder.clone()))?;
        let header = header.len() as u64;
        Ok(Segment { file, path, header, length, synced: length })
    }

    /// Syncs, and gives the unused rest of the segment back.
    pub(crate) fn finish(&mut self) -> Result<(), AuditError> {
        self.sync()?;
        let Some(segment) = &self.segment else { return Ok(()) };
        segment.file.truncate(segment.length).map_err(AuditError::file("cut", segment.path.clone()))
    }
}

/// Bytes of the whole lines that fit in. `None`: not one does. The first one of a segment fits always.
fn whole_lines(lines: &[u8], room: u64, first: bool) -> Option<usize> {
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(lines.len());
    let end = lines[..room].iter().rposition(|byte| *byte == b'\n');
    let one = || lines.iter().position(|byte| *byte == b'\n');
    end.or_else(|| first.then(one).flatten()).map(|end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FaultyFiles;

    #[test]
    fn lines_that_came_while_a_write_failed_follow_it_into_the_next_segment() {
        let disk = FaultyFiles::new();
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        let region = "eu-west-1".parse().expect("a Region");
        let config = TrailConfig::new(PathBuf::from("/audit"), 1, region);
        let ring = Ring::create(&*files, &config).expect("a ring");
        let mut end = Mark { position: 0, sequence: 1 };
        let mut writer = Writer::open(files, &config, 1, &[], end).expect("a segment");
        let line = |sequence| {
            let mut line = Vec::new();
            segment::line(&mut line, sequence, 1, 0, b"}}");
            line
        };
        let put = |end: &mut Mark| {
            let line = line(end.sequence);
            ring.write(end.position, &line);
            end.position += line.len() as u64;
            end.sequence += 1;
            *end
        };
        writer.write(&ring, put(&mut end)).expect("written");
        disk.set_faults(|faults| faults.torn_writes = Some(10));
        writer.write(&ring, put(&mut end)).expect_err("torn");
        writer.give_up_segment();
        let to = put(&mut end);
        assert!(writer.begin_sync().is_none(), "a segment that failed is not synced again");
        writer.start_again(&ring, to).expect_err("still torn");
        disk.set_faults(|faults| faults.torn_writes = None);
        writer.start_again(&ring, to).expect("a segment");
        assert_eq!((writer.synced(), writer.is_covered()), (to, true));
        writer.write(&ring, put(&mut end)).expect("written");
        let sync = writer.begin_sync().expect("something to sync");
        assert!(writer.is_covered());
        writer.write(&ring, put(&mut end)).expect("written");
        assert!(!writer.is_covered(), "the sync under way does not cover it");
        writer.end_sync(sync, Ok(())).expect("synced");
        assert!(!writer.is_covered());
        writer.finish().expect("synced");
        let text = disk.content(&segment::path(&config.folder, 1)).expect("the segment");
        let whole = [segment::header(1, 1), line(1), line(2), line(3), line(4), line(5)].concat();
        assert_eq!(text, whole);
    }
}
