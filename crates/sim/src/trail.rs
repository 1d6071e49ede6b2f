//! The audit trails of simulated machines: the shipped trail on a disk in memory, which may be full, slow, gone or lose
//! what was not synced. What is written passes here, so that it is known what the operating system has.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward_audit::testing::{Faults, FaultyFiles};
use keyward_audit::{Files, Filter, MappedFile, SegmentFile, Trail, TrailConfig};
use keyward_env::Env;
use keyward_model::{NodeId, Region};
use keyward_service::Audit;
use parking_lot::Mutex;

use crate::dice::Dice;
use crate::env::SimEnv;

/// Where a trail lies on its disk.
const FOLDER: &str = "/audit";
/// Small enough to be rolled in a run.
const SEGMENT_BYTES: u64 = 1024 * 1024;
/// A record that was answered is on disk within this, while process and disk are well. Documented are 100 ms; here a
/// disk may take 25 ms for each of the three things that it is asked for meanwhile (a write, the sync before, the sync),
/// and tasks are put off for 8 ms now and then.
const SYNCED_WITHIN: Duration = Duration::from_millis(180);
/// A trail tries again so long after a failure, on a clock that may be slow.
const BACK_WITHIN: Duration = Duration::from_millis(600);

/// The id of a request, as records have it.
pub type RequestId = [u8; 16];

/// What a record says about a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The operation.
    pub event: String,
    /// The error code, as records have it.
    pub error: Option<String>,
}

/// What the operating system was handed.
type Written = Mutex<BTreeMap<RequestId, Recorded>>;

/// The audit disk of one machine.
#[derive(Clone)]
pub struct AuditDisk {
    files: FaultyFiles,
    written: Arc<Written>,
    /// When the process stood still, was down, or the disk was broken: from, to.
    disturbed: Arc<Mutex<Vec<(Duration, Duration)>>>,
    /// Since when the disk has been broken, if it is.
    broken_since: Arc<Mutex<Option<Duration>>>,
    /// What was answered between these may have been lost in a power cut.
    lost: Arc<Mutex<Vec<(Duration, Duration)>>>,
}

impl Default for AuditDisk {
    fn default() -> Self {
        Self {
            files: FaultyFiles::new(),
            written: Arc::default(),
            disturbed: Arc::default(),
            broken_since: Arc::default(),
            lost: Arc::default(),
        }
    }
}

impl AuditDisk {
    /// Opens the trail of a node that starts.
    ///
    /// # Errors
    /// Why it cannot: the node must not start then.
    pub async fn open(&self, env: &SimEnv, node: NodeId, region: Region) -> Result<Audit, String> {
        let kept = TrailConfig {
            segment_bytes: SEGMENT_BYTES,
            ..TrailConfig::new(PathBuf::from(FOLDER), node, region.clone())
        };
        let files = Tapped { files: self.files.clone(), written: Arc::clone(&self.written) };
        let of_trail = env.clone();
        let opened = env.blocking(move || Trail::open(&of_trail, Arc::new(files), kept)).await;
        let (trail, _) = opened.map_err(|error| error.to_string())?;
        let mut boot = [0; 8];
        env.entropy().fill(&mut boot);
        Ok(Audit::new(Some(trail), region, boot))
    }

    /// What the operating system has been handed about that call.
    #[must_use]
    pub fn recorded(&self, id: &RequestId) -> Option<Recorded> {
        self.written.lock().get(id).cloned()
    }

    /// Breaks the disk, or mends it.
    pub fn set_faults(&self, faults: Faults, now: Duration) {
        self.files.set_faults(|before| *before = faults);
        let mut broken_since = self.broken_since.lock();
        if faults != Faults::default() {
            broken_since.get_or_insert(now);
        } else if let Some(since) = broken_since.take() {
            self.was_disturbed(since, now);
        }
    }

    /// From then to then nothing could be synced, or need not have been.
    pub fn was_disturbed(&self, from: Duration, to: Duration) {
        self.disturbed.lock().push((from, to + BACK_WITHIN));
    }

    /// The machine loses power. Of the changes that were not synced, the first ones survive, the next one in part.
    #[must_use]
    pub fn power_cut(&self, now: Duration, dice: &mut Dice) -> Self {
        // It comes back whole.
        if let Some(since) = self.broken_since.lock().take() {
            self.was_disturbed(since, now);
        }
        let mut from = now.saturating_sub(SYNCED_WITHIN);
        let disturbed = self.disturbed.lock().clone();
        for (began, ended) in disturbed.into_iter().rev() {
            if ended >= from {
                from = from.min(began.saturating_sub(SYNCED_WITHIN));
            }
        }
        self.lost.lock().push((from, now));
        let (whole, part) = (dice.index(40), dice.index(2000));
        let files = self.files.crash(|number| match number.cmp(&whole) {
            std::cmp::Ordering::Less => usize::MAX,
            std::cmp::Ordering::Equal => part,
            std::cmp::Ordering::Greater => 0,
        });
        Self { files, ..self.clone() }
    }

