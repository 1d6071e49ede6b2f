//! What a segment is made of: its name, its header, its lines, and how lines are read back.
//!
//! ```text
//! {"keywardAuditSegment":{"crc32":"...","version":1,"nodeId":1,"firstSequence":42}}
//! {"additionalEventData":{"keyward":{"crc32":"...","sequence":42,"nodeId":1,...}},...}
//! {"additionalEventData":{"keyward":{"crc32":"...","sequence":43,"nodeId":1,...}},...}
//! NUL, up to the preallocated length, while it is the last one
//! ```
//!
//! Every line carries the CRC-32 (ISO-HDLC, as in gzip) of all that follows the checksum's closing quote,
//! without the line break. It shows a damaged disk. It does not show a forger: for that, a later version
//! chains the lines by hash, and the header's `version` tells which rules a segment follows.

use std::io::{self, BufRead};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_model::NodeId;

use crate::files::SegmentFile;
use crate::json;
use crate::record::RECORD_BYTES_MAX;

/// The version of lines and header.
const VERSION: u64 = 1;

const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";
/// Digits of the first sequence number in a file's name: as many as the largest has.
const NAME_DIGITS: usize = 20;
/// What the name of a segment ends with while it is being made.
const UNFINISHED: &str = ".new";
/// What the name of a file ends with that was a segment once and holds nothing readable.
pub(crate) const DAMAGED: &str = ".damaged";

const HEADER_START: &[u8] = b"{\"keywardAuditSegment\":{\"crc32\":\"";
const LINE_START: &[u8] = b"{\"additionalEventData\":{\"keyward\":{\"crc32\":\"";
const CRC_DIGITS: usize = 8;
const BEFORE_SEQUENCE: &[u8] = b"\",\"sequence\":";
const BEFORE_NODE: &[u8] = b",\"nodeId\":";
/// Digits of the largest number.
const NUMBER_DIGITS: usize = 20;
/// The most that a line has before its record's body.
pub(crate) const BEFORE_BODY_BYTES: usize = LINE_START.len()
    + CRC_DIGITS
    + BEFORE_SEQUENCE.len()
    + NUMBER_DIGITS
    + BEFORE_NODE.len()
    + NUMBER_DIGITS;

/// The file of the segment whose first record has that sequence number.
pub(crate) fn path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{first:0NAME_DIGITS$}{SUFFIX}"))
}

/// The same while it is being made.
pub(crate) fn unfinished_path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{first:0NAME_DIGITS$}{SUFFIX}{UNFINISHED}"))
}

/// True for what [`unfinished_path`] makes.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(UNFINISHED).is_some_and(|name| first_in_name(name).is_some())
}

/// The first sequence number, from a segment's name.
pub(crate) fn first_in_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let right = digits.len() == NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| digits.parse().ok())?
}

/// The segments in a folder's names, oldest first.
pub(crate) fn firsts(names: &[String]) -> Vec<u64> {
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| first_in_name(name)).collect();
    firsts.sort_unstable();
    firsts
}

/// Fills in the checksum of the line that begins at `start` with `opening`, and adds the line break.
fn seal(out: &mut Vec<u8>, start: usize, opening: &[u8]) {
    let at = start + opening.len();
    let crc = crc32fast::hash(&out[at + CRC_DIGITS + 1..]);
    out[at..at + CRC_DIGITS].copy_from_slice(&json::hex_u32(crc));
    out.push(b'\n');
}

/// A segment's first line.
pub(crate) fn header(node: NodeId, first: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(HEADER_START);
    out.extend_from_slice(&[b'0'; CRC_DIGITS]);
    out.extend_from_slice(b"\",\"version\":");
    json::uint(&mut out, VERSION);
    out.extend_from_slice(b",\"nodeId\":");
    json::uint(&mut out, node);
    out.extend_from_slice(b",\"firstSequence\":");
    json::uint(&mut out, first);
    out.extend_from_slice(b"}}");
    seal(&mut out, 0, HEADER_START);
    out
}

/// Makes a line of a record's body, where it is: checksum, sequence and node before it, the event's id behind. The body
/// begins [`BEFORE_BODY_BYTES`] behind the buffer's start. Returns where the line begins.
///
/// Lines pass here one by one, in their order. A chain of hashes is made here one day: the hash of the
/// line before goes between checksum and sequence.
pub(crate) fn frame(buffer: &mut Vec<u8>, sequence: u64, node: NodeId, boot: u64) -> usize {
    let mut start = BEFORE_BODY_BYTES;
    let mut before = |bytes: &[u8]| {
        start -= bytes.len();
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
    };
    before(json::Digits::new(node).bytes());
    before(BEFORE_NODE);
    before(json::Digits::new(sequence).bytes());
    before(BEFORE_SEQUENCE);
    before(&[b'0'; CRC_DIGITS]);
    before(LINE_START);
    json::name(buffer, "eventID");
    json::uuid(buffer, &event_id(boot, sequence));
    buffer.push(b'}');
    seal(buffer, start, LINE_START);
    start
}

