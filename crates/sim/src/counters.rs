//! What happened in a run, in numbers.

/// What happened in a run, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes acknowledged.
    pub acknowledged: u64,
    /// Changes of unknown outcome.
    pub unknown: u64,
    /// Changes refused, nothing done.
    pub refused: u64,
    /// Data-plane calls and reads answered.
    pub calls: u64,
    /// Of these, how many waited for a lease or a fence.
    pub held: u64,
    /// Calls answered on streams, of all kinds of callers.
    pub streamed: u64,
    /// Calls whose stream broke before they were answered.
    pub hung_up: u64,
    /// Streams that callers have broken off.
    pub streams_broken: u64,
    /// Streams that callers have closed, and whose calls under way are answered.
    pub streams_closed: u64,
    /// Rotations after which a ciphertext of the new material was opened elsewhere at once.
    pub chased: u64,
    /// Data-plane calls refused for want of a lease.
    pub unserved: u64,
    /// Processes killed.
    pub kills: u64,
    /// Machines that lost power.
    pub power_cuts: u64,
    /// Processes paused or suspended.
    pub pauses: u64,
    /// Of these, machines of leaders that were suspended: the monotonic clock stood still, the boot clock went on.
    pub suspended_leaders: u64,
    /// Of these, machines of followers that were suspended.
    pub suspended_followers: u64,
    /// Links cut.
    pub partitions: u64,
    /// Leadership handed over.
    pub hand_overs: u64,
    /// Deletions scheduled.
    pub scheduled: u64,
    /// Deletions cancelled.
    pub cancelled: u64,
    /// Times at which waiting periods came to their end.
    pub dates_reached: u64,
    /// Keys gone for good.
    pub deleted: u64,
    /// Wall clocks of leaders set wrong.
    pub wrong_leaders: u64,
    /// Wall clocks of followers set wrong.
    pub wrong_followers: u64,
    /// Calls with an expired certificate that were refused for it.
    pub expired_refused: u64,
    /// Disks wiped.
    pub wiped: u64,
    /// Disks replaced by an old copy.
    pub old_copies: u64,
    /// Disks of another machine.
    pub foreign_disks: u64,
    /// Disks of which a block could be read no more.
    pub rotten_disks: u64,
    /// Disks that were full for a while, or did not sync.
    pub disk_faults: u64,
    /// Snapshots that nodes took over from others.
    pub snapshots: u64,
    /// Nodes taken out of service while they were well.
    pub replaced: u64,
    /// Nodes that joined on a machine that had lost its own, and vote.
    pub joined: u64,
    /// Machines that came into use while everything went on, and whose nodes vote.
    pub grown: u64,
    /// Members removed for good.
    pub left: u64,
    /// Changes of the members at whose worst moment something went wrong.
    pub spoilt_changes: u64,
    /// Devices of roots that were slow, gone or wrong.
    pub root_faults: u64,
    /// Roots added and removed.
    pub roots_changed: u64,
    /// Last roots of nodes that could not be removed.
    pub last_roots_kept: u64,
    /// Calls refused since no root had answered for longer than the grace, or none could open a domain key.
    pub root_refused: u64,
    /// Calls of callers with quotas that were admitted.
    pub metered: u64,
    /// Calls refused by quota.
    pub throttled: u64,
    /// Answers that were on record when they left.
    pub recorded: u64,
    /// Calls refused since they could not be recorded.
    pub unrecorded: u64,
    /// Disks of audit trails that broke.
    pub audit_faults: u64,
    /// Times at which it was measured that callers get what they may.
    pub measured: u64,
    /// Calls that were wrong on purpose, and answered.
    pub misused: u64,
    /// Replicas asked for, and acknowledged.
    pub replicated: u64,
    /// Primaries offered to another Region.
    pub moved: u64,
    /// Principals that some Region has shut out.
    pub shut_out: u64,
    /// Calls answered to callers who roam.
    pub roamed: u64,
    /// Multi-Region keys rotated.
    pub rotated: u64,
    /// Promotions that made some replica a primary.
    pub promoted: u64,
    /// Multi-Region keys gone in one Region.
    pub replicas_gone: u64,
    /// Ciphertexts of one Region opened in another.
    pub opened_elsewhere: u64,
    /// Ways between Regions cut.
    pub roads_cut: u64,
    /// Whole Regions stopped.
    pub region_stops: u64,
    /// Messages delivered.
    pub messages: u64,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Polls and events.
    pub steps: u64,
}

impl Counters {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.calls += other.calls;
        self.held += other.held;
        self.streamed += other.streamed;
        self.hung_up += other.hung_up;
        self.streams_broken += other.streams_broken;
        self.streams_closed += other.streams_closed;
        self.chased += other.chased;
        self.unserved += other.unserved;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.pauses += other.pauses;
        self.suspended_leaders += other.suspended_leaders;
        self.suspended_followers += other.suspended_followers;
        self.partitions += other.partitions;
        self.hand_overs += other.hand_overs;
        self.scheduled += other.scheduled;
        self.cancelled += other.cancelled;
        self.dates_reached += other.dates_reached;
        self.deleted += other.deleted;
        self.wrong_leaders += other.wrong_leaders;
        self.wrong_followers += other.wrong_followers;
        self.expired_refused += other.expired_refused;
        self.wiped += other.wiped;
        self.old_copies += other.old_copies;
        self.foreign_disks += other.foreign_disks;
        self.rotten_disks += other.rotten_disks;
        self.disk_faults += other.disk_faults;
        self.snapshots += other.snapshots;
        self.replaced += other.replaced;
        self.joined += other.joined;
        self.grown += other.grown;
        self.left += other.left;
        self.spoilt_changes += other.spoilt_changes;
        self.root_faults += other.root_faults;
        self.roots_changed += other.roots_changed;
        self.last_roots_kept += other.last_roots_kept;
        self.root_refused += other.root_refused;
        self.metered += other.metered;
        self.throttled += other.throttled;
        self.recorded += other.recorded;
        self.unrecorded += other.unrecorded;
        self.audit_faults += other.audit_faults;
        self.measured += other.measured;
        self.misused += other.misused;
        self.replicated += other.replicated;
        self.moved += other.moved;
        self.shut_out += other.shut_out;
        self.roamed += other.roamed;
        self.rotated += other.rotated;
        self.promoted += other.promoted;
        self.replicas_gone += other.replicas_gone;
        self.opened_elsewhere += other.opened_elsewhere;
        self.roads_cut += other.roads_cut;
        self.region_stops += other.region_stops;
        self.messages += other.messages;
        self.simulated_ms += other.simulated_ms;
        self.steps += other.steps;
    }
}
