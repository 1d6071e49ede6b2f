//! What touches the disk: one segment is written, synced, rolled, and replaced after a failure.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_model::NodeId;

use crate::config::{SEGMENT_BYTES_MIN, TrailConfig};
use crate::error::AuditError;
use crate::files::{Files, SegmentFile};
use crate::segment;

/// Bytes that are written and not synced at most: they are held in memory too, to be written again
/// where a sync fails. At 100,000 calls a second 100 ms have 9 MB.
const UNSYNCED_BYTES_MAX: usize = 32 * 1024 * 1024;

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
/// A record passes from `group` to `unsynced` and is forgotten once it is synced; after a failure
/// `unsynced` holds all that the disk is not known to have, in order, and starts the next segment.
pub(crate) struct Writer {
    files: Arc<dyn Files>,
    folder: PathBuf,
    node: NodeId,
    segment_bytes: u64,
    segment: Option<Segment>,
    /// Lines that are written next.
    group: Vec<u8>,
    /// Lines that were written, or should have been, and are not synced.
    unsynced: Vec<u8>,
    /// Lines that a sync under way covers; they come before `unsynced`.
    in_sync: Vec<u8>,
    /// The number of the first record that is not synced.
    first_unsynced: u64,
    /// The number after the last record that was taken over.
    end: u64,
    syncing: bool,
    failed: bool,
    rolled: bool,
}

/// A sync under way.
pub(crate) struct Sync {
    file: Arc<dyn SegmentFile>,
    path: PathBuf,
    length: u64,
    end: u64,
}