/// A line of a body that lies elsewhere.
#[cfg(test)]
pub(crate) fn line(out: &mut Vec<u8>, sequence: u64, node: NodeId, boot: u64, body: &[u8]) {
    let mut buffer = vec![0; BEFORE_BODY_BYTES];
    buffer.extend_from_slice(body);
    let start = frame(&mut buffer, sequence, node, boot);
    out.extend_from_slice(&buffer[start..]);
}

/// An event's id: unique, without drawing randomness for each record. A UUID of version 8 (RFC 9562,
/// section 5.8): 60 bits of the sequence number, 62 that were drawn when the trail was opened.
fn event_id(boot: u64, sequence: u64) -> [u8; 16] {
    let mut id = [0; 16];
    let sequence = (sequence >> 12) << 16 | 0x8000 | sequence & 0xfff;
    id[..8].copy_from_slice(&sequence.to_be_bytes());
    id[8..].copy_from_slice(&(1 << 63 | boot >> 2).to_be_bytes());
    id
}

/// What was wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// It does not begin as a record does.
    #[error("not a record of this version")]
    Form,
    /// The checksum does not fit.
    #[error("the checksum does not fit: bytes were changed")]
    Checksum,
    /// Longer than any record.
    #[error("longer than any record")]
    TooLong,
    /// Zeros where records follow.
    #[error("zeros with records behind them")]
    Zeros,
    /// The segment's first line is not a header of this version.
    #[error("the segment's header is not one of this version")]
    Header,
    /// Sequence numbers are missing.
    #[error("records are missing: {expected} was expected next, and {found} follows")]
    Missing {
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A number that came before.
    #[error("out of order: {expected} was expected next, and {found} follows")]
    Order {
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
}

/// Checks form and checksum of what follows `opening`; gives what follows the checksum.
fn checked<'a>(line: &'a [u8], opening: &[u8]) -> Result<&'a [u8], Flaw> {
    let rest = line.strip_prefix(opening).ok_or(Flaw::Form)?;
    let (digits, rest) = rest.split_at_checked(CRC_DIGITS).ok_or(Flaw::Form)?;
    if rest.is_empty() {
        return Err(Flaw::Form);
    }
    if digits == json::hex_u32(crc32fast::hash(&rest[1..])) && rest[0] == b'"' {
        Ok(rest)
    } else {
        Err(Flaw::Checksum)
    }
}

/// The sequence number of a whole record's line, without its line break.
pub(crate) fn check_line(line: &[u8]) -> Result<u64, Flaw> {
    sequence_in(checked(line, LINE_START)?).ok_or(Flaw::Form)
}

/// The number that a line shows, whole or not.
pub(crate) fn sequence_of(line: &[u8]) -> Option<u64> {
    sequence_in(line.strip_prefix(LINE_START)?.get(CRC_DIGITS..)?)
}

/// The number, from what follows the checksum.
fn sequence_in(rest: &[u8]) -> Option<u64> {
    let rest = rest.strip_prefix(BEFORE_SEQUENCE)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// Where the byte stands first. (The standard library's search, which reads many bytes at once.)
fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let at = rest.skip_until(byte).ok()?.checked_sub(1)?;
    (bytes[at] == byte).then_some(at)
}

/// The first line break or zero.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let end = find(b'\n', bytes);
    find(0, &bytes[..end.unwrap_or(bytes.len())]).or(end)
}

/// The first line that has its line break, without it, and what follows.
pub(crate) fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    find(b'\n', bytes).map(|end| (&bytes[..end], &bytes[end + 1..]))
}

/// True when the line is a header of this version.
pub(crate) fn check_header(line: &[u8]) -> bool {
    checked(line, HEADER_START).is_ok_and(|rest| {
        rest.strip_prefix(b"\",\"version\":1,").is_some_and(|rest| rest.ends_with(b"}}"))
    })
}

/// What [`Lines::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A line that has its line break; see [`Lines::line`].
    Line,
    /// A line so long that it is none; all up to its line break was passed over.
    TooLong,
    /// Zeros, and data behind them; all up to there was passed over.
    Zeros,
    /// The end: of the file, or of what was written. Bytes of a line without its line break may stand
    /// there. More may come.
    End,
}

