//! The small key-value store that log and state rest on: RocksDB in production (`crates/raft`), memory
//! in simulation and tests.

use std::io;
use std::sync::Arc;

/// A table. Log tables and state tables live in two stores: a checkpoint of the state must not carry a
/// vote.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Table {
    /// State: Region facts, applied index, membership.
    Meta,
    /// State: KMS keys without their material.
    Keys,
    /// State: sealed key tokens, apart, so that they can be purged for good.
    Tokens,
    /// State: aliases.
    Aliases,
    /// State: principals and their certificates.
    Principals,
    /// State: domain keys as lists of sealed copies.
    DomainKeys,
    /// State: registered roots.
    Roots,
    /// State: outcomes of recent commands.
    Outcomes,
    /// State: what stays of keys that are gone.
    Tombstones,
    /// State: invitations to nodes.
    Invitations,
    /// State: quotas.
    Quotas,
    /// State: what is used up of quotas of a minute or a day.
    QuotaUse,
    /// State: what is known of multi-Region keys beyond the keys themselves.
    MultiRegionKeys,
    /// State: other Regions.
    PeerRegions,
    /// State: what was lost in promotions, and waits for a decision.
    Reconciliations,
    /// State: principals of other Regions.
    ForeignPrincipals,
    /// State: outside authorities.
    Authorities,
    /// Log: entries by index.
    Log,
    /// Log: vote, committed, purged.
    LogMeta,
}

impl Table {
    /// The tables of a state store.
    pub const STATE: [Self; 17] = [
        Self::Meta,
        Self::Keys,
        Self::Tokens,
        Self::Aliases,
        Self::Principals,
        Self::DomainKeys,
        Self::Roots,
        Self::Outcomes,
        Self::Tombstones,
        Self::Invitations,
        Self::Quotas,
        Self::QuotaUse,
        Self::MultiRegionKeys,
        Self::PeerRegions,
        Self::Reconciliations,
        Self::ForeignPrincipals,
        Self::Authorities,
    ];
    /// The tables of a log store.
    pub const LOG: [Self; 2] = [Self::Log, Self::LogMeta];

    /// The name on disk.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Keys => "keys",
            Self::Tokens => "tokens",
            Self::Aliases => "aliases",
            Self::Principals => "principals",
            Self::DomainKeys => "domain_keys",
            Self::Roots => "roots",
            Self::Outcomes => "outcomes",
            Self::Tombstones => "tombstones",
            Self::Invitations => "invitations",
            Self::Quotas => "quotas",
            Self::QuotaUse => "quota_use",
            Self::MultiRegionKeys => "multi_region_keys",
            Self::PeerRegions => "peer_regions",
            Self::Reconciliations => "reconciliations",
            Self::ForeignPrincipals => "foreign_principals",
            Self::Authorities => "authorities",
            Self::Log => "log",
            Self::LogMeta => "log_meta",
        }
    }
}

/// One change in a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a row.
    Put(Table, Vec<u8>, Vec<u8>),
    /// Removes a row.
    Delete(Table, Vec<u8>),
    /// Removes the rows from the first key on, up to and without the second.
    DeleteRange(Table, Vec<u8>, Vec<u8>),
}

/// Changes that become visible and durable together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order: a later change of the same row wins.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Sets a row.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: Vec<u8>) {
        self.changes.push(Change::Put(table, key.into(), value));
    }

    /// Removes a row.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.changes.push(Change::Delete(table, key.into()));
    }
}

/// A frozen copy of a state store, readable in pieces.
pub trait Checkpoint: Send + Sync + 'static {
    /// The files: name and length in bytes.
    fn files(&self) -> Vec<(String, u64)>;

    /// Reads up to `len` bytes of a file from `offset`; fewer at its end.
    fn read(&self, file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;
}

/// A checkpoint that is being received. Nothing of the present state changes before `commit`.
pub trait Install: Send + 'static {
    /// Writes a piece of a file. Pieces of one file come in order.
    fn write(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Puts the received state in the place of the present one, durably.
    fn commit(self: Box<Self>) -> io::Result<()>;
}

/// Visits rows: key, value.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>;

/// The rows of a store as they were at one moment, whatever is written meanwhile.
pub trait Moment {
    /// Reads a row.
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Reads a row if it can be had without waiting for a disk. `None`: it cannot, or there is no such row.
    fn at_hand(&self, _: Table, _: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Visits all rows of a table in key order.
    fn scan(&self, table: Table, visit: Visit<'_>) -> io::Result<()>;
}

/// Looks at a moment's rows.
pub type Look<'a> = &'a mut dyn FnMut(&dyn Moment) -> io::Result<()>;

/// A key-value store with atomic batches. Calls may block on a disk: keep them off async threads.
pub trait Store: Send + Sync + 'static {
    /// Reads a row.
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Reads a row if it can be had without waiting for a disk. `None`: it cannot, or there is no such row.
    fn at_hand(&self, _: Table, _: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Visits all rows of a table in key order.
    fn scan(&self, table: Table, visit: Visit<'_>) -> io::Result<()>;

    /// Lets `look` see all tables as they are now: batches that are written meanwhile do not show. A purge waits until
    /// it is done, so a look reads and writes down what it finds, and waits for nobody.
    fn at_one_moment(&self, look: Look<'_>) -> io::Result<()>;

    /// Writes a batch. With `sync` it, and all that was written before it, survives a power cut once the
    /// call has returned.
    fn write(&self, batch: Batch, sync: bool) -> io::Result<()>;

    /// Freezes the present content durably; the checkpoint before it is dropped.
    fn checkpoint(&self) -> io::Result<Arc<dyn Checkpoint>>;

    /// Has what was deleted or overwritten in these tables leave the disk: when this returns, no file of the
    /// store holds it (checkpoints made before are the caller's to replace).
    fn purge(&self, tables: &[Table]) -> io::Result<()>;

    /// Begins to receive a checkpoint.
    fn begin_install(&self) -> io::Result<Box<dyn Install>>;
}
