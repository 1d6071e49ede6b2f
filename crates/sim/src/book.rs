//! What the clients of a run know: what they asked for, what they were told, and what broke a rule.

pub use keyward_check::KeyView;
use keyward_check::{End, History, Step, WriteId};
use keyward_model::{ErrorCode, KmsError};
use parking_lot::Mutex;

use crate::counters::Counters;
use crate::invariants::no_secrets::Texts;
use crate::invariants::{Commands, Seen, Under};

/// A key that some client made.
#[derive(Debug)]
pub struct KeyBook {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: History<KeyView>,
    /// Its description.
    pub description: History<String>,
    /// Rotations acknowledged, and rotations that may have happened.
    pub rotations: (usize, usize),
    /// Deletion dates that were told, in milliseconds.
    pub dates_ms: Vec<i64>,
    /// When it was first seen to be gone for good.
    pub gone_since: Option<Step>,
}

/// A ciphertext that a caller was given.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which key; an index into [`Book::keys`].
    pub key: usize,
    /// The ciphertext.
    pub blob: Vec<u8>,
    /// What it must open to.
    pub plaintext: Vec<u8>,
}

/// A change that a client asks for. Keys and aliases by their index.
#[derive(Clone, Debug)]
pub enum Change {
    /// CreateKey.
    Create,
    /// EnableKey or DisableKey.
    SetEnabled(usize, bool),
    /// UpdateKeyDescription.
    Describe(usize, String),
    /// RotateKeyOnDemand.
    Rotate(usize),
    /// ScheduleKeyDeletion, with the shortest waiting period.
    Schedule(usize),
    /// CancelKeyDeletion.
    Cancel(usize),
    /// CreateAlias.
    CreateAlias(usize, usize),
    /// UpdateAlias.
    UpdateAlias(usize, usize),
    /// DeleteAlias.
    DeleteAlias(usize),
}

/// A change under way.
#[derive(Debug)]
pub struct Begun {
    change: Change,
    began: Step,
    write: Option<WriteId>,
    command: Option<Under>,
}

/// What an acknowledgement says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// The id of the key that was made.
    Created(String),
    /// The date that was set for a deletion, in milliseconds.
    Date(i64),
    /// No more than that.
    Done,
}

/// How a change ended, for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Acknowledged.
    Done,
    /// Nothing was changed; another try may succeed.
    TryAgain,
    /// Nothing was changed, and will not be.
    Refused,
    /// It may take effect.
    Unknown,
}

/// Broken rules kept at most; more of the same tell nothing new.
const VIOLATIONS_MAX: usize = 16;

/// The book.
#[derive(Debug, Default)]
pub struct Book {
    /// Keys whose creation was acknowledged.
    pub keys: Vec<KeyBook>,
    /// Aliases: which key each points at.
    pub aliases: Vec<History<Option<usize>>>,
    /// Ciphertexts.
    pub samples: Vec<Sample>,
    /// Those that were made right after a rotation.
    pub chased: Vec<Sample>,
    /// Commands to keys and aliases, with their outcomes.
    pub commands: Commands,
    /// What callers encrypted, and what errors said.
    pub texts: Texts,
    /// Broken rules.
    pub violations: Vec<String>,
    /// Numbers.
    pub counters: Counters,
}

/// The book, as tasks share it.
pub type SharedBook = Mutex<Book>;

/// An alias's name, by its index.
#[must_use]
pub fn alias_name(alias: usize) -> String {
    format!("alias/sim-{alias}")
}

