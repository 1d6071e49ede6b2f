//! Loads on a Region, as its callers make them: what is offered and when, what came of it, and reports about that.
//!
//! A [`Plan`] says what is called and at what pace; a [`Target`] is what it is called on; [`run()`] makes the calls and
//! tells of every second. [`Search`] looks for the highest rate within a goal, [`watch()`] asks the Region what it used and
//! counted meanwhile, [`promises`] holds that against the quotas, and [`Report`] is all of it, as JSON, CSV and one page
//! of HTML.
//!
//! **Invariant:** a load sees of a server what any caller and operator sees: this crate knows nothing of its internals.

mod arrivals;
mod mix;
mod page;
pub mod plot;
mod promise;
mod report;
mod run;
mod search;
mod tally;
mod target;
mod watch;

pub use arrivals::{Arrivals, Schedule, Spacing, Stage, duration};
pub use mix::{Mix, Operation, Sizes};
pub use page::shell;
pub use promise::{Promise, Verdict, promises};
pub use report::{
    ClientUse, Heading, Latency, NodeUse, OperationReport, Refusals, Report, SecondReport,
    ServerUse, percentile,
};
pub use run::{IN_FLIGHT_MAX, Measured, Pace, Plan, Stop, Workload, run};
pub use search::{Goal, Probe, Search};
pub use tally::{ByOperation, Counts, Second, Tally, Times};
pub use target::{Job, Lane, Prepared, Target, create_key, prepare};
pub use watch::{Observation, observe, watch};

/// A plan that cannot be carried out, and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanError(pub String);

impl PlanError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}
