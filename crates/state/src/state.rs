//! The state in memory: persistent maps, so that a reader holds one immutable snapshot while the next is
//! being made, and takes no lock.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use keyward_hsm::RootId;
use keyward_model::{
    AccountId, AliasName, DomainKeyId, KeyId, KeyMaterialId, NodeId, PrincipalArn, Region,
    Timestamp,
};
use keyward_quota::{BucketId, Quota, QuotaName, WindowUse};
use rpds::RedBlackTreeMapSync;

use crate::by_id::{KeysById, no_keys};
use crate::codec;
use crate::command::{CommandId, Outcome};
use crate::multi_region::{
    ChangeToken, HistoryId, KeyView, MultiRegionKey, PeerRegion, Reconciliation, RegionKey, Shared,
};
use crate::rows::{
    Alias, DiskMark, DomainKey, Fingerprint, ForeignPrincipal, Invitation, InvitationId, Key,
    OutsideAuthority, Principal, RegionFacts, Root, Tombstone,
};
use crate::store::{Store, Table};

/// Key of the row that holds the facts of the Region, in [`Table::Meta`].
pub(crate) const META_REGION: &[u8] = b"region";
/// Key of the row that holds Region time.
pub(crate) const META_TIME: &[u8] = b"time";
/// Key of the row that holds how far the clock was moved ahead.
pub(crate) const META_OFFSET: &[u8] = b"clock_offset";
/// Key of the row that holds the nodes that were given up.
pub(crate) const META_LOST: &[u8] = b"lost";
/// Key of the row that holds the present history.
pub(crate) const META_HISTORY: &[u8] = b"history";
/// Key of the row that holds the number of the last change of a quota.
pub(crate) const META_QUOTAS: &[u8] = b"quotas";
/// Key of the row that holds how far the counters on the nodes' disks had come.
pub(crate) const META_COUNTERS: &[u8] = b"counters";

/// Key of the row that holds the Region's key pair for material from other Regions.
pub(crate) const META_REGION_KEY: &[u8] = b"region_key";

/// Outside authorities by fingerprint and the id of the Region that added them. Each call by one of their callers looks for
/// its own: a range of this map takes no memory.
type Authorities = BTreeMap<(Fingerprint, [u8; 16]), Arc<OutsideAuthority>>;

