//! Three real processes and real faults.

#[path = "../support/mod.rs"]
mod support;

#[path = "../chaos/mod.rs"]
mod chaos;

mod audit;
mod bench;
mod clocks;
mod command_line;
mod deletion;
mod deployed;
mod drill;
mod faults;
mod invitations;
mod kinds;
mod liars;
mod memory;
mod moods;
mod quotas;
mod recover;
mod refusals;
mod regions;
mod roots;
mod secrets;
mod snapshot;
mod streams;
