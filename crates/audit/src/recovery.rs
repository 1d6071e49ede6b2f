//! What a start does about the end of the last run: half-written bytes are cut off, and the next sequence
//! number is found.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{AuditError, Damage};
use crate::files::{Files, SegmentFile};
use crate::ring;
use crate::segment;
use crate::walk::{Step, Walk};

/// What was found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The number of the next record.
    pub next_sequence: u64,
    /// Records that were in no segment yet, and were taken up from the ring.
    pub from_ring: u64,
    /// Segments that were there.
    pub segments: usize,
    /// What was cut off the last segment.
    pub cut: Option<Cut>,
    /// Damage in the last segment that records follow, so that it is none of a crash: it was left as it
    /// is. (A crash of the machine can do it too, in records of its last 100 ms.)
    pub damaged: Vec<Damage>,
    /// A last segment that had nothing readable in it, and the name it has now.
    pub moved_aside: Option<PathBuf>,
}

/// Bytes that were no whole record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: PathBuf,
    /// Its length now, in bytes.
    pub offset: u64,
    /// How many bytes were cut off, without the zeros of unused space.
    pub bytes: u64,
}

/// Looks at the last segment and makes it end with its last whole record.
pub(crate) fn recover(files: &dyn Files, folder: &Path) -> Result<Recovery, AuditError> {
    files.create_folder(folder).map_err(AuditError::file("make", folder.to_owned()))?;
    let names = files.list(folder).map_err(AuditError::file("list", folder.to_owned()))?;
    for name in names.iter().filter(|name| segment::is_unfinished(name)) {
        let path = folder.join(name);
        files.remove(&path).map_err(AuditError::file("remove", path.clone()))?;
    }
    let firsts = segment::firsts(&names);
    let mut recovery = Recovery {
        next_sequence: 1,
        from_ring: 0,
        segments: firsts.len(),
        cut: None,
        damaged: Vec::new(),
        moved_aside: None,
    };
    if let Some(first) = firsts.last() {
        let path = segment::path(folder, *first);
        let wrong = AuditError::file("read", path.clone());
        recover_last(files, folder, path, *first, &mut recovery).map_err(wrong)?;
    }
    Ok(recovery)
}

fn recover_last(
    files: &dyn Files,
    folder: &Path,
    path: PathBuf,
    first: u64,
    recovery: &mut Recovery,
) -> io::Result<()> {
    let file = files.open(&path, true)?;
    let mut walk = Walk::new(path.clone(), std::sync::Arc::clone(&file), first, None);
    let mut records_end = 0;
    let mut damaged = Vec::new();
    loop {
        match walk.step(false)? {
            Step::Record(_) => {
                records_end = walk.offset();
                recovery.damaged.append(&mut damaged);
            }
            Step::Damage(damage) => damaged.push(damage),
            Step::End => break,
        }
    }
    recovery.next_sequence = walk.expected();
    // Damage behind the last record is what a crash leaves, and goes; but where there is no record, it may
    // be the header that is damaged, and then nothing is thrown away.
    let header_damaged = records_end == 0 && !damaged.is_empty();
    let data_end = data_end(&*file, records_end)?;
    if header_damaged && data_end > 0 {
        let mut aside = path.clone().into_os_string();
        aside.push(segment::DAMAGED);
        files.rename(&path, aside.as_ref())?;
        recovery.moved_aside = Some(aside.into());
        return Ok(());
    }
    if records_end == 0 {
        // A header and no record: the new segment takes the same name.
        return Ok(());
    }
    if data_end > records_end {
        let bytes = data_end - records_end;
        recovery.cut = Some(Cut { file: path, offset: records_end, bytes });
    }
    if file.length()? > records_end {
        file.truncate(records_end)?;
    }
    // What the last run wrote and did not come to sync. A sync of its that failed may have left pages that the system
    // calls clean and the disk has not: only what is written anew is synced.
    if files.list(folder)?.iter().any(|name| name == ring::NAME) {
        rewrite(&*file, records_end.saturating_sub(ring::BYTES_MAX), records_end)?;
    }
    file.sync()?;
    Ok(())
}

/// Writes the bytes between two places again, as they are.
fn rewrite(file: &dyn SegmentFile, from: u64, to: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = from;
    while at < to {
        let wanted = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = file.read_at(at, &mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(at, &buffer[..read])?;
        at += read as u64;
    }
    Ok(())
}

/// Where the last byte that is no zero stands, from `from` on, and one.
fn data_end(file: &dyn SegmentFile, from: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let (mut at, mut end) = (from, from);
    loop {
        let read = file.read_at(at, &mut buffer)?;
        if read == 0 {
            return Ok(end);
        }
        if let Some(last) = buffer[..read].iter().rposition(|byte| *byte != 0) {
            end = at + last as u64 + 1;
        }
        at += read as u64;
    }
}