impl Book {
    /// Notes a broken rule.
    pub fn violate(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(what);
        }
    }

    /// A change reaches a node.
    pub fn begin(&mut self, change: Change, step: Step) -> Begun {
        let write = match &change {
            Change::Create => None,
            Change::SetEnabled(key, enabled) => {
                let view = if *enabled { KeyView::Enabled } else { KeyView::Disabled };
                Some(self.keys[*key].state.begin(view, step))
            }
            Change::Describe(key, text) => {
                Some(self.keys[*key].description.begin(text.clone(), step))
            }
            Change::Rotate(key) => {
                self.keys[*key].rotations.1 += 1;
                None
            }
            Change::Schedule(key) => Some(self.keys[*key].state.begin(KeyView::Pending, step)),
            Change::Cancel(key) => Some(self.keys[*key].state.begin(KeyView::Disabled, step)),
            Change::CreateAlias(alias, key) | Change::UpdateAlias(alias, key) => {
                Some(self.aliases[*alias].begin(Some(*key), step))
            }
            Change::DeleteAlias(alias) => Some(self.aliases[*alias].begin(None, step)),
        };
        let command = self.commands.begin(&change, step);
        Begun { change, began: step, write, command }
    }

    /// It has ended. `rootless`: it was refused for want of a root, as may be.
    pub fn end(
        &mut self,
        begun: &Begun,
        result: &Result<Acknowledged, KmsError>,
        step: Step,
        rootless: bool,
    ) -> Told {
        let (end, told) = match result {
            Ok(_) => (End::Acknowledged(step), Told::Done),
            Err(error) if error.outcome_unknown => (End::Unknown, Told::Unknown),
            Err(error) if error.code.is_retryable() => (End::Void, Told::TryAgain),
            Err(_) => (End::Void, Told::Refused),
        };
        match told {
            Told::Done => self.counters.acknowledged += 1,
            Told::Unknown => self.counters.unknown += 1,
            Told::TryAgain | Told::Refused => self.counters.refused += 1,
        }
        if let Some(command) = begun.command {
            self.commands.ended(command, &begun.change, end, step, result.as_ref().err());
        }
        if let Err(error) = result
            && !rootless
        {
            self.check_refusal(begun, error, step);
        }
        match (&begun.change, begun.write) {
            (Change::Create, _) => {
                if let Ok(Acknowledged::Created(id)) = result {
                    self.created(id.clone(), begun.began, step);
                }
            }
            (Change::Rotate(key), _) => match end {
                End::Acknowledged(_) => self.keys[*key].rotations.0 += 1,
                End::Void => self.keys[*key].rotations.1 -= 1,
                End::Unknown => {}
            },
            (Change::Schedule(key), Some(write)) => {
                self.keys[*key].state.ended(write, end);
                if let Ok(Acknowledged::Date(date_ms)) = result {
                    self.keys[*key].dates_ms.push(*date_ms);
                    self.counters.scheduled += 1;
                }
            }
            (Change::Cancel(key), Some(write)) => {
                self.keys[*key].state.ended(write, end);
                self.counters.cancelled += u64::from(result.is_ok());
            }
            (Change::SetEnabled(key, _), Some(write)) => self.keys[*key].state.ended(write, end),
            (Change::Describe(key, _), Some(write)) => {
                self.keys[*key].description.ended(write, end);
            }
            (
                Change::CreateAlias(alias, _)
                | Change::UpdateAlias(alias, _)
                | Change::DeleteAlias(alias),
                Some(write),
            ) => self.aliases[*alias].ended(write, end),
            (_, None) => {}
        }
        told
    }

    fn created(&mut self, id: String, began: Step, step: Step) {
        let mut state = History::new(KeyView::Absent);
        let write = state.begin(KeyView::Enabled, began);
        state.ended(write, End::Acknowledged(step));
        self.keys.push(KeyBook {
            id,
            state,
            description: History::new(String::new()),
            rotations: (0, 0),
            dates_ms: Vec::new(),
            gone_since: None,
        });
    }

    /// A change may be refused for what the key or alias is, and for want of a leader; nothing else.
    fn check_refusal(&mut self, begun: &Begun, error: &KmsError, step: Step) {
        let key = match begun.change {
            Change::SetEnabled(key, _)
            | Change::Describe(key, _)
            | Change::Rotate(key)
            | Change::Schedule(key)
            | Change::Cancel(key)
            | Change::CreateAlias(_, key) => Some(key),
            _ => None,
        };
        let aliases = matches!(
            begun.change,
            Change::CreateAlias(..) | Change::UpdateAlias(..) | Change::DeleteAlias(_)
        );
        // The leader may have said so, in a node's name.
        let seen = Seen { began: begun.began, ended: step, node: None, who: "a change".to_owned() };
        let fits = match error.code {
            ErrorCode::DependencyTimeoutException => true,
            ErrorCode::DisabledException | ErrorCode::ConflictException => {
                matches!(begun.change, Change::Rotate(_))
            }
            ErrorCode::KMSInvalidStateException => {
                let pending = match begun.change {
                    // The one call that only a key can refuse that does *not* wait for its deletion.
                    Change::Cancel(_) => None,
                    Change::UpdateAlias(_, key) => Some(key),
                    _ => key,
                };
                if let Some(key) = pending {
                    self.read_state(key, KeyView::Pending, &seen);
                }
                pending.is_some() || matches!(begun.change, Change::Cancel(_))
            }
            ErrorCode::LimitExceededException => true,
            ErrorCode::AlreadyExistsException => aliases,
            ErrorCode::NotFoundException => match key {
                Some(key) => {
                    self.read_state(key, KeyView::Absent, &seen);
                    true
                }
                None => aliases,
            },
            _ => false,
        };
        if !fits {
            self.violate(format!("an unexpected refusal of {:?}: {error:?}", begun.change));
        }
    }

    // --- Rules.

    /// Commands are linearizable.
    pub fn check_commands(&mut self) {
        let gone: Vec<usize> =
            (0..self.keys.len()).filter(|key| self.keys[*key].gone_since.is_some()).collect();
        for broken in self.commands.check(&gone) {
            self.violate(broken);
        }
    }
}
