//! **Commands are linearizable** (DESIGN section 5): those of one key, and those of one alias, happened one after the
//! other, each between its call and its answer, with the outcomes that callers were told. One of unknown outcome may
//! happen later, or never. What every node shows in the end is part of it.
//!
//! (The API has no reads that ask for it. For all others see `crates/check/src/history.rs`.)

use std::collections::BTreeMap;

use keyward_check::key::{KeyCommand, KeyModel, OfKey, ToldOfKey};
use keyward_check::linear::{Model, Operations};
use keyward_check::{End, KeyView, Step};
use keyward_model::{ErrorCode, KmsError};

use crate::book::Change;

/// A command to an alias, done or shown; keys by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AliasCommand {
    Create(usize),
    Update(usize),
    Delete,
    /// By the Region itself, with its key.
    DeleteWith(usize),
    /// It is there, or it is not: refused for that.
    IsThere(bool),
    /// Where it points was shown.
    Points(Option<usize>),
}

/// Where an alias points.
struct AliasModel;

impl Model for AliasModel {
    type State = Option<usize>;
    type Operation = AliasCommand;

    fn apply(state: &Option<usize>, command: &AliasCommand) -> Option<Option<usize>> {
        match *command {
            AliasCommand::Create(key) => state.is_none().then_some(Some(key)),
            AliasCommand::Update(key) => state.is_some().then_some(Some(key)),
            AliasCommand::Delete => state.is_some().then_some(None),
            AliasCommand::DeleteWith(key) => (*state == Some(key)).then_some(None),
            AliasCommand::IsThere(there) => (state.is_some() == there).then_some(*state),
            AliasCommand::Points(to) => (*state == to).then_some(to),
        }
    }
}

/// A command under way.
#[derive(Clone, Copy, Debug)]
pub enum Under {
    /// A key.
    Key(usize, usize),
    /// An alias.
    Alias(usize, usize),
}

/// All commands of a run, by key and by alias.
#[derive(Debug, Default)]
pub struct Commands {
    keys: BTreeMap<usize, Operations<KeyCommand>>,
    aliases: BTreeMap<usize, Operations<AliasCommand>>,
}

fn of_key(change: &Change) -> Option<(usize, OfKey)> {
    match change {
        Change::SetEnabled(key, true) => Some((*key, OfKey::Enable)),
        Change::SetEnabled(key, false) => Some((*key, OfKey::Disable)),
        Change::Describe(key, _) => Some((*key, OfKey::Describe)),
        Change::Rotate(key) => Some((*key, OfKey::Rotate)),
        Change::Schedule(key) => Some((*key, OfKey::Schedule)),
        Change::Cancel(key) => Some((*key, OfKey::Cancel)),
        _ => None,
    }
}

fn of_alias(change: &Change) -> Option<(usize, AliasCommand)> {
    match change {
        Change::CreateAlias(alias, key) => Some((*alias, AliasCommand::Create(*key))),
        Change::UpdateAlias(alias, key) => Some((*alias, AliasCommand::Update(*key))),
        Change::DeleteAlias(alias) => Some((*alias, AliasCommand::Delete)),
        _ => None,
    }
}

impl Commands {
    /// A command reaches a node.
    pub fn begin(&mut self, change: &Change, step: Step) -> Option<Under> {
        if let Some((key, command)) = of_key(change) {
            let operation = KeyCommand(command, ToldOfKey::Done);
            let number = self.keys.entry(key).or_default().begin(operation, step);
            return Some(Under::Key(key, number));
        }
        let (alias, command) = of_alias(change)?;
        let number = self.aliases.entry(alias).or_default().begin(command, step);
        Some(Under::Alias(alias, number))
    }