/// Reads lines, a piece of the file at a time.
pub(crate) struct Lines {
    file: Arc<dyn SegmentFile>,
    buffer: Vec<u8>,
    /// The part of the buffer that is read and not yet given out.
    held: Range<usize>,
    /// Where in the file the held part begins.
    offset: u64,
    line: Range<usize>,
    line_offset: u64,
}

/// Bytes of one read.
const READ_BYTES: usize = 256 * 1024;

impl Lines {
    pub(crate) fn new(file: Arc<dyn SegmentFile>, offset: u64) -> Self {
        Self { file, buffer: Vec::new(), held: 0..0, offset, line: 0..0, line_offset: offset }
    }

    pub(crate) fn file(&self) -> Arc<dyn SegmentFile> {
        Arc::clone(&self.file)
    }

    /// The last line, without its line break.
    pub(crate) fn line(&self) -> &[u8] {
        &self.buffer[self.line.clone()]
    }

    /// Where the last piece began.
    pub(crate) fn line_offset(&self) -> u64 {
        self.line_offset
    }

    /// Where the next piece begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    fn take(&mut self, bytes: usize) {
        self.held.start += bytes;
        self.offset += bytes as u64;
    }

    /// Reads more behind what is held. False at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.held.clone(), 0);
        self.held = 0..self.held.len();
        self.line = 0..0;
        if self.buffer.len() < self.held.end + READ_BYTES {
            self.buffer.resize(self.held.end + READ_BYTES, 0);
        }
        let at = self.offset + self.held.end as u64;
        let read = self.file.read_at(at, &mut self.buffer[self.held.end..])?;
        self.held.end += read;
        Ok(read > 0)
    }

    /// Forgets what was read ahead: it is read again.
    fn forget(&mut self) {
        self.held = 0..0;
    }

    /// Goes back to where the last piece began, and reads it again.
    pub(crate) fn back(&mut self) {
        self.offset = self.line_offset;
        self.forget();
    }

    /// Goes on in another file, at the same place.
    pub(crate) fn reopened(&mut self, file: Arc<dyn SegmentFile>) {
        self.file = file;
        self.forget();
    }

    /// The next piece. In a segment that is `growing`, a zero is the end for now, and what may stand
    /// behind it is not looked for.
    pub(crate) fn next(&mut self, growing: bool) -> io::Result<Piece> {
        self.line_offset = self.offset;
        let mut looked = 0;
        loop {
            let held = &self.buffer[self.held.clone()];
            let end = find_end(&held[looked..]);
            match end.map(|end| (looked + end, held[looked + end])) {
                Some((end, b'\n')) if end <= RECORD_BYTES_MAX => {
                    self.line = self.held.start..self.held.start + end;
                    self.take(end + 1);
                    return Ok(Piece::Line);
                }
                Some((end, b'\n')) => {
                    self.take(end + 1);
                    return Ok(Piece::TooLong);
                }
                Some((end, _)) => return self.zeros(end, growing),
                None => looked = held.len(),
            }
            if looked > RECORD_BYTES_MAX {
                return self.pass_over(looked);
            }
            if !self.fill()? {
                return Ok(Piece::End);
            }
        }
    }

    /// Passes over what is no line, up to a line break or a zero.
    fn pass_over(&mut self, looked: usize) -> io::Result<Piece> {
        self.take(looked);
        loop {
            let held = &self.buffer[self.held.clone()];
            if let Some(end) = find_end(held) {
                self.take(end + usize::from(held[end] == b'\n'));
                return Ok(Piece::TooLong);
            }
            self.take(held.len());
            if !self.fill()? {
                return Ok(Piece::TooLong);
            }
        }
    }

    /// A zero, `at` bytes ahead: the end, unless something follows. A writer at work may have been met
    /// between two pages of one write, so the byte is read a second time before it counts as damage.
    fn zeros(&mut self, at: usize, growing: bool) -> io::Result<Piece> {
        let zero = self.offset + at as u64;
        let data = if growing { None } else { self.data_behind(zero)? };
        self.forget();
        let Some(data) = data else { return Ok(Piece::End) };
        let mut again = [0];
        if self.file.read_at(zero, &mut again)? == 1 && again != [0] {
            return self.next(growing);
        }
        self.offset = data;
        Ok(Piece::Zeros)
    }

    /// Where the first byte that is no zero stands, from `from` on.
    fn data_behind(&self, from: u64) -> io::Result<Option<u64>> {
        let mut buffer = vec![0; READ_BYTES];
        let mut at = from;
        loop {
            let read = self.file.read_at(at, &mut buffer)?;
            if read == 0 {
                return Ok(None);
            }
            if let Some(data) = buffer[..read].iter().position(|byte| *byte != 0) {
                return Ok(Some(at + data as u64));
            }
            at += read as u64;
        }
    }
}
