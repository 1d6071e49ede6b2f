//! Reading the trail: once through with a filter, or following it as it grows. Segments are streamed, so
//! memory does not grow with the trail.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_model::Timestamp;
use serde::Deserialize;

use crate::error::{Damage, ReadError};
use crate::files::{Files, SegmentFile};
use crate::json;
use crate::ring;
use crate::segment::{self, Flaw};
use crate::walk::{Step, Walk};

/// Which end comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they were written.
    #[default]
    OldestFirst,
    /// The other way round.
    NewestFirst,
}

/// Which records are wanted. What is `None` is not looked at.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Not before this time.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// The caller's ARN.
    pub principal: Option<String>,
    /// A key, by ARN or id: among the record's resources, or as the request names it.
    pub key: Option<String>,
    /// The operation, by AWS's name.
    pub name: Option<String>,
    /// The error code, as the record has it (`AccessDenied`) or as the API does.
    pub error: Option<String>,
    /// At most so many records.
    pub limit: Option<usize>,
    /// Which end comes first.
    pub order: Order,
}

/// A record as it is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub sequence: u64,
    /// The JSON, without its line break.
    pub line: String,
}

/// What filters look at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts<'a> {
    #[serde(borrow)]
    event_time: Cow<'a, str>,
    #[serde(borrow)]
    event_name: Cow<'a, str>,
    error_code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    user_identity: Identity<'a>,
    #[serde(borrow)]
    resources: Vec<Resource<'a>>,
    #[serde(borrow)]
    request_parameters: Option<Parameters<'a>>,
}

#[derive(Deserialize)]
struct Identity<'a> {
    arn: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow, rename = "ARN")]
    arn: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Parameters<'a> {
    key_id: Option<Cow<'a, str>>,
    target_key_id: Option<Cow<'a, str>>,
    source_key_id: Option<Cow<'a, str>>,
    destination_key_id: Option<Cow<'a, str>>,
}

/// A filter, ready for use.
struct Sieve {
    filter: Filter,
    since: Option<String>,
    until: Option<String>,
}

impl Sieve {
    fn new(filter: Filter) -> Self {
        // Times in records all have one shape, in which their order is that of their texts.
        let text = |time: Option<Timestamp>| time.map(json::iso_8601_text);
        let (since, until) = (text(filter.since), text(filter.until));
        Self { filter, since, until }
    }

    /// Whether a record is wanted. `None` when it is no record, though its checksum fits.
    fn wants(&self, line: &str) -> Option<bool> {
        let facts: Facts<'_> = serde_json::from_str(line).ok()?;
        let Filter { principal, key, name, error, .. } = &self.filter;
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let time = &*facts.event_time;
        let error_code = facts.error_code.as_deref();
        Some(
            self.since.as_deref().is_none_or(|since| time >= since)
                && self.until.as_deref().is_none_or(|until| time < until)
                && same(name, Some(&facts.event_name))
                && same(principal, facts.user_identity.arn.as_deref())
                && (same(error, error_code) || same(error, error_code.map(api_name).as_deref()))
                && key.as_deref().is_none_or(|key| facts.touches(key)),
        )
    }
}

/// The API's name for a code in a record, where they differ.
fn api_name(code: &str) -> String {
    if code == "AccessDenied" { "AccessDeniedException".to_owned() } else { code.to_owned() }
}

impl Facts<'_> {
    fn touches(&self, key: &str) -> bool {
        // A bare id stands for the key of any ARN that ends with it.
        let names = |text: &str| match (text.rsplit_once(":key/"), key.rsplit_once(":key/")) {
            (Some((_, id)), None) => id == key,
            (None, Some((_, id))) => id == text,
            (Some(_), Some(_)) | (None, None) => text == key,
        };
        let asked = self.request_parameters.iter().flat_map(|asked| {
            [&asked.key_id, &asked.target_key_id, &asked.source_key_id, &asked.destination_key_id]
        });
        self.resources.iter().any(|resource| names(&resource.arn))
            || asked.flatten().any(|text| names(text))
    }
}

/// When a record was written, as its text.
pub(crate) fn time_of(line: &[u8]) -> Option<String> {
    let facts: Facts<'_> = serde_json::from_slice(line).ok()?;
    Some(facts.event_time.into_owned())
}

fn list(files: &dyn Files, folder: &Path) -> Result<Vec<u64>, ReadError> {
    let names = files.list(folder).map_err(ReadError::file("list", folder.to_owned()))?;
    Ok(segment::firsts(&names))
}

fn start(
    files: &dyn Files,
    folder: &Path,
    first: u64,
    next_segment: Option<u64>,
) -> Result<Option<Walk>, ReadError> {
    let path = segment::path(folder, first);
    match files.open(&path, false) {
        Ok(file) => Ok(Some(Walk::new(path, file, first, next_segment))),
        // Removed since the folder was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReadError::File { what: "open", path, source }),
    }
}