/// The whole state of a Region except for sealed tokens, as of one point in the log. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Index of the last applied entry, in the snapshot's own view. Zero before the first.
    pub applied: u64,
    /// Region time: the largest stamp applied.
    pub time: Timestamp,
    /// How far the Region's clock was moved ahead for rehearsals, in milliseconds.
    pub clock_offset_ms: i64,
    /// How far the counters on the nodes' disks had come lately, of nodes that were removed too.
    pub counters: Arc<BTreeMap<NodeId, DiskMark>>,
    /// Nodes that were given up in recoveries, and where they were.
    pub lost: Arc<BTreeMap<NodeId, String>>,
    /// Names the history since the last recovery; none before the first.
    pub history: Option<[u8; 16]>,
    /// The facts; none before the founding.
    pub region: Option<Arc<RegionFacts>>,
    pub(crate) keys: KeysById,
    pub(crate) account_keys: RedBlackTreeMapSync<(AccountId, KeyId), ()>,
    pub(crate) key_counts: RedBlackTreeMapSync<AccountId, u32>,
    pub(crate) aliases: RedBlackTreeMapSync<(AccountId, AliasName), Arc<Alias>>,
    pub(crate) key_aliases: RedBlackTreeMapSync<(KeyId, AliasName), ()>,
    pub(crate) principals: RedBlackTreeMapSync<PrincipalArn, Arc<Principal>>,
    /// Those of other Regions, by ARN and the id of their Region.
    pub(crate) foreign: RedBlackTreeMapSync<(PrincipalArn, [u8; 16]), Arc<ForeignPrincipal>>,
    /// Outside authorities: few.
    pub(crate) authorities: Arc<Authorities>,
    /// Domain keys by id: few (one a day).
    pub domain_keys: Arc<BTreeMap<DomainKeyId, Arc<DomainKey>>>,
    /// Invitations to nodes, until a while after their end.
    pub invitations: Arc<BTreeMap<InvitationId, Invitation>>,
    /// Registered roots: one a node.
    pub roots: Arc<BTreeMap<RootId, Root>>,
    pub(crate) outcomes: RedBlackTreeMapSync<CommandId, Arc<(Timestamp, Outcome)>>,
    pub(crate) outcome_ages: RedBlackTreeMapSync<(Timestamp, CommandId), ()>,
    /// Keys whose automatic rotation is on, by due time.
    pub(crate) rotations_due: RedBlackTreeMapSync<(Timestamp, KeyId), ()>,
    /// Keys with a material introduced and not yet used.
    pub(crate) rotations_open: RedBlackTreeMapSync<KeyId, ()>,
    /// Keys that wait for their deletion, by date.
    pub(crate) deletions_due: RedBlackTreeMapSync<(Timestamp, KeyId), ()>,
    pub(crate) tombstones: RedBlackTreeMapSync<KeyId, Arc<Tombstone>>,
    /// Keys that are gone, by the number of their deletion.
    pub(crate) deletions: RedBlackTreeMapSync<u64, KeyId>,
    /// Rises with every change of a quota.
    pub quotas_revision: u64,
    pub(crate) quotas: RedBlackTreeMapSync<QuotaName, Arc<Quota>>,
    pub(crate) quota_use: RedBlackTreeMapSync<BucketId, WindowUse>,
    /// The key pair that other Regions seal material to; none before there was a need.
    pub region_key: Option<Arc<RegionKey>>,
    pub(crate) peer_regions: Arc<BTreeMap<Region, Arc<PeerRegion>>>,
    pub(crate) multi_region: RedBlackTreeMapSync<KeyId, Arc<MultiRegionKey>>,
    /// Multi-Region keys and principals by the number of their last change: what other Regions are told, each once.
    pub(crate) feed: RedBlackTreeMapSync<u64, FeedItem>,
    pub(crate) reconciliations: RedBlackTreeMapSync<KeyId, Arc<Reconciliation>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            applied: 0,
            time: Timestamp::default(),
            clock_offset_ms: 0,
            counters: Arc::default(),
            lost: Arc::default(),
            history: None,
            region: None,
            keys: no_keys(),
            account_keys: RedBlackTreeMapSync::new_sync(),
            key_counts: RedBlackTreeMapSync::new_sync(),
            aliases: RedBlackTreeMapSync::new_sync(),
            key_aliases: RedBlackTreeMapSync::new_sync(),
            principals: RedBlackTreeMapSync::new_sync(),
            foreign: RedBlackTreeMapSync::new_sync(),
            authorities: Arc::default(),
            domain_keys: Arc::default(),
            invitations: Arc::default(),
            roots: Arc::default(),
            outcomes: RedBlackTreeMapSync::new_sync(),
            outcome_ages: RedBlackTreeMapSync::new_sync(),
            rotations_due: RedBlackTreeMapSync::new_sync(),
            rotations_open: RedBlackTreeMapSync::new_sync(),
            deletions_due: RedBlackTreeMapSync::new_sync(),
            tombstones: RedBlackTreeMapSync::new_sync(),
            deletions: RedBlackTreeMapSync::new_sync(),
            quotas_revision: 0,
            quotas: RedBlackTreeMapSync::new_sync(),
            quota_use: RedBlackTreeMapSync::new_sync(),
            region_key: None,
            peer_regions: Arc::default(),
            multi_region: RedBlackTreeMapSync::new_sync(),
            feed: RedBlackTreeMapSync::new_sync(),
            reconciliations: RedBlackTreeMapSync::new_sync(),
        }
    }
}

/// What a feed names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FeedItem {
    Key(KeyId),
    Principal(PrincipalArn),
    Foreign(PrincipalArn, [u8; 16]),
    Authority(Fingerprint, [u8; 16]),
}

/// One thing that other Regions are told of.
#[derive(Clone, Copy, Debug)]
pub enum Fed<'a> {
    /// A multi-Region key.
    Key(&'a MultiRegionKey),
    /// A principal of this Region.
    Principal(&'a Principal),
    /// A principal of another one.
    Foreign(&'a ForeignPrincipal),
    /// An outside authority.
    Authority(&'a OutsideAuthority),
}

impl Fed<'_> {
    /// The number of its last change, and when that was.
    #[must_use]
    pub fn changed(&self) -> (u64, Timestamp) {
        match self {
            Self::Key(row) => (row.changed, row.changed_at),
            Self::Principal(principal) => (principal.changed, principal.changed_at),
            Self::Foreign(row) => (row.principal.changed, row.principal.changed_at),
            Self::Authority(row) => (row.changed, row.changed_at),
        }
    }
}

/// A principal in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The other Region that made it; none of this Region's own.
    pub home: Option<(Region, [u8; 16])>,
    /// The principal.
    pub principal: Arc<Principal>,
}

impl Listed {
    /// Where it stands in the list.
    #[must_use]
    pub fn place(&self) -> (PrincipalArn, [u8; 16]) {
        let home = self.home.as_ref().map_or([0; 16], |(_, id)| *id);
        (self.principal.arn.clone(), home)
    }
}

/// One page of a listing and where the next one starts.
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// More follow.
    pub truncated: bool,
}