    /// It has ended: acknowledged, refused (for good or not), or nobody knows.
    pub fn ended(
        &mut self,
        under: Under,
        change: &Change,
        end: End,
        step: Step,
        error: Option<&KmsError>,
    ) {
        let code = error.filter(|_| end == End::Void).map(|error| error.code);
        match under {
            Under::Key(key, number) => {
                let Some((_, command)) = of_key(change) else { return };
                let told = match code {
                    Some(ErrorCode::KMSInvalidStateException) if command == OfKey::Cancel => {
                        Some(ToldOfKey::NotPending)
                    }
                    Some(ErrorCode::KMSInvalidStateException) => {
                        Some(ToldOfKey::Was(KeyView::Pending))
                    }
                    Some(ErrorCode::DisabledException) => Some(ToldOfKey::Was(KeyView::Disabled)),
                    Some(ErrorCode::NotFoundException) => Some(ToldOfKey::Was(KeyView::Absent)),
                    _ => None,
                };
                let end = told.map_or(end, |_| End::Acknowledged(step));
                let operation = KeyCommand(command, told.unwrap_or(ToldOfKey::Done));
                self.keys.entry(key).or_default().ended(number, operation, end);
            }
            Under::Alias(alias, number) => {
                let Some((_, command)) = of_alias(change) else { return };
                let told = match (code, command) {
                    (Some(ErrorCode::AlreadyExistsException), _) => {
                        Some(AliasCommand::IsThere(true))
                    }
                    // Of the others it may be the key that is gone.
                    (Some(ErrorCode::NotFoundException), AliasCommand::Delete) => {
                        Some(AliasCommand::IsThere(false))
                    }
                    _ => None,
                };
                let end = told.map_or(end, |_| End::Acknowledged(step));
                self.aliases.entry(alias).or_default().ended(number, told.unwrap_or(command), end);
            }
        }
    }

    /// What a key is, as a node showed it once nothing changed any more.
    pub fn shown(&mut self, key: usize, view: KeyView, began: Step, ended: Step) {
        let (operations, show) =
            (self.keys.entry(key).or_default(), KeyCommand(OfKey::Show, ToldOfKey::Was(view)));
        let number = operations.begin(show, began);
        operations.ended(number, show, End::Acknowledged(ended));
    }

    /// Where an alias points, in the same way.
    pub fn points(&mut self, alias: usize, to: Option<usize>, began: Step, ended: Step) {
        let operations = self.aliases.entry(alias).or_default();
        let number = operations.begin(AliasCommand::Points(to), began);
        operations.ended(number, AliasCommand::Points(to), End::Acknowledged(ended));
    }

