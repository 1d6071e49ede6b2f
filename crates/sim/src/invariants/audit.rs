//! **Every answered call has its audit record** (decision 0008): when an answer leaves, refusals too, its record is with
//! the operating system, and says what the caller was told. A node that cannot record refuses, and says so. In the end
//! the record is on disk, unless power was lost within 100 ms, and the trails have no damage that no power cut explains.
//!
//! (A changed or dropped record shows by checksums and numbers only. There is no chain of hashes yet.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyward_audit::error_code;
use keyward_model::{ErrorCode, KmsError};

use crate::book::Book;
use crate::trail::{AuditDisk, Recorded, RequestId, parse};

/// What a node says that cannot record.
const CANNOT_RECORD: &str = "this node cannot write its audit trail";

/// What readers say of numbers that are missing, or come again.
const NUMBERS_WRONG: [&str; 2] = ["records are missing", "out of order"];

/// A call that was answered.
#[derive(Clone, Copy, Debug)]
struct Answered {
    id: RequestId,
    at: Duration,
}

/// A disk with a trail, and the calls that were answered by its node.
struct Kept {
    disk: AuditDisk,
    answered: Vec<Answered>,
}

/// What was seen so far.
#[derive(Default)]
pub struct Trails {
    /// By machine.
    machines: BTreeMap<usize, Kept>,
    /// Of nodes that are gone.
    put_away: Vec<Kept>,
}

/// What the record of a call must say; none: there must be none.
fn expected(event: &str, refusal: Option<&KmsError>) -> Option<Recorded> {
    let unrecorded = |error: &KmsError| error.message.contains(CANNOT_RECORD);
    if refusal.is_some_and(unrecorded) {
        return None;
    }
    let error = refusal.map(|error| error_code(error.code).to_owned());
    Some(Recorded { event: event.to_owned(), error })
}

/// Whether the record fits what the caller was told.
fn fits(told: Option<&Recorded>, recorded: Option<&Recorded>) -> Result<(), String> {
    match (told, recorded) {
        // The record may be there all the same: one more than answers, never one less.
        (None, _) => Ok(()),
        (Some(told), Some(recorded)) if told == recorded => Ok(()),
        (Some(told), None) => Err(format!("{told:?} is not on record")),
        (Some(told), Some(recorded)) => Err(format!("{told:?} is on record as {recorded:?}")),
    }
}

impl Trails {
    /// An answer has left: its record must be with the operating system.
    pub fn answered(
        &mut self,
        (machine, disk): (usize, &AuditDisk),
        id: RequestId,
        event: &str,
        refusal: Option<&KmsError>,
        now: Duration,
        book: &mut Book,
    ) {
        let Some(told) = expected(event, refusal) else {
            // A refusal for want of a record is one that another node may answer.
            if refusal.is_some_and(|error| error.code != ErrorCode::DependencyTimeoutException) {
                let unknown = refusal.is_some_and(|error| error.outcome_unknown);
                if !unknown {
                    book.violate(format!("NOT RECORDED, with a wrong error: {refusal:?}"));
                }
            }
            book.counters.unrecorded += 1;
            return;
        };
        if let Err(why) = fits(Some(&told), disk.recorded(&id).as_ref()) {
            book.violate(format!("AN ANSWER WITHOUT ITS RECORD on machine {machine}: {why}"));
        }
        self.keep((machine, disk), Answered { id, at: now });
        book.counters.recorded += 1;
    }

    /// A caller has hung up: its call's record must be with the operating system. A trail that is failing takes none, and
    /// nobody is there to be refused.
    pub fn hung_up(
        &mut self,
        (machine, disk): (usize, &AuditDisk),
        id: RequestId,
        now: Duration,
        book: &mut Book,
    ) {
        if book.counters.audit_faults > 0 {
            return;
        }
        if disk.recorded(&id).is_none() {
            book.violate(format!("A HANG-UP WITHOUT ITS RECORD on machine {machine}"));
        }
        self.keep((machine, disk), Answered { id, at: now });
    }

    fn keep(&mut self, (machine, disk): (usize, &AuditDisk), answered: Answered) {
        let kept = self
            .machines
            .entry(machine)
            .or_insert_with(|| Kept { disk: disk.clone(), answered: Vec::new() });
        kept.disk = disk.clone();
        kept.answered.push(answered);
    }

    /// The machine begins anew, as another node with an empty disk; this was the disk so far.
    pub fn put_away(&mut self, machine: usize, disk: AuditDisk) {
        let kept = self.machines.remove(&machine).map(|kept| Kept { disk, ..kept });
        self.put_away.extend(kept);
    }