impl<T> Page<T> {
    pub(crate) fn take(entries: impl Iterator<Item = T>, limit: usize) -> Self {
        let mut entries = entries;
        let items: Vec<T> = entries.by_ref().take(limit).collect();
        Self { items, truncated: entries.next().is_some() }
    }
}

impl State {
    /// Reads the state that a store holds. `applied` is the caller's to set: it is stored with the log
    /// id that consensus needs.
    pub fn load(store: &dyn Store) -> io::Result<Self> {
        let mut state = Self::default();
        fn row<T: serde::de::DeserializeOwned>(table: Table, bytes: &[u8]) -> io::Result<T> {
            codec::decode(bytes)
                .map_err(|e| io::Error::other(format!("table {}: {e}", table.name())))
        }
        if let Some(bytes) = store.get(Table::Meta, META_REGION)? {
            state.region = Some(Arc::new(row(Table::Meta, &bytes)?));
        }
        if let Some(bytes) = store.get(Table::Meta, META_TIME)? {
            state.time = row(Table::Meta, &bytes)?;
        }
        if let Some(bytes) = store.get(Table::Meta, META_OFFSET)? {
            state.clock_offset_ms = row(Table::Meta, &bytes)?;
        }
        if let Some(bytes) = store.get(Table::Meta, META_COUNTERS)? {
            state.counters = Arc::new(row(Table::Meta, &bytes)?);
        }
        if let Some(bytes) = store.get(Table::Meta, META_LOST)? {
            state.lost = Arc::new(row(Table::Meta, &bytes)?);
        }
        if let Some(bytes) = store.get(Table::Meta, META_HISTORY)? {
            state.history = Some(row(Table::Meta, &bytes)?);
        }
        if let Some(bytes) = store.get(Table::Meta, META_QUOTAS)? {
            state.quotas_revision = row(Table::Meta, &bytes)?;
        }
        if let Some(bytes) = store.get(Table::Meta, META_REGION_KEY)? {
            state.region_key = Some(Arc::new(row(Table::Meta, &bytes)?));
        }
        let mut peers = BTreeMap::new();
        store.scan(Table::PeerRegions, &mut |_, bytes| {
            let peer: PeerRegion = row(Table::PeerRegions, bytes)?;
            peers.insert(peer.region.clone(), Arc::new(peer));
            Ok(())
        })?;
        state.peer_regions = Arc::new(peers);
        store.scan(Table::Reconciliations, &mut |_, bytes| {
            let entry: Reconciliation = row(Table::Reconciliations, bytes)?;
            state.reconciliations.insert_mut(entry.key, Arc::new(entry));
            Ok(())
        })?;
        store.scan(Table::MultiRegionKeys, &mut |_, bytes| {
            state.index_multi_region(Arc::new(row(Table::MultiRegionKeys, bytes)?));
            Ok(())
        })?;
        store.scan(Table::Quotas, &mut |_, bytes| {
            let quota: Quota = row(Table::Quotas, bytes)?;
            state.quotas.insert_mut(quota.name.clone(), Arc::new(quota));
            Ok(())
        })?;
        store.scan(Table::QuotaUse, &mut |_, bytes| {
            let (bucket, used): (BucketId, WindowUse) = row(Table::QuotaUse, bytes)?;
            state.quota_use.insert_mut(bucket, used);
            Ok(())
        })?;
        store.scan(Table::Tombstones, &mut |_, bytes| {
            state.index_tombstone(Arc::new(row(Table::Tombstones, bytes)?));
            Ok(())
        })?;
        store.scan(Table::Keys, &mut |_, bytes| {
            state.index_key(Arc::new(row(Table::Keys, bytes)?));
            Ok(())
        })?;
        store.scan(Table::Aliases, &mut |_, bytes| {
            state.index_alias(Arc::new(row(Table::Aliases, bytes)?));
            Ok(())
        })?;
        store.scan(Table::Principals, &mut |_, bytes| {
            state.index_principal(Arc::new(row(Table::Principals, bytes)?));
            Ok(())
        })?;
        store.scan(Table::ForeignPrincipals, &mut |_, bytes| {
            state.index_foreign_principal(Arc::new(row(Table::ForeignPrincipals, bytes)?));
            Ok(())
        })?;
        store.scan(Table::Authorities, &mut |_, bytes| {
            state.index_authority(Arc::new(row(Table::Authorities, bytes)?));
            Ok(())
        })?;
        let mut domain_keys = BTreeMap::new();
        store.scan(Table::DomainKeys, &mut |_, bytes| {
            let domain_key: DomainKey = row(Table::DomainKeys, bytes)?;
            domain_keys.insert(domain_key.sealed.id, Arc::new(domain_key));
            Ok(())
        })?;
        state.domain_keys = Arc::new(domain_keys);
        let mut invitations = BTreeMap::new();
        store.scan(Table::Invitations, &mut |_, bytes| {
            let invitation: Invitation = row(Table::Invitations, bytes)?;
            invitations.insert(invitation.id, invitation);
            Ok(())
        })?;
        state.invitations = Arc::new(invitations);
        let mut roots = BTreeMap::new();
        store.scan(Table::Roots, &mut |_, bytes| {
            let root: Root = row(Table::Roots, bytes)?;
            roots.insert(root.id.clone(), root);
            Ok(())
        })?;
        state.roots = Arc::new(roots);
        store.scan(Table::Outcomes, &mut |id, bytes| {
            let id = CommandId::try_from(id)
                .map_err(|_| io::Error::other("table outcomes: a key of a wrong length"))?;
            let kept: (Timestamp, Outcome) = row(Table::Outcomes, bytes)?;
            state.outcome_ages.insert_mut((kept.0, id), ());
            state.outcomes.insert_mut(id, Arc::new(kept));
            Ok(())
        })?;
        Ok(state)
    }