    /// Whether a record of a call that was answered then may have been lost in a power cut.
    #[must_use]
    pub fn may_have_lost(&self, answered: Duration) -> bool {
        self.lost.lock().iter().any(|(from, to)| (*from..=*to).contains(&answered))
    }

    /// When power was lost, for a failure's text.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("may be lost: {:?}", self.lost.lock())
    }

    /// True if power was ever lost.
    #[must_use]
    pub fn lost_power(&self) -> bool {
        !self.lost.lock().is_empty()
    }

    /// Everything on disk, once it is whole again, through the shipped reader: every record's line, and what is damaged.
    pub fn read(&self, mut line: impl FnMut(&str)) -> Vec<String> {
        self.files.set_faults(|faults| *faults = Faults::default());
        let files = Arc::new(self.files.clone());
        let reader = match keyward_audit::read(files, Path::new(FOLDER), Filter::default()) {
            Ok(reader) => reader,
            Err(error) => return vec![error.to_string()],
        };
        let mut damage = Vec::new();
        for entry in reader {
            match entry {
                Ok(entry) => line(&entry.line),
                Err(error) => damage.push(error.to_string()),
            }
        }
        damage
    }
}

/// The text of a member of the record, if it has that, and what follows.
fn member<'a>(line: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let start = line.find(name)? + name.len();
    line[start..].split_once('"')
}

/// The id of the request that a record is about, and what it says. (Its members come in this order.)
#[must_use]
pub fn parse(line: &str) -> Option<(RequestId, Recorded)> {
    let (event, rest) = member(line, "\"eventName\":\"")?;
    let (outcome, rest) = rest.split_at(rest.find("\"requestParameters\":")?);
    let error = member(outcome, "\"errorCode\":\"").map(|(error, _)| error.to_owned());
    let (text, _) = member(rest, "\"requestID\":\"")?;
    let mut id = [0; 16];
    let mut digits = text.bytes().filter(|byte| *byte != b'-');
    for byte in &mut id {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(digits.next()?)?, digit(digits.next()?)?);
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some((id, Recorded { event: event.to_owned(), error }))
}

/// A disk that tells what was handed to the operating system: every line that was put into the ring.
struct Tapped {
    files: FaultyFiles,
    written: Arc<Written>,
}

impl Files for Tapped {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.files.create_folder(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.files.list(folder)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        self.files.create(path)
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn SegmentFile>> {
        self.files.open(path, write)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.remove(path)
    }

    fn map(&self, path: &Path, bytes: usize) -> io::Result<Arc<dyn MappedFile>> {
        let memory = self.files.map(path, bytes)?;
        let (written, half) = (Arc::clone(&self.written), Mutex::default());
        Ok(Arc::new(TappedMemory { memory, written, half }))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.files.sync_folder(folder)
    }
}

/// The ring. Its lines are written one by one, in two pieces where one goes over the end.
struct TappedMemory {
    memory: Arc<dyn MappedFile>,
    written: Arc<Written>,
    half: Mutex<Vec<u8>>,
}

impl MappedFile for TappedMemory {
    fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.write(at, bytes);
        let mut half = self.half.lock();
        half.extend_from_slice(bytes);
        if half.ends_with(b"\n") {
            // One that is no text is no record, and is missed.
            let text = std::str::from_utf8(&half).unwrap_or_default();
            self.written.lock().extend(text.lines().filter_map(parse));
            half.clear();
        }
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.memory.read(at, bytes);
    }

    fn prepare(&self, range: Range<usize>) {
        self.memory.prepare(range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_record_says_is_read() {
        let line = r#"{"a":1,"eventName":"Decrypt","errorCode":"AccessDenied","requestParameters":{"b":2},"requestID":"01020304-0506-0708-090a-0b0c0d0e0f10","x":0}"#;
        let (id, recorded) = parse(line).expect("a record");
        assert_eq!(id, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(recorded.event, "Decrypt");
        assert_eq!(recorded.error.as_deref(), Some("AccessDenied"));
        assert!(parse("{}").is_none());
    }
}
