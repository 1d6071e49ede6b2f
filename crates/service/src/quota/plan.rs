//! Which buckets a caller's operations draw on. Kept with the connection, so that a call looks nothing up.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use keyward_model::{Operation, PrincipalArn};
use keyward_quota::{BucketId, Covers, Holder, Pool, Window};
use keyward_state::State;

use super::bucket::Bucket;

/// One operation's buckets.
type Drawn = Box<[Arc<Bucket>]>;

/// The buckets of one principal's operations, as of one revision of the quotas.
pub(crate) struct Plan {
    revision: u64,
    principal: PrincipalArn,
    /// By operation, filled in when it is first called.
    drawn: [OnceLock<Drawn>; Operation::ALL.len()],
}

impl Plan {
    fn new(revision: u64, principal: PrincipalArn) -> Self {
        Self { revision, principal, drawn: [const { OnceLock::new() }; Operation::ALL.len()] }
    }

    pub(super) fn buckets(
        &self,
        operation: Operation,
        find: impl FnOnce() -> Drawn,
    ) -> &[Arc<Bucket>] {
        self.drawn[operation as usize].get_or_init(find)
    }

    /// Every bucket that may be defined: the principal's before the account's, so that one that is over its own
    /// quota takes nothing from the others.
    pub(super) fn ids(&self, operation: Operation) -> impl Iterator<Item = BucketId> {
        let account = Holder::Account(self.principal.account());
        ids([Holder::Principal(self.principal.clone()), account], operation)
    }
}

/// Every bucket of these that may be defined for an operation.
pub(super) fn ids(
    holders: impl IntoIterator<Item = Holder>,
    operation: Operation,
) -> impl Iterator<Item = BucketId> {
    let covers = [Covers::Pool(Pool::of(operation)), Covers::All];
    holders.into_iter().flat_map(move |holder| {
        covers.into_iter().flat_map(move |covers| {
            let holder = holder.clone();
            Window::ALL.into_iter().map(move |window| BucketId {
                holder: holder.clone(),
                covers,
                window,
            })
        })
    })
}

/// Where a connection keeps its caller's plan.
#[derive(Default)]
pub(crate) struct PlanSlot(ArcSwapOption<Plan>);

impl PlanSlot {
    /// The plan, made anew when quotas have changed.
    pub(crate) fn get(&self, state: &State, principal: &PrincipalArn) -> Arc<Plan> {
        if let Some(plan) = &*self.0.load()
            && plan.revision == state.quotas_revision
        {
            return Arc::clone(plan);
        }
        let plan = Arc::new(Plan::new(state.quotas_revision, principal.clone()));
        self.0.store(Some(Arc::clone(&plan)));
        plan
    }
}

impl fmt::Debug for PlanSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlanSlot")
    }
}