    /// Puts a key and everything derived from it in place.
    pub(crate) fn index_key(&mut self, key: Arc<Key>) {
        match self.keys.get(&key.id).cloned() {
            Some(old) => {
                self.rotations_due.remove_mut(&(old.rotation.next, old.id));
                self.rotations_open.remove_mut(&old.id);
                if let Some(date) = old.deletion_date {
                    self.deletions_due.remove_mut(&(date, old.id));
                }
            }
            None => {
                self.account_keys.insert_mut((key.account, key.id), ());
                let count = self.key_counts.get(&key.account).copied().unwrap_or(0);
                self.key_counts.insert_mut(key.account, count + 1);
            }
        }
        // A replica's rotations are its primary's to make.
        let follows =
            self.multi_region.get(&key.id).and_then(|row| row.primary()).is_some_and(|primary| {
                self.region.as_ref().is_some_and(|facts| facts.region != *primary)
            });
        if key.rotation.enabled && key.state == keyward_model::KeyState::Enabled && !follows {
            self.rotations_due.insert_mut((key.rotation.next, key.id), ());
        }
        if key.introduced().is_some() && !follows {
            self.rotations_open.insert_mut(key.id, ());
        }
        if let Some(date) = key.deletion_date {
            self.deletions_due.insert_mut((date, key.id), ());
        }
        self.keys.insert_mut(key.id, key);
    }

    pub(crate) fn index_multi_region(&mut self, row: Arc<MultiRegionKey>) {
        if let Some(old) = self.multi_region.get(&row.key) {
            self.feed.remove_mut(&old.changed);
        }
        self.feed.insert_mut(row.changed, FeedItem::Key(row.key));
        let key = self.keys.get(&row.key).cloned();
        self.multi_region.insert_mut(row.key, row);
        // Whether the primary is here decides who makes its rotations.
        if let Some(key) = key {
            self.index_key(key);
        }
    }

    pub(crate) fn index_principal(&mut self, principal: Arc<Principal>) {
        if let Some(old) = self.principals.get(&principal.arn) {
            self.feed.remove_mut(&old.changed);
        }
        if principal.changed > 0 {
            let item = FeedItem::Principal(principal.arn.clone());
            self.feed.insert_mut(principal.changed, item);
        }
        self.principals.insert_mut(principal.arn.clone(), principal);
    }

    pub(crate) fn index_foreign_principal(&mut self, row: Arc<ForeignPrincipal>) {
        let slot = (row.principal.arn.clone(), row.home_id);
        if let Some(old) = self.foreign.get(&slot) {
            self.feed.remove_mut(&old.principal.changed);
        }
        let item = FeedItem::Foreign(slot.0.clone(), slot.1);
        self.feed.insert_mut(row.principal.changed, item);
        self.foreign.insert_mut(slot, row);
    }

    pub(crate) fn index_authority(&mut self, row: Arc<OutsideAuthority>) {
        let slot = (row.fingerprint, row.home_id);
        if let Some(old) = self.authorities.get(&slot) {
            self.feed.remove_mut(&old.changed);
        }
        self.feed.insert_mut(row.changed, FeedItem::Authority(slot.0, slot.1));
        Arc::make_mut(&mut self.authorities).insert(slot, row);
    }