    /// Every answered call is on disk. `look`: at every line of every machine's trail.
    pub(super) fn look_in_the_end(
        &self,
        disk_of: impl Fn(usize) -> AuditDisk,
        book: &mut Book,
        mut look: impl FnMut(usize, &str),
    ) {
        for (machine, kept) in &self.machines {
            kept.compare(&disk_of(*machine), book, |line| look(*machine, line));
        }
        for kept in &self.put_away {
            kept.compare(&kept.disk, book, |_| {});
        }
    }
}

impl Kept {
    fn compare(&self, disk: &AuditDisk, book: &mut Book, mut look: impl FnMut(&str)) {
        let (mut there, mut twice) = (BTreeSet::new(), 0_usize);
        let damage = disk.read(|line| {
            look(line);
            if let Some((id, _)) = parse(line) {
                twice += usize::from(!there.insert(id));
            }
        });
        if twice > 0 {
            book.violate(format!("AUDIT RECORDS TWICE: {twice} of {}", there.len() + twice));
        }
        // Not after a power cut either: numbers that were lost with their records are given again.
        let gap = |why: &&String| NUMBERS_WRONG.iter().any(|wrong| why.contains(wrong));
        if let Some(first) = damage.iter().find(gap) {
            book.violate(format!("NUMBERS OF AUDIT RECORDS: {first}"));
        }
        if let Some(first) = damage.first()
            && !disk.lost_power()
        {
            book.violate(format!("A DAMAGED AUDIT TRAIL, though power was never lost: {first}"));
        }
        let lost = |answered: &&Answered| {
            !there.contains(&answered.id) && !disk.may_have_lost(answered.at)
        };
        let lost: Vec<&Answered> = self.answered.iter().filter(lost).collect();
        if let Some(first) = lost.first() {
            book.violate(format!(
                "LOST AUDIT RECORDS: {} of {} answered calls, answered from {:?} to {:?}; {}",
                lost.len(),
                self.answered.len(),
                first.at,
                lost.last().map(|last| last.at),
                disk.describe()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_secs(9);

    fn look(refusal: Option<&KmsError>, event: &str) -> Vec<String> {
        let mut book = Book::default();
        let (mut trails, disk) = (Trails::default(), AuditDisk::default());
        trails.answered((0, &disk), [1; 16], event, refusal, AT, &mut book);
        trails.look_in_the_end(|_| disk.clone(), &mut book, |_, _| {});
        book.violations
    }

    #[test]
    fn an_answer_without_its_record_is_noticed_at_once_and_in_the_end() {
        let found = look(None, "Decrypt");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("AN ANSWER WITHOUT ITS RECORD"), "{found:?}");
        assert!(found[1].starts_with("LOST AUDIT RECORDS"), "{found:?}");
        let refused = KmsError::new(ErrorCode::DisabledException, "disabled");
        assert_eq!(look(Some(&refused), "Encrypt").len(), 2);
    }

    #[test]
    fn a_hang_up_without_its_record_is_noticed_unless_disks_broke() {
        for (audit_faults, found) in [(0, 1), (1, 0)] {
            let (mut book, mut trails) = (Book::default(), Trails::default());
            book.counters.audit_faults = audit_faults;
            trails.hung_up((0, &AuditDisk::default()), [1; 16], AT, &mut book);
            assert_eq!(book.violations.len(), found, "{:?}", book.violations);
        }
    }

    #[test]
    fn a_node_that_cannot_record_refuses() {
        let code = ErrorCode::DependencyTimeoutException;
        let refused = KmsError::new(code, format!("{CANNOT_RECORD}: the disk is full"));
        assert!(look(Some(&refused), "Encrypt").is_empty());
        let wrong = KmsError::new(ErrorCode::NotFoundException, CANNOT_RECORD);
        assert_eq!(look(Some(&wrong), "Encrypt").len(), 1);
    }

    #[test]
    fn a_record_says_what_the_caller_was_told() {
        let recorded = |error: Option<&str>| Recorded {
            event: "Encrypt".to_owned(),
            error: error.map(str::to_owned),
        };
        let denied = KmsError::new(ErrorCode::AccessDeniedException, "no");
        let told = expected("Encrypt", Some(&denied));
        assert!(fits(told.as_ref(), Some(&recorded(Some("AccessDenied")))).is_ok());
        assert!(fits(told.as_ref(), Some(&recorded(None))).is_err());
        assert!(fits(expected("Encrypt", None).as_ref(), Some(&recorded(None))).is_ok());
        assert!(fits(expected("Decrypt", None).as_ref(), Some(&recorded(None))).is_err());
    }
}