impl Sync {
    pub(crate) fn run(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Writer {
    pub(crate) fn new(files: Arc<dyn Files>, config: &TrailConfig, next: u64) -> Self {
        Self {
            files,
            folder: config.folder.clone(),
            node: config.node,
            segment_bytes: config.segment_bytes.max(SEGMENT_BYTES_MIN),
            segment: None,
            group: Vec::new(),
            unsynced: Vec::new(),
            in_sync: Vec::new(),
            first_unsynced: next,
            end: next,
            syncing: false,
            failed: false,
            rolled: false,
        }
    }

    /// Takes lines over, as the next group.
    pub(crate) fn take(&mut self, lines: &mut Vec<u8>) {
        self.group.clear();
        std::mem::swap(&mut self.group, lines);
    }

    pub(crate) fn is_syncing(&self) -> bool {
        self.syncing
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.unsynced.is_empty()
    }

    /// True when so much is held that the next group has to be synced.
    pub(crate) fn must_sync(&self) -> bool {
        self.in_sync.len() + self.unsynced.len() + self.group.len() > UNSYNCED_BYTES_MAX
    }

    /// True when the group does not fit into the segment any more.
    pub(crate) fn must_roll(&self) -> bool {
        self.segment.as_ref().is_some_and(|segment| {
            let full = segment.length + self.group.len() as u64 > self.segment_bytes;
            full && segment.length > segment.header
        })
    }

    /// Tells once that a segment was rolled.
    pub(crate) fn take_rolled(&mut self) -> bool {
        std::mem::take(&mut self.rolled)
    }

    /// Writes the group, whose last record comes before `end`; into a new segment where it does not fit
    /// any more. No sync may be under way then.
    pub(crate) fn write(&mut self, end: u64) -> Result<(), AuditError> {
        let rolled = if self.must_roll() { self.roll() } else { Ok(()) };
        // Held whatever happens next.
        self.end = end;
        self.unsynced.extend_from_slice(&self.group);
        rolled?;
        let Some(segment) = &mut self.segment else { unreachable!("a trail that is open has one") };
        let wrong = AuditError::file("write", segment.path.clone());
        segment.file.write_at(segment.length, &self.group).map_err(wrong)?;
        segment.length += self.group.len() as u64;
        Ok(())
    }

    fn roll(&mut self) -> Result<(), AuditError> {
        assert!(!self.syncing, "a sync of the segment is under way");
        self.sync()?;
        self.start_segment()?;
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
        if self.syncing || self.failed || self.unsynced.is_empty() {
            return None;
        }
        self.syncing = true;
        std::mem::swap(&mut self.in_sync, &mut self.unsynced);
        Some(Sync {
            file: Arc::clone(&segment.file),
            path: segment.path.clone(),
            length: segment.length,
            end: self.end,
        })
    }

    /// Takes note of how a sync ended. What it covered is held again where it failed.
    pub(crate) fn end_sync(
        &mut self,
        sync: Sync,
        result: io::Result<()>,
    ) -> Result<(), AuditError> {
        self.syncing = false;
        match result {
            Ok(()) => {
                self.in_sync.clear();
                self.first_unsynced = sync.end;
                if let Some(segment) = &mut self.segment {
                    segment.synced = sync.length;
                }
                Ok(())
            }
            Err(error) => {
                self.in_sync.append(&mut self.unsynced);
                std::mem::swap(&mut self.in_sync, &mut self.unsynced);
                Err(AuditError::file("sync", sync.path)(error))
            }
        }
    }

    /// After a failure: nothing is written to this segment any more, and these lines are held as well.
    pub(crate) fn hold(&mut self, lines: &mut Vec<u8>, end: u64) {
        self.failed = true;
        self.unsynced.append(lines);
        self.end = end;
    }

    /// Starts a segment with all that is held, synced, and takes its name only then: so a segment is
    /// there with its header and those records, or not at all. What the one before it holds beyond its
    /// last good sync is in the new one, and is cut off; where that cannot be done, readers pass over it.
    pub(crate) fn start_segment(&mut self) -> Result<(), AuditError> {
        assert!(!self.syncing && self.in_sync.is_empty(), "a sync is under way");
        let first = self.first_unsynced;
        let unfinished = segment::unfinished_path(&self.folder, first);
        let segment = self.make_segment(&unfinished, first).inspect_err(|_| {
            // Its space is needed. Where it cannot be removed now, the next start does.
            let _ = self.files.remove(&unfinished);
        })?;
        if let Some(old) = self.segment.replace(segment)
            && let Err(error) = old.file.truncate(old.synced)
        {
            tracing::warn!(%error, segment = %old.path.display(), "unused space was not given back");
        }
        self.unsynced.clear();
        self.first_unsynced = self.end;
        self.failed = false;
        Ok(())
    }

    fn make_segment(&self, unfinished: &Path, first: u64) -> Result<Segment, AuditError> {
        let folder = &self.folder;
        let path = segment::path(folder, first);
        let wrong = |what| AuditError::file(what, unfinished.to_owned());
        let header = segment::header(self.node, first);
        let length = (header.len() + self.unsynced.len()) as u64;
        self.files.create_folder(folder).map_err(AuditError::file("make", folder.clone()))?;
        let file = self.files.create(unfinished).map_err(wrong("make"))?;
        file.allocate(self.segment_bytes.max(length)).map_err(wrong("take space for"))?;
        file.write_at(0, &header)
            .and_then(|()| file.write_at(header.len() as u64, &self.unsynced))
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
        let mut writer = Writer::new(files, &config, 1);
        writer.start_segment().expect("a segment");
        let line = |sequence| {
            let mut line = Vec::new();
            segment::line(&mut line, sequence, 1, 0, b"}}");
            line
        };
        let write = |writer: &mut Writer, sequence| {
            writer.take(&mut line(sequence));
            writer.write(sequence + 1)
        };
        write(&mut writer, 1).expect("written");
        disk.set_faults(|faults| faults.torn_writes = Some(10));
        write(&mut writer, 2).expect_err("torn");
        writer.hold(&mut line(3), 4);
        assert!(writer.begin_sync().is_none(), "a segment that failed is not synced again");
        writer.start_segment().expect_err("still torn");
        disk.set_faults(|faults| faults.torn_writes = None);
        writer.start_segment().expect("a segment");
        write(&mut writer, 4).expect("written");
        writer.finish().expect("synced");
        let text = disk.content(&segment::path(&config.folder, 1)).expect("the segment");
        let whole = [segment::header(1, 1), line(1), line(2), line(3), line(4)].concat();
        assert_eq!(text, whole);
    }
}
