//! A walk through one segment, record by record, which notices what is damaged and what is missing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Damage;
use crate::files::SegmentFile;
use crate::segment::{Flaw, Lines, Piece, check_header, check_line};

/// What a walk comes upon.
#[derive(Debug)]
pub(crate) enum Step {
    /// A record of that number; its line is [`Walk::line`].
    Record(u64),
    /// Damage. The walk goes on behind it. A run of damaged lines is told once.
    Damage(Damage),
    /// The end, or the end for now.
    End,
}

/// A walk through one segment.
pub(crate) struct Walk {
    path: PathBuf,
    lines: Lines,
    /// The number that should come next.
    expected: u64,
    /// The first number of the next segment: from there on records of this one do not count, for a
    /// segment that followed a failure begins with those that were not known to be on disk.
    next_segment: Option<u64>,
    /// Damage has been told, and no good record has come since.
    in_damage: bool,
    /// A record that came after some that are missing.
    found: Option<u64>,
}

impl Walk {
    /// From the segment's beginning. `next_segment` is the first number of the one behind it, if there is
    /// one.
    pub(crate) fn new(
        path: PathBuf,
        file: Arc<dyn SegmentFile>,
        first: u64,
        next_segment: Option<u64>,
    ) -> Self {
        let lines = Lines::new(file, 0);
        Self { path, lines, expected: first, next_segment, in_damage: false, found: None }
    }

    /// The segment's file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same, open.
    pub(crate) fn file(&self) -> Arc<dyn SegmentFile> {
        self.lines.file()
    }

    /// The last record's line, without its line break.
    pub(crate) fn line(&self) -> &[u8] {
        self.lines.line()
    }

    /// Where the last record's line begins, in bytes from the start of the file.
    pub(crate) fn line_offset(&self) -> u64 {
        self.lines.line_offset()
    }

    /// Where the walk has come to, in bytes from the start of the file.
    pub(crate) fn offset(&self) -> u64 {
        self.lines.offset()
    }

    /// The number that should come next.
    pub(crate) fn expected(&self) -> u64 {
        self.expected
    }

    /// The file was opened anew: one that followed a failure may have taken its place, with the same
    /// records at the same places.
    pub(crate) fn reopened(&mut self, file: Arc<dyn SegmentFile>) {
        self.lines.reopened(file);
    }

    /// There is a segment behind it now, which begins with that number.
    pub(crate) fn followed_by(&mut self, next_segment: u64) {
        self.next_segment = Some(next_segment);
    }

    /// The next step. In a segment that is `growing`, zeros are the end for now.
    pub(crate) fn step(&mut self, growing: bool) -> io::Result<Step> {
        loop {
            if let Some(found) = self.found.take() {
                return Ok(self.good(found));
            }
            if self.next_segment.is_some_and(|next| self.expected >= next) {
                return Ok(Step::End);
            }
            let flaw = match self.lines.next(growing)? {
                Piece::Line if self.lines.line_offset() == 0 => {
                    if check_header(self.lines.line()) {
                        continue;
                    }
                    Flaw::Header
                }
                Piece::Line => match self.checked(growing)? {
                    Ok(found) if found == self.expected => return Ok(self.good(found)),
                    Ok(found) if found < self.expected => {
                        Flaw::Order { expected: self.expected, found }
                    }
                    Ok(found) => match self.missing(found) {
                        Some(step) => return Ok(step),
                        None => continue,
                    },
                    Err(flaw) => flaw,
                },
                Piece::TooLong => Flaw::TooLong,
                Piece::Zeros => Flaw::Zeros,
                Piece::End => match self.next_segment {
                    Some(next) => match self.missing(next) {
                        Some(step) => return Ok(step),
                        None => continue,
                    },
                    None => return Ok(Step::End),
                },
            };
            if !std::mem::replace(&mut self.in_damage, true) {
                return Ok(Step::Damage(self.damage(flaw)));
            }
        }
    }

    fn good(&mut self, found: u64) -> Step {
        self.expected = found + 1;
        self.in_damage = false;
        Step::Record(found)
    }

    fn damage(&self, flaw: Flaw) -> Damage {
        Damage { file: self.path.clone(), offset: self.lines.line_offset(), flaw }
    }

    /// Numbers from the expected one up to the one found did not come. Told unless damage was, which
    /// explains it.
    fn missing(&mut self, found: u64) -> Option<Step> {
        let expected = std::mem::replace(&mut self.expected, found);
        if self.next_segment.is_none_or(|next| found < next) {
            self.found = Some(found);
        }
        let told = std::mem::replace(&mut self.in_damage, true);
        (!told).then(|| Step::Damage(self.damage(Flaw::Missing { expected, found })))
    }

    /// The line's number. A line that does not fit its checksum may have been met while it was written:
    /// it is read a second time before that counts.
    fn checked(&mut self, growing: bool) -> io::Result<Result<u64, Flaw>> {
        let checked = check_line(self.lines.line());
        if checked.is_ok() {
            return Ok(checked);
        }
        self.lines.back();
        match self.lines.next(growing)? {
            Piece::Line => Ok(check_line(self.lines.line())),
            _ => Ok(checked),
        }
    }
}