    /// Whether all of it is linearizable. `gone`: keys that the Region deleted.
    #[must_use]
    pub fn check(&self, gone: &[usize]) -> Vec<String> {
        let mut broken = Vec::new();
        for (key, operations) in &self.keys {
            let mut operations = operations.clone();
            if gone.contains(key) {
                operations.begin(KeyCommand(OfKey::Delete, ToldOfKey::Done), 0);
            }
            if let Err((command, began, ended)) = operations.check::<KeyModel>(KeyView::Enabled) {
                broken.push(format!(
                    "NOT LINEARIZABLE: {command:?} of key {key}, from step {began} to {ended}"
                ));
            }
        }
        for (alias, operations) in &self.aliases {
            let mut operations = operations.clone();
            for key in gone {
                operations.begin(AliasCommand::DeleteWith(*key), 0);
            }
            if let Err((command, began, ended)) = operations.check::<AliasModel>(None) {
                broken.push(format!(
                    "NOT LINEARIZABLE: {command:?} of alias {alias}, from step {began} to {ended}"
                ));
            }
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(changes: &[(Change, Step, Step, Option<ErrorCode>)], gone: &[usize]) -> Vec<String> {
        let mut commands = Commands::default();
        for (change, began, ended, refused) in changes {
            let under = commands.begin(change, *began).expect("a command");
            let error = refused.map(|code| KmsError::new(code, ""));
            let end = match (refused, ended) {
                (Some(_), _) => End::Void,
                (None, 0) => End::Unknown,
                (None, ended) => End::Acknowledged(*ended),
            };
            commands.ended(under, change, end, *ended, error.as_ref());
        }
        commands.check(gone)
    }

    const INVALID: Option<ErrorCode> = Some(ErrorCode::KMSInvalidStateException);

    #[test]
    fn a_key_takes_its_commands_one_after_the_other() {
        use Change::{Cancel, Describe, Rotate, Schedule, SetEnabled};
        let text = || "text".to_owned();
        assert!(
            run(&[(SetEnabled(0, false), 1, 2, None), (Schedule(0), 3, 4, None)], &[]).is_empty()
        );
        // Scheduled, so no longer described; and cancelled once.
        let described = [(Schedule(0), 1, 2, None), (Describe(0, text()), 3, 4, None)];
        assert_eq!(run(&described, &[]).len(), 1);
        let refused = [(Schedule(0), 1, 2, None), (Describe(0, text()), 3, 4, INVALID)];
        assert!(run(&refused, &[]).is_empty());
        assert_eq!(run(&[(Describe(0, text()), 3, 4, INVALID)], &[]).len(), 1);
        let twice = [(Schedule(0), 1, 2, None), (Cancel(0), 3, 6, None), (Cancel(0), 4, 5, None)];
        assert_eq!(run(&twice, &[]).len(), 1);
        let once = [(Schedule(0), 1, 2, None), (Cancel(0), 3, 6, None), (Cancel(0), 4, 5, INVALID)];
        assert!(run(&once, &[]).is_empty());
        let rotated = [(SetEnabled(0, false), 1, 2, None), (Rotate(0), 3, 4, None)];
        assert_eq!(run(&rotated, &[]).len(), 1);
        // Unknown: it may have happened.
        let unknown = [
            (SetEnabled(0, false), 1, 2, None),
            (SetEnabled(0, true), 3, 0, None),
            (Rotate(0), 5, 6, None),
        ];
        assert!(run(&unknown, &[]).is_empty());
    }

    #[test]
    fn a_key_goes_once_and_for_good() {
        let absent = Some(ErrorCode::NotFoundException);
        let gone = [(Change::Schedule(0), 1, 2, None), (Change::Cancel(0), 3, 4, absent)];
        assert!(run(&gone, &[0]).is_empty());
        assert_eq!(run(&gone, &[]).len(), 1, "nobody deleted it");
        let back = [gone[0].clone(), gone[1].clone(), (Change::Cancel(0), 5, 6, None)];
        assert_eq!(run(&back, &[0]).len(), 1);
    }

    #[test]
    fn an_alias_is_made_once() {
        use Change::{CreateAlias, DeleteAlias, UpdateAlias};
        let exists = Some(ErrorCode::AlreadyExistsException);
        let absent = Some(ErrorCode::NotFoundException);
        assert!(
            run(&[(CreateAlias(0, 1), 1, 2, None), (CreateAlias(0, 2), 3, 4, exists)], &[])
                .is_empty()
        );
        assert_eq!(
            run(&[(CreateAlias(0, 1), 1, 4, None), (CreateAlias(0, 2), 2, 3, None)], &[]).len(),
            1
        );
        assert_eq!(run(&[(UpdateAlias(0, 1), 1, 2, None)], &[]).len(), 1);
        assert_eq!(
            run(&[(CreateAlias(0, 1), 1, 2, None), (DeleteAlias(0), 3, 4, absent)], &[]).len(),
            1
        );
        // Unless it went with its key.
        assert!(
            run(&[(CreateAlias(0, 1), 1, 2, None), (DeleteAlias(0), 3, 4, absent)], &[1])
                .is_empty()
        );
    }

    #[test]
    fn what_is_shown_in_the_end_is_part_of_it() {
        let mut commands = Commands::default();
        let off = Change::SetEnabled(0, false);
        let under = commands.begin(&off, 1).expect("a command");
        commands.ended(under, &off, End::Acknowledged(2), 2, None);
        commands.shown(0, KeyView::Disabled, 5, 6);
        assert!(commands.check(&[]).is_empty());
        commands.shown(0, KeyView::Enabled, 7, 8);
        assert_eq!(commands.check(&[]).len(), 1);
        let mut commands = Commands::default();
        commands.points(0, Some(1), 1, 2);
        assert_eq!(commands.check(&[]).len(), 1);
    }
}