    /// Takes a key and everything derived from it out of place.
    pub(crate) fn forget_key(&mut self, key: &Key) {
        self.rotations_due.remove_mut(&(key.rotation.next, key.id));
        self.rotations_open.remove_mut(&key.id);
        if let Some(date) = key.deletion_date {
            self.deletions_due.remove_mut(&(date, key.id));
        }
        self.account_keys.remove_mut(&(key.account, key.id));
        match self.account_key_count(key.account) {
            0 | 1 => drop(self.key_counts.remove_mut(&key.account)),
            count => self.key_counts.insert_mut(key.account, count - 1),
        }
        self.keys.remove_mut(&key.id);
    }

    pub(crate) fn index_tombstone(&mut self, tombstone: Arc<Tombstone>) {
        self.deletions.insert_mut(tombstone.number, tombstone.key);
        self.tombstones.insert_mut(tombstone.key, tombstone);
    }

    pub(crate) fn index_alias(&mut self, alias: Arc<Alias>) {
        let slot = (alias.account, alias.name.clone());
        if let Some(old) = self.aliases.get(&slot).cloned() {
            self.key_aliases.remove_mut(&(old.target, old.name.clone()));
        }
        self.key_aliases.insert_mut((alias.target, alias.name.clone()), ());
        self.aliases.insert_mut(slot, alias);
    }

    /// The key of that id.
    #[must_use]
    pub fn key(&self, id: &KeyId) -> Option<&Arc<Key>> {
        self.keys.get(id)
    }