/// Reads the trail in a folder, as far as it goes now. Damage is an item of its own and does not end the
/// reading. Blocks on the disk.
///
/// # Errors
/// [`ReadError::File`] when the folder cannot be listed.
pub fn read(files: Arc<dyn Files>, folder: &Path, filter: Filter) -> Result<Reader, ReadError> {
    let firsts = list(&*files, folder)?;
    let nexts = firsts.iter().skip(1).copied().map(Some).chain([None]);
    let segments = firsts.iter().copied().zip(nexts).collect();
    let left = filter.limit.unwrap_or(usize::MAX);
    Ok(Reader {
        files,
        folder: folder.to_owned(),
        segments,
        left,
        sieve: Sieve::new(filter),
        newest: None,
        walk: None,
        back: None,
    })
}

/// What [`read`] gives.
pub struct Reader {
    files: Arc<dyn Files>,
    folder: PathBuf,
    /// Segments still to be read: first number, and that of the next.
    segments: VecDeque<(u64, Option<u64>)>,
    left: usize,
    sieve: Sieve,
    /// The number of the first record that no segment has, once the last segment was walked through.
    newest: Option<u64>,
    walk: Option<Walk>,
    back: Option<Backwards>,
}

/// One segment, from its end.
struct Backwards {
    path: PathBuf,
    file: Arc<dyn SegmentFile>,
    found: Vec<Found>,
    /// The number of the record that would come next.
    expected: u64,
    /// What comes before it, where that is open already.
    older: Option<Box<Self>>,
}

enum Found {
    Record { sequence: u64, offset: u64, bytes: usize },
    Damage(Damage),
}

impl Iterator for Reader {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let item = match self.sieve.filter.order {
            Order::OldestFirst => self.forwards(),
            Order::NewestFirst => self.backwards(),
        };
        match item.transpose()? {
            Ok(entry) => {
                self.left -= 1;
                Some(Ok(entry))
            }
            Err(error) => {
                if matches!(error, ReadError::File { .. }) {
                    self.left = 0;
                }
                Some(Err(error))
            }
        }
    }
}

impl Reader {
    fn forwards(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            let Some(walk) = &mut self.walk else {
                let Some((first, next)) = self.segments.pop_front() else { return Ok(None) };
                self.walk = start(&*self.files, &self.folder, first, next)?;
                continue;
            };
            match walk.step(false).map_err(ReadError::file("read", self.folder.clone()))? {
                Step::Record(sequence) => {
                    let at = (walk.path(), walk.line_offset());
                    if let Some(entry) = sift(&self.sieve, sequence, walk.line(), at)? {
                        return Ok(Some(entry));
                    }
                }
                Step::Damage(damage) => return Err(damage.into()),
                Step::End => {
                    let expected = walk.expected();
                    self.walk = None;
                    if self.segments.is_empty() && self.newest.is_none() {
                        self.newest = Some(expected);
                        let wrong = ReadError::file("read", ring::path(&self.folder));
                        self.walk =
                            ring::walk(&*self.files, &self.folder, expected).map_err(wrong)?;
                    }
                }
            }
        }
    }

    fn backwards(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            let Some(back) = &mut self.back else {
                let Some((first, next)) = self.segments.pop_back() else { return Ok(None) };
                let walk = start(&*self.files, &self.folder, first, next)?;
                let wrong = || ReadError::file("read", self.folder.clone());
                self.back = walk.map(Backwards::new).transpose().map_err(wrong())?;
                if self.newest.is_none()
                    && let Some(segment) = &mut self.back
                {
                    self.newest = Some(segment.expected);
                    let walk = ring::walk(&*self.files, &self.folder, segment.expected)
                        .map_err(ReadError::file("read", ring::path(&self.folder)))?;
                    if let Some(mut newest) =
                        walk.map(Backwards::new).transpose().map_err(wrong())?
                    {
                        std::mem::swap(segment, &mut newest);
                        segment.older = Some(Box::new(newest));
                    }
                }
                continue;
            };
            match back.found.pop() {
                Some(Found::Record { sequence, offset, bytes }) => {
                    let mut line = vec![0; bytes];
                    let wrong = ReadError::file("read", back.path.clone());
                    back.file.read_at(offset, &mut line).map_err(wrong)?;
                    if let Some(entry) = sift(&self.sieve, sequence, &line, (&back.path, offset))? {
                        return Ok(Some(entry));
                    }
                }
                Some(Found::Damage(damage)) => return Err(damage.into()),
                None => self.back = back.older.take().map(|older| *older),
            }
        }
    }
}

impl Backwards {
    /// Walks through the segment once, and remembers where its records are.
    fn new(mut walk: Walk) -> io::Result<Self> {
        let mut found = Vec::new();
        loop {
            match walk.step(false)? {
                Step::Record(sequence) => found.push(Found::Record {
                    sequence,
                    offset: walk.line_offset(),
                    bytes: walk.line().len(),
                }),
                Step::Damage(damage) => found.push(Found::Damage(damage)),
                Step::End => break,
            }
        }
        let (path, file) = (walk.path().to_owned(), walk.file());
        Ok(Self { path, file, found, expected: walk.expected(), older: None })
    }
}

