//! Randomness that a seed decides: ChaCha8, one stream for each purpose, so that a change in how one part
//! draws leaves the others as they were.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a stream of randomness is for.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// Which ready task is polled next, and for how long a disk takes.
    Schedule,
    /// What openraft draws.
    Runtime,
    /// Delays and losses of messages.
    Network,
    /// The run's own settings: clocks, paces, chaos or calm.
    Plan,
    /// Restarts: what a power cut leaves.
    Disks,
    /// Wall clocks set wrong.
    Walls,
    /// Deletion dates that come.
    Deletions,
    /// Disks that lie.
    Lies,
    /// Roots that are away, and changes of roots.
    Roots,
    /// Processes that die between two steps.
    Deaths,
    /// Callers with quotas.
    Metered,
    /// What a power cut leaves of audit trails.
    Audits,
    /// Disks of audit trails that break.
    AuditFaults,
    /// Disks that are full, or do not sync.
    DiskFaults,
    /// The n-th thing that goes wrong, of those that go wrong one by one.
    Fault(u32),
    /// Hand-overs that go wrong.
    HandOvers,
    /// Members that come and go.
    Members,
    /// Streams of calls, and their ends.
    Streams,
    /// What a scene draws.
    Scene,
    /// A caller who does things wrong.
    Misuse,
    /// An operator who asks for quotas that make no sense.
    QuotaMisuse,
    /// A node's entropy: its index and how many times it has booted.
    Entropy(u32, u32),
    /// A client.
    Client(u32),
    /// The seed of one of several Regions, and of what lies between them.
    Region(u32),
}

impl Stream {
    const fn number(self) -> u64 {
        match self {
            Self::Schedule => 1,
            Self::Runtime => 2,
            Self::Network => 3,
            Self::Plan => 5,
            Self::Disks => 6,
            Self::Walls => 7,
            Self::Deletions => 8,
            Self::Lies => 9,
            Self::Roots => 10,
            Self::Deaths => 11,
            Self::Metered => 12,
            Self::Audits => 13,
            Self::AuditFaults => 14,
            Self::DiskFaults => 20,
            Self::Fault(number) => (1 << 33) | number as u64,
            Self::HandOvers => 16,
            Self::Members => 23,
            Self::Streams => 24,
            Self::Scene => 25,
            Self::Misuse => 21,
            Self::QuotaMisuse => 22,
            Self::Region(number) => (1 << 34) | number as u64,
            Self::Client(client) => (1 << 32) | client as u64,
            Self::Entropy(node, boot) => (1 << 63) | ((node as u64) << 32) | boot as u64,
        }
    }
}

/// A stream of throws.
#[derive(Debug)]
pub struct Dice {
    random: ChaCha8Rng,
}

impl Dice {
    /// The stream of that seed and purpose.
    #[must_use]
    pub fn new(seed: u64, stream: Stream) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream.number());
        Self { random }
    }

    /// A stream of its own for somebody else.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(self.word()) }
    }

    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.random.next_u64()
    }

    /// Random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.random.fill_bytes(bytes);
    }

    /// A number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        // The bias of a 64-bit product over these small ranges is far below what any run could show.
        let product = u128::from(self.word()) * u128::from(end);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// An index into something of length `len`, which must not be zero.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// True `times` in a thousand.
    pub fn permille(&mut self, times: u64) -> bool {
        times > 0 && self.below(1000) < times
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// A duration between two, in milliseconds.
    pub fn between_ms(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        let span_us = (to_ms - from_ms) * 1000;
        Duration::from_micros(from_ms * 1000 + self.below(span_us.max(1)))
    }
}
