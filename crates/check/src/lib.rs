//! What must hold of a history: who asked for what and when, and what they were told. The simulator checks its runs with
//! it, and `keyward drill` what real processes did: one implementation for both.
//!
//! * [`history`]: a read sees the last write that was acknowledged before it began, or a later one.
//! * [`linear`]: operations that overlapped could have happened one after the other, with the outcomes that callers were told.
//! * [`key`]: what a key is, as a sequential object.
//! * [`Meter`]: no window holds more calls than a quota and its burst allow.
//!
//! **Invariant:** functions of what is recorded. No clock, no I/O, and nothing of how a Region works.

pub mod history;
pub mod key;
pub mod linear;
mod meter;

pub use history::{End, History, Step, WriteId};
pub use key::KeyView;
pub use meter::{LeaderChange, Meter};
