//! A key as a sequential object: its state, and what commands and calls do to it and tell of it.

use crate::linear::Model;

/// The state of a key, as a call shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyView {
    /// NotFoundException.
    Absent,
    /// It works.
    Enabled,
    /// DisabledException.
    Disabled,
    /// It waits for its deletion: KMSInvalidStateException.
    Pending,
}

impl From<keyward_model::KeyState> for KeyView {
    fn from(state: keyward_model::KeyState) -> Self {
        match state {
            keyward_model::KeyState::Enabled | keyward_model::KeyState::Updating => Self::Enabled,
            keyward_model::KeyState::Disabled => Self::Disabled,
            keyward_model::KeyState::PendingDeletion
            | keyward_model::KeyState::PendingReplicaDeletion => Self::Pending,
            keyward_model::KeyState::Creating => Self::Absent,
        }
    }
}

/// What a command asks of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfKey {
    /// EnableKey.
    Enable,
    /// DisableKey.
    Disable,
    /// Any change that takes a key that lives.
    Describe,
    /// RotateKeyOnDemand.
    Rotate,
    /// ScheduleKeyDeletion.
    Schedule,
    /// CancelKeyDeletion.
    Cancel,
    /// By the Region itself.
    Delete,
    /// Nothing: what the key is was shown.
    Show,
}

/// A command to a key, and what the caller was told: done, or what state the key was in that the command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyCommand(pub OfKey, pub ToldOfKey);

/// What its caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldOfKey {
    /// It was done.
    Done,
    /// It was in that state.
    Was(KeyView),
    /// It did not wait for its deletion.
    NotPending,
}

/// A key's state.
pub struct KeyModel;

impl Model for KeyModel {
    type State = KeyView;
    type Operation = KeyCommand;

    fn apply(state: &KeyView, KeyCommand(command, told): &KeyCommand) -> Option<KeyView> {
        use KeyView::{Absent, Disabled, Enabled, Pending};
        let fits = match told {
            ToldOfKey::Was(view) => return (state == view).then_some(*state),
            ToldOfKey::NotPending => return matches!(state, Enabled | Disabled).then_some(*state),
            ToldOfKey::Done => match command {
                OfKey::Cancel | OfKey::Delete => *state == Pending,
                OfKey::Rotate => *state == Enabled,
                _ => matches!(state, Enabled | Disabled),
            },
        };
        let after = match command {
            OfKey::Enable => Enabled,
            OfKey::Disable | OfKey::Cancel => Disabled,
            OfKey::Schedule => Pending,
            OfKey::Delete => Absent,
            OfKey::Describe | OfKey::Rotate | OfKey::Show => *state,
        };
        fits.then_some(after)
    }
}