fn sift(
    sieve: &Sieve,
    sequence: u64,
    line: &[u8],
    (file, offset): (&Path, u64),
) -> Result<Option<Entry>, ReadError> {
    let no_record = || Damage { file: file.to_owned(), offset, flaw: Flaw::Form };
    let line = std::str::from_utf8(line).map_err(|_| no_record())?;
    let wanted = sieve.wants(line).ok_or_else(no_record)?;
    Ok(wanted.then(|| Entry { sequence, line: line.to_owned() }))
}

/// Follows the trail in a folder: records after number `after`, or those that come from now on, each some
/// milliseconds after its call was answered. The filter's order and limit are not looked at. Blocks on the disk.
///
/// # Errors
/// [`ReadError::File`] when the folder cannot be read.
pub fn follow(
    files: Arc<dyn Files>,
    folder: &Path,
    filter: Filter,
    after: Option<u64>,
) -> Result<Follower, ReadError> {
    let sieve = Sieve::new(filter);
    let folder = folder.to_owned();
    let mut follower = Follower { files, folder, sieve, wanted: 0, current: None };
    match after {
        Some(after) => follower.wanted = after + 1,
        None => follower.go_to_end()?,
    }
    Ok(follower)
}

/// What [`follow`] gives.
pub struct Follower {
    files: Arc<dyn Files>,
    folder: PathBuf,
    sieve: Sieve,
    /// Records with smaller numbers were given, or are not wanted.
    wanted: u64,
    /// The segment it is in: its first number, and how far it has come.
    current: Option<(u64, Walk)>,
}

impl Follower {
    /// The next record that is there. `None` when there is none yet: ask again after a while.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] is told once and passed; [`ReadError::File`] may pass when asked again.
    pub fn poll_next(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            let Some(sequence) = self.advance()? else { return Ok(None) };
            let Some((_, walk)) = &self.current else { unreachable!("it is in a segment") };
            let at = (walk.path(), walk.line_offset());
            if let Some(entry) = sift(&self.sieve, sequence, walk.line(), at)? {
                return Ok(Some(entry));
            }
        }
    }

    fn go_to_end(&mut self) -> Result<(), ReadError> {
        self.wanted = list(&*self.files, &self.folder)?.last().copied().unwrap_or(0);
        loop {
            match self.advance() {
                Ok(Some(_)) | Err(ReadError::Damaged(_)) => {}
                Ok(None) => return self.pass_ring(),
                Err(error) => return Err(error),
            }
        }
    }

    /// What only the ring has now will come into the segment, and is not new then.
    fn pass_ring(&mut self) -> Result<(), ReadError> {
        let Some((_, segment)) = &self.current else { return Ok(()) };
        let walk = ring::walk(&*self.files, &self.folder, segment.expected())
            .map_err(ReadError::file("read", ring::path(&self.folder)))?;
        if let Some(mut walk) = walk {
            let wrong = || ReadError::file("read", self.folder.clone());
            while let Step::Record(sequence) = walk.step(false).map_err(wrong())? {
                self.wanted = sequence + 1;
            }
        }
        Ok(())
    }

    /// The next record's number, wanted by the filter or not.
    fn advance(&mut self) -> Result<Option<u64>, ReadError> {
        let mut followed = None;
        loop {
            if self.current.is_none() && !self.enter()? {
                return Ok(None);
            }
            let Some((first, walk)) = &mut self.current else { unreachable!("entered above") };
            let wrong = ReadError::file("read", self.folder.clone());
            match walk.step(followed.is_none()).map_err(wrong)? {
                Step::Record(sequence) if sequence < self.wanted => {}
                Step::Record(sequence) => {
                    self.wanted = sequence + 1;
                    return Ok(Some(sequence));
                }
                Step::Damage(damage) => return Err(damage.into()),
                Step::End if followed.is_some() => {
                    self.wanted = self.wanted.max(followed.take().unwrap_or(0));
                    self.current = None;
                }
                // What was written before the roll is read to its end before the next one is entered.
                Step::End => {
                    let firsts = list(&*self.files, &self.folder)?;
                    match firsts.iter().find(|next| **next > *first) {
                        Some(next) => {
                            followed = Some(*next);
                            walk.followed_by(*next);
                        }
                        None => return self.reopen().map(|()| None),
                    }
                }
            }
        }
    }

    /// Enters the segment that has the wanted number, or the first behind it.
    fn enter(&mut self) -> Result<bool, ReadError> {
        let firsts = list(&*self.files, &self.folder)?;
        let at = firsts.partition_point(|first| *first <= self.wanted).saturating_sub(1);
        let Some(first) = firsts.get(at) else { return Ok(false) };
        self.current = start(&*self.files, &self.folder, *first, None)?.map(|walk| (*first, walk));
        Ok(self.current.is_some())
    }

    /// A segment that followed a failure may have taken the place of this one.
    fn reopen(&mut self) -> Result<(), ReadError> {
        let Some((_, walk)) = &mut self.current else { return Ok(()) };
        match self.files.open(walk.path(), false) {
            Ok(file) => walk.reopened(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.current = None,
            Err(source) => {
                return Err(ReadError::File { what: "open", path: walk.path().to_owned(), source });
            }
        }
        Ok(())
    }
}