    /// How many keys the Region holds.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.size()
    }

    /// How many keys the account owns.
    #[must_use]
    pub fn account_key_count(&self, account: AccountId) -> u32 {
        self.key_counts.get(&account).copied().unwrap_or(0)
    }

    /// The account's alias of that name.
    #[must_use]
    pub fn alias(&self, account: AccountId, name: &AliasName) -> Option<&Arc<Alias>> {
        self.aliases.get(&(account, name.clone()))
    }

    /// The principal of that ARN.
    #[must_use]
    pub fn principal(&self, arn: &PrincipalArn) -> Option<&Arc<Principal>> {
        self.principals.get(arn)
    }

    /// The principal of that ARN that the Region of that id has made.
    #[must_use]
    pub fn foreign_principal(
        &self,
        arn: &PrincipalArn,
        home_id: &[u8; 16],
    ) -> Option<&Arc<ForeignPrincipal>> {
        self.foreign.get(&(arn.clone(), *home_id))
    }

    /// Whether that Region is linked with this one: what a Region made that was forgotten counts no more.
    #[must_use]
    pub fn is_linked(&self, region: &Region, region_id: &[u8; 16]) -> bool {
        self.peer_region(region).is_some_and(|peer| peer.region_id == *region_id)
    }

    /// The outside authority of that fingerprint that the Region of that id has added.
    #[must_use]
    pub fn authority(
        &self,
        fingerprint: &Fingerprint,
        home_id: &[u8; 16],
    ) -> Option<&Arc<OutsideAuthority>> {
        self.authorities.get(&(*fingerprint, *home_id))
    }

    /// The outside authority of that fingerprint, once for each Region that has added it.
    pub fn authorities_of(
        &self,
        fingerprint: &Fingerprint,
    ) -> impl Iterator<Item = &Arc<OutsideAuthority>> {
        self.authorities
            .range((*fingerprint, [0; 16])..=(*fingerprint, [0xff; 16]))
            .map(|(_, authority)| authority)
    }

    /// All outside authorities, those that were removed too.
    pub fn authorities(&self) -> impl Iterator<Item = &Arc<OutsideAuthority>> {
        self.authorities.values()
    }

    /// Whether what that authority certifies is believed here.
    #[must_use]
    pub fn believes(&self, authority: &OutsideAuthority) -> bool {
        let mine = self.region.as_ref().is_some_and(|me| me.region_id == authority.home_id);
        authority.is_trusted() && (mine || self.is_linked(&authority.home, &authority.home_id))
    }

    /// Whether anybody may call as that ARN, whichever Region made it.
    #[must_use]
    pub fn knows_principal(&self, arn: &PrincipalArn) -> bool {
        self.principal(arn).is_some()
            || self.foreign_principals_named(arn).any(|row| self.is_linked(&row.home, &row.home_id))
    }

    /// Principals of that ARN that other Regions have made.
    pub fn foreign_principals_named(
        &self,
        arn: &PrincipalArn,
    ) -> impl Iterator<Item = &Arc<ForeignPrincipal>> {
        self.foreign
            .range((arn.clone(), [0; 16])..=(arn.clone(), [0xff; 16]))
            .map(|(_, principal)| principal)
    }

    /// All principals that other Regions have made.
    pub fn foreign_principals(&self) -> impl Iterator<Item = &Arc<ForeignPrincipal>> {
        self.foreign.values()
    }

    /// The account's keys after `after`, by id.
    #[must_use]
    pub fn list_keys(&self, account: AccountId, after: Option<KeyId>, limit: usize) -> Page<KeyId> {
        let from = match after {
            Some(id) => std::ops::Bound::Excluded((account, id)),
            None => std::ops::Bound::Included((account, KeyId::from_parts(false, [0; 16]))),
        };
        let entries = self
            .account_keys
            .range((from, std::ops::Bound::Unbounded))
            .map(|((owner, id), ())| (*owner, *id))
            .take_while(move |(owner, _)| *owner == account)
            .map(|(_, id)| id);
        Page::take(entries, limit)
    }

    /// The account's aliases after `after`, by name; with `target`, only those of that key.
    #[must_use]
    pub fn list_aliases(
        &self,
        account: AccountId,
        target: Option<KeyId>,
        after: Option<&AliasName>,
        limit: usize,
    ) -> Page<Arc<Alias>> {
        let later = |name: &AliasName| after.is_none_or(|after| name > after);
        match target {
            Some(key) => {
                let entries = self
                    .key_aliases
                    .iter()
                    .skip_while(|((k, _), ())| *k < key)
                    .take_while(|((k, _), ())| *k == key)
                    .filter(|((_, name), ())| later(name))
                    .filter_map(|((_, name), ())| self.alias(account, name).cloned());
                Page::take(entries, limit)
            }
            None => {
                let entries = self
                    .aliases
                    .iter()
                    .skip_while(|((owner, _), _)| *owner < account)
                    .take_while(|((owner, _), _)| *owner == account)
                    .filter(|((_, name), _)| later(name))
                    .map(|(_, alias)| Arc::clone(alias));
                Page::take(entries, limit)
            }
        }
    }

    /// Every alias that points at the key.
    pub(crate) fn aliases_of(&self, key: &Key) -> Vec<Arc<Alias>> {
        self.list_aliases(key.account, Some(key.id), None, usize::MAX).items
    }

    /// Principals after `after`, by ARN and the id of their Region; those of this Region first.
    #[must_use]
    pub fn list_principals(
        &self,
        after: Option<&(PrincipalArn, [u8; 16])>,
        limit: usize,
    ) -> Page<Listed> {
        let own = self.principals.values().map(|p| Listed { home: None, principal: Arc::clone(p) });
        let linked = self.foreign.values().filter(|row| self.is_linked(&row.home, &row.home_id));
        let foreign = linked.map(|row| Listed {
            home: Some((row.home.clone(), row.home_id)),
            principal: Arc::new(row.principal.clone()),
        });
        let later = |listed: &Listed| after.is_none_or(|after| listed.place() > *after);
        let mut own = own.filter(later).peekable();
        let mut foreign = foreign.filter(later).peekable();
        let entries = std::iter::from_fn(move || match (own.peek(), foreign.peek()) {
            (Some(a), Some(b)) if b.place() < a.place() => foreign.next(),
            (Some(_), _) => own.next(),
            (None, _) => foreign.next(),
        });
        Page::take(entries, limit)
    }

    /// Keys whose automatic rotation is due at `now`, at most `limit`.
    #[must_use]
    pub fn rotations_due(&self, now: Timestamp, limit: usize) -> Vec<KeyId> {
        self.rotations_due
            .iter()
            .take_while(|((due, _), ())| *due <= now)
            .map(|((_, key), ())| *key)
            .filter(|key| !self.rotations_open.contains_key(key))
            .take(limit)
            .collect()
    }

    /// Keys with a rotation half done, at most `limit`.
    #[must_use]
    pub fn rotations_open(&self, limit: usize) -> Vec<KeyId> {
        self.rotations_open.iter().map(|(key, ())| *key).take(limit).collect()
    }

    /// Keys whose waiting period is over at `now`, with their dates, at most `limit`.
    #[must_use]
    pub fn deletions_due(&self, now: Timestamp, limit: usize) -> Vec<(KeyId, Timestamp)> {
        self.deletions_due
            .iter()
            .take_while(|((date, _), ())| *date <= now)
            .map(|((date, key), ())| (*key, *date))
            .take(limit)
            .collect()
    }

    /// How many keys wait for their deletion.
    #[must_use]
    pub fn deletions_waiting(&self) -> usize {
        self.deletions_due.size()
    }

    /// How many keys were deleted for good.
    #[must_use]
    pub fn deletions(&self) -> u64 {
        self.deletions.last().map_or(0, |(number, _)| *number)
    }

    /// Keys deleted after the first `number` deletions.
    pub fn deleted_after(&self, number: u64) -> impl Iterator<Item = &Arc<Tombstone>> {
        self.deletions
            .range((std::ops::Bound::Excluded(number), std::ops::Bound::Unbounded))
            .filter_map(|(_, key)| self.tombstones.get(key))
    }

    /// The quota of that name.
    #[must_use]
    pub fn quota(&self, name: &QuotaName) -> Option<&Arc<Quota>> {
        self.quotas.get(name)
    }

    /// The quota that defines a bucket: the account's or principal's own, or the general one.
    #[must_use]
    pub fn quota_of(&self, bucket: &BucketId) -> Option<&Arc<Quota>> {
        bucket.names().iter().find_map(|name| self.quotas.get(name))
    }

    /// All quotas, by name.
    pub fn quotas(&self) -> impl Iterator<Item = &Arc<Quota>> {
        self.quotas.values()
    }

    /// What is used up of a quota of a minute or a day, as of a moment ago.
    #[must_use]
    pub fn quota_use(&self, bucket: &BucketId) -> Option<WindowUse> {
        self.quota_use.get(bucket).copied()
    }

    /// What stayed of a key that is gone. Of a replica that was made anew since, nothing.
    #[must_use]
    pub fn tombstone(&self, key: &KeyId) -> Option<&Arc<Tombstone>> {
        self.tombstones.get(key).filter(|_| !self.keys.contains_key(key))
    }

    // --- Other Regions.

    /// What is known of a multi-Region key beyond the key itself.
    #[must_use]
    pub fn multi_region(&self, key: &KeyId) -> Option<&Arc<MultiRegionKey>> {
        self.multi_region.get(key)
    }

    /// The same of all of them, those that are gone too.
    pub fn multi_region_keys(&self) -> impl Iterator<Item = &Arc<MultiRegionKey>> {
        self.multi_region.values()
    }

    /// Another Region of that name, as an operator approved it.
    #[must_use]
    pub fn peer_region(&self, region: &Region) -> Option<&Arc<PeerRegion>> {
        self.peer_regions.get(region)
    }

    /// All other Regions that are approved, by name.
    pub fn peer_regions(&self) -> impl Iterator<Item = &Arc<PeerRegion>> {
        self.peer_regions.values()
    }

    /// Tells one set of approved Regions from another: the same pointer, the same set.
    #[must_use]
    pub fn peer_regions_shared(&self) -> &Arc<BTreeMap<Region, Arc<PeerRegion>>> {
        &self.peer_regions
    }

    /// Names this line of the Region's life.
    #[must_use]
    pub fn history_id(&self) -> HistoryId {
        let founded = self.region.as_ref().map(|facts| facts.region_id);
        self.history.or(founded).unwrap_or_default()
    }

    /// Names the change of that number here.
    #[must_use]
    pub fn change_token(&self, index: u64) -> Option<ChangeToken> {
        let facts = self.region.as_ref()?;
        Some(ChangeToken { region: facts.region.clone(), history: self.history_id(), index })
    }

    /// The number of the last change that other Regions are to be told of.
    #[must_use]
    pub fn feed_head(&self) -> u64 {
        self.feed.last().map_or(0, |(number, _)| *number)
    }

    /// What changed after `index`, in the order of the last changes. What changes again moves to the end, so the feed is
    /// never longer than there are keys and principals, and never has to be cut.
    pub fn feed_after(&self, index: u64) -> impl Iterator<Item = Fed<'_>> {
        self.feed.range((std::ops::Bound::Excluded(index), std::ops::Bound::Unbounded)).filter_map(
            |(_, item)| match item {
                FeedItem::Key(key) => self.multi_region.get(key).map(|row| Fed::Key(row)),
                FeedItem::Principal(arn) => self.principals.get(arn).map(|p| Fed::Principal(p)),
                FeedItem::Foreign(arn, home) => {
                    self.foreign.get(&(arn.clone(), *home)).map(|row| Fed::Foreign(row))
                }
                FeedItem::Authority(fingerprint, home) => {
                    self.authority(fingerprint, home).map(|row| Fed::Authority(row))
                }
            },
        )
    }

    /// What this Region tells others of a principal; none of one that is nobody else's business.
    #[must_use]
    pub fn told_principal(&self, fed: &Fed<'_>) -> Option<ForeignPrincipal> {
        let mut told = match fed {
            Fed::Key(_) | Fed::Authority(_) => return None,
            Fed::Principal(principal) => {
                let facts = self.region.as_ref()?;
                ForeignPrincipal {
                    home: facts.region.clone(),
                    home_id: facts.region_id,
                    principal: Principal::clone(principal),
                }
            }
            Fed::Foreign(row) => ForeignPrincipal::clone(row),
        };
        // Those are this Region's own numbers.
        (told.principal.changed, told.principal.changed_at) = (0, Timestamp(0));
        Some(told)
    }

    /// What this Region tells others of an outside authority.
    #[must_use]
    pub fn told_authority(fed: &Fed<'_>) -> Option<OutsideAuthority> {
        let Fed::Authority(row) = fed else { return None };
        // Those are this Region's own numbers.
        Some(OutsideAuthority {
            changed: 0,
            changed_at: Timestamp(0),
            ..OutsideAuthority::clone(row)
        })
    }

    /// What this Region tells others of a key.
    #[must_use]
    pub fn view_of(&self, id: &KeyId) -> Option<KeyView> {
        let row = self.multi_region.get(id)?;
        let shared = row.here.as_ref().zip(self.key(id)).map(|(here, key)| {
            Box::new(Shared {
                generation: here.generation,
                version: here.version.clone(),
                base: here.base.clone(),
                generations: here.generations,
                related: here.related.clone(),
                offer: here.offer.clone(),
                materials: key.materials.clone(),
                current: key.current_material().id,
                waiting: key.introduced().map(|material| material.id),
                rotation: key.rotation,
            })
        });
        Some(KeyView {
            key: row.key,
            account: row.account,
            shared,
            gone: row.gone.clone(),
            refused: row.refused,
            declined: row.declined.clone(),
        })
    }

    /// The materials that this Region needs to take a telling over, and lacks.
    #[must_use]
    pub fn materials_missing(&self, view: &KeyView) -> Vec<KeyMaterialId> {
        let (Some(shared), Some(facts)) = (&view.shared, &self.region) else { return Vec::new() };
        let row = self.multi_region.get(&view.key);
        let me = &facts.region;
        let gone = row.and_then(|row| row.gone.get(me)).max(view.gone.get(me)).copied();
        let lives = |generation: u64| gone.is_none_or(|gone| gone < generation);
        let here = row.and_then(|row| row.here.as_ref()).map(|here| here.generation);
        let told = shared.related.get(me).map(|related| related.generation);
        // One that is here, but gone as others know, is made anew or not at all.
        let known = here.filter(|here| lives(*here)).and_then(|_| self.key(&view.key));
        if known.is_none() && !told.is_some_and(lives) {
            return Vec::new();
        }
        let lacks = |id: &KeyMaterialId| known.is_none_or(|key| key.material(id).is_none());
        shared.materials.iter().map(|material| material.id).filter(lacks).collect()
    }

    /// What was lost of a key in a promotion, and waits for a decision.
    #[must_use]
    pub fn reconciliation(&self, key: &KeyId) -> Option<&Arc<Reconciliation>> {
        self.reconciliations.get(key)
    }

    /// The same of all keys.
    pub fn reconciliations(&self) -> impl Iterator<Item = &Arc<Reconciliation>> {
        self.reconciliations.values()
    }

    /// The node's own roots, as registered.
    pub fn roots_of(&self, node: NodeId) -> impl Iterator<Item = &Root> {
        self.roots.values().filter(move |root| root.node == node)
    }

    /// A node none of whose roots has a copy of the domain key.
    #[must_use]
    pub fn node_without(&self, key: &keyward_hsm::SealedDomainKey) -> Option<NodeId> {
        let has_copy = |node| {
            self.roots_of(node).any(|root| key.copies.iter().any(|copy| copy.root == root.id))
        };
        self.roots.values().map(|root| root.node).find(|node| !has_copy(*node))
    }

    /// Domain keys that `root` has no copy of.
    #[must_use]
    pub fn domain_keys_without(&self, root: &RootId) -> Vec<DomainKeyId> {
        self.domain_keys
            .values()
            .filter(|key| key.sealed.copies.iter().all(|copy| copy.root != *root))
            .map(|key| key.sealed.id)
            .collect()
    }

    /// The first outcome of a command that was applied lately.
    #[must_use]
    pub fn outcome(&self, id: &CommandId) -> Option<&Outcome> {
        self.outcomes.get(id).map(|kept| &kept.1)
    }
}
