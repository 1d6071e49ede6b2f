//! Several Regions that tell each other of multi-Region keys, in any order, late, twice, and after losses: they agree in
//! the end, nothing that is gone comes back, and every material that ever encrypted is there.

use std::collections::{BTreeMap, BTreeSet};

use keyward_hsm::{RootCopy, SealedDomainKey, SealedToken};
use keyward_model::{
    DomainKeyId, ErrorCode, KeyId, KeyMaterialId, KeyState, PrincipalArn, Region, Timestamp,
};
use keyward_state::{
    Batch, ChangeToken, Command, Cursor, Envelope, Fed, First, Founding, Kinds, MemStore, Outcome,
    OutsideAuthority, PeerRegion, Principal, Purpose, Reply, RotationKind, State, Store, Timers,
    Told, apply,
};
use proptest::prelude::*;

const NAMES: [&str; 3] = ["ap-south-1", "eu-west-1", "us-east-1"];
const DOMAIN: [u8; 16] = [9; 16];
const DAY: i64 = 86_400_000;

fn region(number: usize) -> Region {
    NAMES[number].parse().expect("a Region")
}

fn key(number: u8) -> KeyId {
    KeyId::from_parts(true, [number; 16])
}

fn arn(number: u8) -> PrincipalArn {
    format!("arn:aws:iam::111122223333:user/u{number}").parse().expect("an ARN")
}

fn token() -> SealedToken {
    let mut bytes = vec![1, 1];
    bytes.extend(DOMAIN);
    bytes.extend([0; 16 + 32 + 16]);
    SealedToken::from_bytes(bytes)
}

struct Machine {
    number: usize,
    state: State,
    store: MemStore,
    commands: u64,
    now: i64,
}

impl Machine {
    fn new(number: usize) -> Self {
        let mut machine = Self {
            number,
            state: State::default(),
            store: MemStore::default(),
            commands: 0,
            now: 1_000_000,
        };
        let root: keyward_hsm::RootId =
            "memory:00112233445566778899aabbccddeeff".parse().expect("a root id");
        machine
            .run(Command::Found(Box::new(Founding {
                purpose: Purpose::Dev,
                region: region(number),
                region_id: [number as u8 + 1; 16],
                timers: Timers::DEFAULT,
                ca_certificate: vec![1],
                ca_private_key: token(),
                domain_key: SealedDomainKey {
                    id: DomainKeyId::new(DOMAIN),
                    copies: vec![RootCopy { root: root.clone(), sealed: vec![1] }],
                },
                node: 1,
                root,
                operator: "arn:aws:iam::111122223333:user/op".parse().expect("an ARN"),
                operator_certificate: (vec![1], Timestamp(i64::MAX)),
                authorities: Vec::new(),
            })))
            .expect("founded");
        for other in (0..NAMES.len()).filter(|other| *other != number) {
            machine.link(other).expect("linked");
        }
        machine
    }

    fn link(&mut self, other: usize) -> Outcome {
        self.run(Command::AddRegion {
            peer: PeerRegion {
                region: region(other),
                region_id: [other as u8 + 1; 16],
                ca_certificate: vec![2],
                public_key: vec![4; 65],
                endpoints: vec!["127.0.0.1:1".to_owned()],
                approved: Timestamp(0),
                cursor: Cursor::default(),
            },
        })
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.commands += 1;
        self.now += 1000;
        let mut id = [self.number as u8; 16];
        id[..8].copy_from_slice(&self.commands.to_be_bytes());
        let envelope = Envelope { id, time: Timestamp(self.now), command };
        let mut batch = Batch::default();
        let outcome = apply(&mut self.state, &mut batch, &envelope);
        self.store.write(batch, true).expect("written");
        outcome
    }

    fn create(&mut self, number: u8) -> Outcome {
        let material = self.material();
        self.run(Command::CreateKey {
            key: key(number),
            account: "111122223333".parse().expect("an account"),
            description: String::new(),
            tags: BTreeMap::new(),
            material,
            token: token(),
        })
    }

    fn material(&self) -> KeyMaterialId {
        let mut bytes = [self.number as u8; 32];
        bytes[..8].copy_from_slice(&self.commands.to_be_bytes());
        KeyMaterialId::new(bytes)
    }

    fn replicate(&mut self, number: u8, to: usize) -> Outcome {
        let first = First { description: "a replica".to_owned(), tags: BTreeMap::new() };
        self.run(Command::ReplicateKey { key: key(number), to: region(to), first })
    }

    fn offer(&mut self, number: u8, to: usize) -> Outcome {
        let mut offer = [self.number as u8; 16];
        offer[..8].copy_from_slice(&self.commands.to_be_bytes());
        self.run(Command::OfferPrimary { key: key(number), to: region(to), offer })
    }

    fn introduce(&mut self, number: u8) -> Outcome {
        let material = self.material();
        self.run(Command::IntroduceMaterial {
            key: key(number),
            material,
            token: token(),
            kind: RotationKind::OnDemand,
        })
    }

    fn delete(&mut self, number: u8) {
        let id = key(number);
        drop(self.run(Command::ScheduleDeletion { key: id, window_days: 7 }));
        self.now += 8 * DAY;
        self.execute(id);
    }

    fn execute(&mut self, id: KeyId) {
        let due = self.state.key(&id).and_then(|key| key.deletion_date);
        if let Some(date) = due.filter(|date| date.0 <= self.now) {
            self.run(Command::DeleteKey { key: id, date }).expect("deleted");
        }
    }

    fn promote(&mut self, lost: usize) {
        let keys: Vec<KeyId> = self.state.multi_region_keys().map(|row| row.key).collect();
        self.run(Command::Promote { lost: region(lost), keys }).expect("promoted");
    }

    /// Takes over the next `limit` changes of another Region. True if there were any.
    fn pull(&mut self, other: &Self, limit: usize) -> bool {
        let from = region(other.number);
        let Some(peer) = self.state.peer_region(&from) else { return false };
        let history = other.state.history_id();
        let index = if peer.cursor.history == history { peer.cursor.index } else { 0 };
        let rows: Vec<Fed<'_>> = other.state.feed_after(index).take(limit).collect();
        let Some((index, made)) = rows.last().map(Fed::changed) else { return false };
        let cursor = Cursor { history, index, made };
        let principals = rows.iter().filter_map(|fed| other.state.told_principal(fed)).collect();
        let authorities = rows.iter().filter_map(State::told_authority).collect();
        let told = rows.iter().filter_map(|fed| match fed {
            Fed::Key(row) => other.state.view_of(&row.key),
            _ => None,
        });
        let told = told
            .map(|view| {
                let tokens = self.state.materials_missing(&view);
                Told { tokens: tokens.into_iter().map(|id| (id, token())).collect(), view }
            })
            .collect();
        self.run(Command::Merge { from, cursor, told, principals, authorities })
            .expect("taken over");
        true
    }

    /// Trusts an outside authority, or does so no more.
    fn trust(&mut self, number: u8, added: bool) -> Outcome {
        let fingerprint = [number; 32];
        self.run(match added {
            true => Command::AddAuthority { fingerprint, certificate: vec![number] },
            false => Command::RemoveAuthority { fingerprint },
        })
    }

    /// The outside authorities that it knows, as it tells of them.
    fn authorities(&self) -> Vec<OutsideAuthority> {
        let fed: Vec<Fed<'_>> = self.state.feed_after(0).collect();
        let mut known: Vec<_> = fed.iter().filter_map(State::told_authority).collect();
        known.sort_by_key(|row| (row.fingerprint, row.home_id));
        known
    }

    fn principal(&mut self, number: u8) -> Outcome {
        let kinds = Kinds { user: true, ..Kinds::default() };
        self.run(Command::CreatePrincipal { arn: arn(number), kinds, certificate: None })
    }

    /// Issues a certificate; its serial number, if it could.
    fn certificate(&mut self, number: u8) -> Option<Vec<u8>> {
        let serial = [self.number as u8, number, self.commands as u8].to_vec();
        let command = Command::AddCertificate {
            arn: arn(number),
            serial: serial.clone(),
            not_after: Timestamp(i64::MAX),
        };
        self.run(command).is_ok().then_some(serial)
    }

    /// A principal of the Region `home`, as this one sees it.
    fn seen(&self, home: usize, number: u8) -> Option<Principal> {
        let arn = arn(number);
        let seen = match home == self.number {
            true => self.state.principal(&arn).map(|own| Principal::clone(own)),
            false => {
                let foreign = self.state.foreign_principal(&arn, &[home as u8 + 1; 16]);
                foreign.map(|row| row.principal.clone())
            }
        };
        // Those numbers are each Region's own.
        seen.map(|principal| Principal { changed: 0, changed_at: Timestamp(0), ..principal })
    }

    fn key(&self, number: u8) -> Option<&keyward_state::Key> {
        self.state.key(&key(number)).map(|key| &**key)
    }

    fn is_primary(&self, number: u8) -> bool {
        self.state.multi_region(&key(number)).and_then(|row| row.primary())
            == Some(&region(self.number))
    }

    fn current(&self, number: u8) -> Option<KeyMaterialId> {
        self.key(number).map(|key| key.current_material().id)
    }
}

struct World {
    machines: Vec<Machine>,
    /// Materials that a Region has encrypted with.
    used: BTreeSet<(KeyId, KeyMaterialId)>,
    /// What was deleted in which Region, up to which generation.
    gone: BTreeMap<(usize, KeyId), u64>,
    /// Certificates that were issued, and revoked: where, whose, and the serial number.
    certificates: Vec<(usize, u8, Vec<u8>)>,
    revoked: BTreeSet<(usize, u8, Vec<u8>)>,
    /// Keys of which a Region was promoted: what a lost primary alone had may be unknown until it is back.
    promoted: bool,
}

impl World {
    fn new() -> Self {
        Self {
            machines: (0..NAMES.len()).map(Machine::new).collect(),
            used: BTreeSet::new(),
            gone: BTreeMap::new(),
            certificates: Vec::new(),
            revoked: BTreeSet::new(),
            promoted: false,
        }
    }

    fn pull(&mut self, to: usize, from: usize, limit: usize) -> bool {
        if to == from {
            return false;
        }
        let (low, high) = self.machines.split_at_mut(to.max(from));
        let (to, from) =
            if to < from { (&mut low[to], &high[0]) } else { (&mut high[0], &low[from]) };
        to.pull(from, limit)
    }

    /// All links heal. What the leaders' housekeeping does goes on.
    fn settle(&mut self) {
        for _ in 0..200 {
            let mut moved = false;
            for to in 0..NAMES.len() {
                for from in 0..NAMES.len() {
                    moved |= self.pull(to, from, 2);
                }
            }
            for number in 0..4 {
                moved |= self.activate(number);
            }
            self.look();
            if !moved {
                return;
            }
        }
        panic!("the Regions do not come to rest");
    }

    /// A primary lets a material encrypt once every Region that has the key has it.
    fn activate(&mut self, number: u8) -> bool {
        let id = key(number);
        let Some(primary) = self.machines.iter().position(|machine| {
            machine.is_primary(number) && machine.state.rotations_open(10).contains(&id)
        }) else {
            return false;
        };
        let machine = &self.machines[primary];
        let Some(waiting) = machine.key(number).and_then(|key| key.introduced()) else {
            return false;
        };
        let waiting = waiting.id;
        let row = machine.state.multi_region(&id).expect("a row");
        let related = row.here.as_ref().expect("here").related.clone();
        let has =
            |other: &Machine| other.key(number).is_some_and(|key| key.material(&waiting).is_some());
        let all = self
            .machines
            .iter()
            .filter(|other| related.contains_key(&region(other.number)))
            .all(has);
        all && self.machines[primary]
            .run(Command::ActivateMaterial { key: id, material: waiting })
            .is_ok()
    }

    /// What must hold at any time.
    fn look(&mut self) {
        for (at, machine) in self.machines.iter().enumerate() {
            for number in 0..4 {
                let id = key(number);
                let Some(current) = machine.current(number) else { continue };
                if matches!(
                    machine.key(number).map(|key| key.state),
                    Some(KeyState::Enabled | KeyState::Updating)
                ) {
                    self.used.insert((id, current));
                }
                let row = machine.state.multi_region(&id).expect("a row for every key");
                let here = row.here.as_ref().expect("the key is here");
                let gone = self.gone.get(&(at, id)).copied().unwrap_or(0);
                assert!(here.generation > gone, "{id} came back in {}", NAMES[at]);
            }
        }
    }

    fn note_gone(&mut self, at: usize, number: u8, generation: Option<u64>) {
        if self.machines[at].key(number).is_none()
            && let Some(generation) = generation
        {
            let gone = self.gone.entry((at, key(number))).or_default();
            *gone = (*gone).max(generation);
        }
    }

    fn generation(&self, at: usize, number: u8) -> Option<u64> {
        let row = self.machines[at].state.multi_region(&key(number))?;
        row.here.as_ref().map(|here| here.generation)
    }

    /// What must hold of principals once everybody has heard everything.
    fn agree_on_principals(&self) {
        for number in 0..4 {
            for home in 0..NAMES.len() {
                let seen: Vec<_> = self.machines.iter().map(|m| m.seen(home, number)).collect();
                assert!(seen.iter().all(|one| *one == seen[0]), "{number} of {home}: {seen:?}");
            }
        }
        let authorities: Vec<_> = self.machines.iter().map(Machine::authorities).collect();
        assert!(authorities.iter().all(|one| *one == authorities[0]), "{authorities:?}");
        for certificate in &self.certificates {
            let (home, number, serial) = certificate;
            for machine in &self.machines {
                let principal = machine.seen(*home, *number).expect("everybody knows it");
                let record = principal.certificates.get(serial).expect("on record everywhere");
                assert_eq!(record.revoked, self.revoked.contains(certificate));
            }
        }
    }

    /// What must hold once everybody has heard everything.
    fn agree(&self) {
        self.agree_on_principals();
        for number in 0..4 {
            let id = key(number);
            let views: Vec<_> = self
                .machines
                .iter()
                .filter(|machine| machine.key(number).is_some())
                .map(|machine| (machine, machine.state.view_of(&id).expect("a view")))
                .collect();
            let Some((_, first)) = views.first() else { continue };
            let first = first.shared.as_ref().expect("shared");
            for (machine, view) in &views {
                let shared = view.shared.as_ref().expect("shared");
                let name = NAMES[machine.number];
                assert_eq!(shared.version, first.version, "{id} in {name}");
                assert_eq!(shared.related, first.related, "{id} in {name}");
                assert_eq!(shared.current, first.current, "{id} in {name}");
                assert_eq!(shared.waiting, first.waiting, "{id} in {name}");
                assert_eq!(shared.rotation, first.rotation, "{id} in {name}");
                let set = |shared: &keyward_state::Shared| -> BTreeSet<KeyMaterialId> {
                    shared.materials.iter().map(|material| material.id).collect()
                };
                assert_eq!(set(shared), set(first), "{id} in {name}");
                assert!(shared.related.contains_key(&region(machine.number)), "{id} in {name}");
                assert!(machine.key(number).is_some_and(|k| k.state != KeyState::Updating));
            }
            let primaries = self
                .machines
                .iter()
                .filter(|machine| machine.key(number).is_some() && machine.is_primary(number));
            assert!(primaries.count() <= 1, "{id} has two primaries");
            for (machine, view) in &views {
                let shared = view.shared.as_ref().expect("shared");
                for (_, material) in self.used.iter().filter(|(used, _)| *used == id) {
                    assert!(
                        shared.materials.iter().any(|known| known.id == *material),
                        "{} cannot open what {id} encrypted",
                        NAMES[machine.number]
                    );
                }
            }
        }
        for machine in &self.machines {
            let mut loaded = State::load(&machine.store).expect("it loads");
            loaded.applied = machine.state.applied;
            assert_eq!(loaded, machine.state, "what is on disk is another state");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u8),
    Replicate(usize, u8, usize),
    Offer(usize, u8, usize),
    Rotate(usize, u8),
    Activate(u8),
    Period(usize, u8, bool),
    Disable(usize, u8, bool),
    Delete(usize, u8),
    Cancel(usize, u8),
    Promote(usize, usize),
    Principal(usize, u8),
    Certificate(usize, u8),
    Revoke(usize, u8, u8),
    Shut(usize, u8, bool),
    Trust(usize, u8, bool),
    Pull(usize, usize, usize),
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let r = 0usize..3;
    let k = 0u8..3;
    prop_oneof![
        2 => (r.clone(), k.clone()).prop_map(|(r, k)| Step::Create(r, k)),
        4 => (r.clone(), k.clone(), r.clone()).prop_map(|(r, k, t)| Step::Replicate(r, k, t)),
        2 => (r.clone(), k.clone(), r.clone()).prop_map(|(r, k, t)| Step::Offer(r, k, t)),
        3 => (r.clone(), k.clone()).prop_map(|(r, k)| Step::Rotate(r, k)),
        3 => k.clone().prop_map(Step::Activate),
        2 => (r.clone(), k.clone(), any::<bool>()).prop_map(|(r, k, on)| Step::Period(r, k, on)),
        1 => (r.clone(), k.clone(), any::<bool>()).prop_map(|(r, k, on)| Step::Disable(r, k, on)),
        2 => (r.clone(), k.clone()).prop_map(|(r, k)| Step::Delete(r, k)),
        1 => (r.clone(), k.clone()).prop_map(|(r, k)| Step::Cancel(r, k)),
        1 => (r.clone(), r.clone()).prop_map(|(r, l)| Step::Promote(r, l)),
        1 => (r.clone(), k.clone()).prop_map(|(r, n)| Step::Principal(r, n)),
        1 => (r.clone(), k.clone()).prop_map(|(r, n)| Step::Certificate(r, n)),
        1 => (r.clone(), k.clone(), any::<u8>()).prop_map(|(r, n, c)| Step::Revoke(r, n, c)),
        2 => (r.clone(), k.clone(), any::<bool>()).prop_map(|(r, n, off)| Step::Shut(r, n, off)),
        1 => (r.clone(), k, any::<bool>()).prop_map(|(r, n, on)| Step::Trust(r, n, on)),
        12 => (r.clone(), r, 1usize..3).prop_map(|(t, f, n)| Step::Pull(t, f, n)),
        1 => Just(Step::Settle),
    ]
}

impl World {
    fn run(&mut self, step: &Step) {
        match *step {
            // One id is drawn once, by one Region.
            Step::Create(at, number) => {
                let known = self.machines.iter().any(|m| {
                    m.key(number).is_some() || m.state.multi_region(&key(number)).is_some()
                });
                if !known {
                    self.machines[at].create(number).expect("created");
                }
            }
            Step::Replicate(at, number, to) => drop(self.machines[at].replicate(number, to)),
            Step::Offer(at, number, to) => drop(self.machines[at].offer(number, to)),
            Step::Rotate(at, number) => drop(self.machines[at].introduce(number)),
            Step::Activate(number) => drop(self.activate(number)),
            Step::Period(at, number, on) => {
                let key = key(number);
                drop(self.machines[at].run(if on {
                    Command::EnableRotation { key, period_days: 90 + u32::from(number) }
                } else {
                    Command::DisableRotation { key }
                }));
            }
            Step::Disable(at, number, enabled) => {
                drop(self.machines[at].run(Command::SetEnabled { key: key(number), enabled }));
            }
            Step::Delete(at, number) => {
                let generation = self.generation(at, number);
                self.machines[at].delete(number);
                self.note_gone(at, number, generation);
            }
            Step::Cancel(at, number) => {
                drop(self.machines[at].run(Command::CancelDeletion { key: key(number) }));
            }
            Step::Promote(at, lost) if at != lost => {
                self.machines[at].promote(lost);
                self.promoted = true;
            }
            Step::Promote(..) => {}
            Step::Principal(at, number) => drop(self.machines[at].principal(number)),
            Step::Certificate(at, number) => {
                let serial = self.machines[at].certificate(number);
                self.certificates.extend(serial.map(|serial| (at, number, serial)));
            }
            Step::Revoke(at, number, which) => {
                let theirs: Vec<_> =
                    self.certificates.iter().filter(|one| one.1 == number).cloned().collect();
                if theirs.is_empty() {
                    return;
                }
                let (home, _, serial) = theirs[usize::from(which) % theirs.len()].clone();
                let revoke =
                    Command::RevokeCertificate { arn: arn(number), serial: serial.clone() };
                if self.machines[at].run(revoke).is_ok() {
                    self.revoked.insert((home, number, serial));
                }
            }
            Step::Shut(at, number, disabled) => {
                let arn = arn(number);
                drop(self.machines[at].run(Command::SetPrincipalDisabled { arn, disabled }));
            }
            Step::Trust(at, number, added) => drop(self.machines[at].trust(number, added)),
            Step::Pull(to, from, limit) => drop(self.pull(to, from, limit)),
            Step::Settle => self.settle(),
        }
        self.look();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn regions_agree_and_nothing_comes_back(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        world.settle();
        world.agree();
    }
}

/// A world of one key that all three Regions have.
fn three() -> World {
    let mut world = World::new();
    world.machines[0].create(0).expect("created");
    world.machines[0].replicate(0, 1).expect("replicated");
    world.machines[0].replicate(0, 2).expect("replicated");
    world.settle();
    assert!(world.machines.iter().all(|machine| machine.key(0).is_some()));
    world
}

fn refused(outcome: Outcome) -> ErrorCode {
    outcome.expect_err("refused").code
}

#[test]
fn only_a_primary_is_changed_and_replicated() {
    let mut world = three();
    let [a, b, _] = &mut world.machines[..] else { panic!("three") };
    assert_eq!(refused(a.replicate(0, 1)), ErrorCode::AlreadyExistsException);
    assert_eq!(refused(a.replicate(0, 0)), ErrorCode::ValidationException);
    assert_eq!(refused(b.replicate(0, 2)), ErrorCode::UnsupportedOperationException);
    assert_eq!(refused(b.introduce(0)), ErrorCode::UnsupportedOperationException);
    let rotate = Command::EnableRotation { key: key(0), period_days: 90 };
    assert_eq!(refused(b.run(rotate)), ErrorCode::UnsupportedOperationException);
    assert_eq!(b.key(0).expect("a replica").description, "a replica");
    // Independent properties stay where they are.
    b.run(Command::SetDescription { key: key(0), description: "b's".to_owned() }).expect("set");
    b.run(Command::SetEnabled { key: key(0), enabled: false }).expect("disabled");
    world.settle();
    assert_eq!(world.machines[0].key(0).expect("a key").description, "");
    assert_eq!(world.machines[2].key(0).expect("a key").state, KeyState::Enabled);
}

#[test]
fn new_material_encrypts_only_when_every_region_has_it() {
    let mut world = three();
    let before = world.machines[0].current(0);
    world.machines[0].introduce(0).expect("introduced");
    world.pull(1, 0, 10);
    assert!(!world.activate(0), "one Region lacks it");
    world.pull(2, 0, 10);
    assert!(world.activate(0));
    assert_eq!(world.machines[1].current(0), before);
    world.settle();
    let after = world.machines[0].current(0);
    assert_ne!(after, before);
    assert!(world.machines.iter().all(|machine| machine.current(0) == after));
}

#[test]
fn a_primary_waits_until_its_replicas_are_gone() {
    let mut world = three();
    let reply = world.machines[0].run(Command::ScheduleDeletion { key: key(0), window_days: 9 });
    assert_eq!(reply, Ok(Reply::WaitsForReplicas));
    world.settle();
    let state = |world: &World| world.machines[0].key(0).map(|key| (key.state, key.deletion_date));
    assert_eq!(state(&world), Some((KeyState::PendingReplicaDeletion, None)));
    world.machines[1].delete(0);
    world.settle();
    assert_eq!(state(&world), Some((KeyState::PendingReplicaDeletion, None)));
    world.machines[2].delete(0);
    world.settle();
    let (pending, date) = state(&world).expect("it is there");
    assert_eq!(pending, KeyState::PendingDeletion);
    let left = date.expect("a date").0 - world.machines[0].now;
    assert!(left > 8 * DAY && left <= 9 * DAY, "{left}");
    world.machines[0].now += 9 * DAY;
    world.machines[0].execute(key(0));
    assert!(world.machines[0].key(0).is_none());
}

#[test]
fn a_replica_that_is_gone_comes_back_only_by_replicate_key() {
    let mut world = three();
    let old = world.machines[0].state.view_of(&key(0)).expect("a view");
    world.machines[1].delete(0);
    assert!(world.machines[1].key(0).is_none());
    // An old telling, once more.
    let told = Told {
        tokens: world.machines[1]
            .state
            .materials_missing(&old)
            .into_iter()
            .map(|id| (id, token()))
            .collect(),
        view: old,
    };
    let cursor = Cursor { history: [1; 16], index: 1, made: Timestamp(1) };
    world.machines[1]
        .run(Command::Merge {
            from: region(0),
            cursor,
            told: vec![told],
            principals: Vec::new(),
            authorities: Vec::new(),
        })
        .expect("taken");
    assert!(world.machines[1].key(0).is_none(), "it came back");
    world.settle();
    assert!(world.machines[1].key(0).is_none(), "it came back");
    world.machines[0].replicate(0, 1).expect("anew");
    world.settle();
    assert!(world.machines[1].key(0).is_some());
    world.agree();
}

#[test]
fn a_primarys_place_is_handed_over_or_refused() {
    let mut world = three();
    world.machines[0].offer(0, 1).expect("offered");
    assert_eq!(world.machines[0].key(0).expect("a key").state, KeyState::Updating);
    assert_eq!(refused(world.machines[0].introduce(0)), ErrorCode::KMSInvalidStateException);
    world.pull(1, 0, 10);
    // The link is cut here: both are updating, and both encrypt.
    for at in [0, 1] {
        assert_eq!(world.machines[at].key(0).expect("a key").state, KeyState::Updating);
    }
    assert_eq!(refused(world.machines[1].introduce(0)), ErrorCode::KMSInvalidStateException);
    world.settle();
    assert!(world.machines[1].is_primary(0) && !world.machines[0].is_primary(0));
    world.agree();
    assert_eq!(world.machines[0].state.reconciliations().count(), 0);

    // One that cannot take it says so.
    world.machines[2].run(Command::SetEnabled { key: key(0), enabled: false }).expect("disabled");
    world.machines[1].offer(0, 2).expect("offered");
    world.settle();
    assert!(world.machines[1].is_primary(0));
    assert_eq!(world.machines[1].key(0).expect("a key").state, KeyState::Enabled);
    world.machines[1].introduce(0).expect("it goes on");
    world.settle();
    world.agree();
}

#[test]
fn what_a_lost_primary_alone_had_is_told_on_its_return() {
    let mut world = three();
    // Acknowledged in the Region that is lost, and told to nobody.
    world.machines[0].introduce(0).expect("introduced");
    let lost = world.machines[0].key(0).and_then(|key| key.introduced()).expect("waits").id;
    world.machines[1].promote(0);
    world.pull(2, 1, 10);
    assert!(world.machines[1].is_primary(0));
    world.machines[1].introduce(0).expect("a change on the new primary");
    world.settle();
    world.agree();
    assert!(!world.machines[0].is_primary(0));
    let report = world.machines[0].state.reconciliation(&key(0)).expect("on record");
    assert_eq!(report.had.waiting, Some(lost));
    let kept = |machine: &Machine| machine.key(0).expect("a key").material(&lost).is_some();
    assert!(world.machines.iter().all(kept), "material is never lost");
    assert!(world.machines.iter().all(|machine| machine.current(0) != Some(lost)));
    world.machines[0].run(Command::Reconciled { key: key(0) }).expect("decided");
    assert_eq!(
        refused(world.machines[0].run(Command::Reconciled { key: key(0) })),
        ErrorCode::NotFoundException
    );
}

#[test]
fn two_regions_promoted_at_once_end_with_one_primary() {
    let mut world = three();
    world.machines[1].promote(0);
    world.machines[2].promote(0);
    for at in [1, 2] {
        world.machines[at].introduce(0).expect("introduced");
    }
    world.look();
    world.settle();
    world.agree();
    assert!(world.machines[2].is_primary(0), "the later name wins");
    assert!(world.machines[1].state.reconciliation(&key(0)).is_some());
    assert_eq!(world.machines[2].state.reconciliations().count(), 0);
}

#[test]
fn a_region_that_is_forgotten_holds_nothing_up() {
    let mut world = three();
    assert_eq!(
        refused(world.machines[1].run(Command::ForgetRegion { region: region(0) })),
        ErrorCode::KMSInvalidStateException
    );
    world.machines[1].promote(0);
    world.pull(2, 1, 10);
    world.machines[1].introduce(0).expect("introduced");
    world.pull(2, 1, 10);
    assert!(!world.activate(0), "the lost Region lacks it");
    world.machines[1].run(Command::ForgetRegion { region: region(0) }).expect("forgotten");
    assert!(world.activate(0));
    assert_eq!(
        refused(world.machines[1].run(Command::ForgetRegion { region: region(0) })),
        ErrorCode::NotFoundException
    );
}

#[test]
fn a_region_back_on_old_disks_learns_what_it_had_deleted() {
    let mut world = three();
    let (old, commands) = (world.machines[1].state.clone(), world.machines[1].commands);
    world.machines[1].delete(0);
    world.settle();
    assert!(
        !world.machines[0]
            .state
            .multi_region(&key(0))
            .unwrap()
            .here
            .as_ref()
            .unwrap()
            .related
            .contains_key(&region(1))
    );
    // The disks of before, in a history of their own.
    let mut back = Machine::new(1);
    back.state = old;
    back.commands = commands + 1000;
    back.state.history = Some([77; 16]);
    assert!(back.key(0).is_some());
    world.machines[1] = back;
    world.pull(1, 0, 10);
    assert!(world.machines[1].key(0).is_none(), "it came back from old disks");
}

#[test]
fn a_telling_that_lacks_material_is_refused_whole() {
    let mut world = three();
    world.machines[0].introduce(0).expect("introduced");
    let view = world.machines[0].state.view_of(&key(0)).expect("a view");
    let cursor = Cursor { history: [1; 16], index: 99, made: Timestamp(1) };
    let before = world.machines[1].state.peer_region(&region(0)).cloned();
    let told = vec![Told { view: view.clone(), tokens: Vec::new() }];
    let merge = Command::Merge {
        from: region(0),
        cursor,
        told,
        principals: Vec::new(),
        authorities: Vec::new(),
    };
    assert_eq!(refused(world.machines[1].run(merge)), ErrorCode::ConflictException);
    assert_eq!(world.machines[1].state.peer_region(&region(0)).cloned(), before);
    // Another owner's key of the same id is nobody's to take over.
    let view = keyward_state::KeyView { account: "999999999999".parse().unwrap(), ..view };
    let merge = Command::Merge {
        from: region(0),
        cursor,
        told: vec![Told { view, tokens: Vec::new() }],
        principals: Vec::new(),
        authorities: Vec::new(),
    };
    assert_eq!(refused(world.machines[1].run(merge)), ErrorCode::ValidationException);
}

#[test]
fn two_regions_of_one_name_are_not_linked() {
    let mut machine = Machine::new(0);
    let peer = PeerRegion {
        region_id: [99; 16],
        ..PeerRegion::clone(machine.state.peer_region(&region(1)).unwrap())
    };
    assert_eq!(
        refused(machine.run(Command::AddRegion { peer })),
        ErrorCode::AlreadyExistsException
    );
    let own = PeerRegion {
        region: region(0),
        ..PeerRegion::clone(machine.state.peer_region(&region(1)).unwrap())
    };
    assert_eq!(
        refused(machine.run(Command::AddRegion { peer: own })),
        ErrorCode::ValidationException
    );
}

#[test]
fn a_rotation_is_completed_where_the_primary_is_and_stays() {
    let mut world = three();
    world.machines[0].introduce(0).expect("introduced");
    let waiting = world.machines[0].key(0).and_then(|key| key.introduced()).expect("waits").id;
    let activate = Command::ActivateMaterial { key: key(0), material: waiting };
    for at in [1, 2] {
        world.pull(at, 0, 10);
        assert_eq!(
            refused(world.machines[at].run(activate.clone())),
            ErrorCode::UnsupportedOperationException
        );
    }
    world.machines[0].offer(0, 1).expect("offered");
    assert_eq!(
        refused(world.machines[0].run(activate)),
        ErrorCode::KMSInvalidStateException,
        "it would be lost in the hand-over"
    );
    world.settle();
    assert!(world.machines[1].is_primary(0));
    assert!(world.machines.iter().all(|machine| machine.current(0) == Some(waiting)));
    assert!(world.machines.iter().all(|machine| machine.state.reconciliations().count() == 0));
}

#[test]
fn a_last_primary_whose_key_is_gone_is_not_waited_for() {
    let mut world = three();
    world.machines[1].promote(0);
    world.machines[1].offer(0, 2).expect("offered");
    world.pull(2, 1, 10);
    assert_eq!(world.machines[2].key(0).expect("a key").state, KeyState::Updating);
    // It takes note, and its key goes, before the new primary hears of the one or the other.
    world.pull(1, 2, 10);
    world.machines[1].delete(0);
    assert!(world.machines[1].key(0).is_none());
    world.settle();
    world.agree();
    assert_eq!(world.machines[2].key(0).expect("a key").state, KeyState::Enabled);
}

#[test]
fn a_promoted_region_knows_that_its_own_replica_is_there() {
    let mut world = World::new();
    world.machines[0].create(0).expect("made");
    world.machines[0].replicate(0, 1).expect("replicated");
    world.pull(1, 0, 10);
    // The primary changes the key, and is lost, before it hears that the replica is there.
    world.machines[0].introduce(0).expect("introduced");
    world.pull(1, 0, 10);
    world.machines[1].promote(0);
    world.settle();
    let row = world.machines[1].state.multi_region(&key(0)).expect("a row");
    let related = &row.here.as_ref().expect("here").related;
    assert!(related.values().all(|related| related.first.is_none()), "{related:?}");
    world.machines[1].offer(0, 0).expect("its place moves on");
    world.settle();
    world.machines[0].offer(0, 1).expect("and back");
}

#[test]
fn a_region_with_old_disks_makes_its_replica_anew_and_takes_the_place_on_offer() {
    let mut world = three();
    world.machines[0].offer(0, 1).expect("offered");
    // What it had, it has lost: it begins as it was founded, in a new history.
    world.machines[1] = Machine::new(1);
    let recover = Command::Recover { history: [7; 16], lost: BTreeMap::new() };
    world.machines[1].run(recover).expect("recovered");
    world.settle();
    world.agree();
    assert!(world.machines[1].is_primary(0));
}

#[test]
fn a_telling_of_a_key_that_is_gone_here_needs_no_material() {
    let mut world = three();
    world.machines[0].introduce(0).expect("introduced");
    let mut told = world.machines[0].state.view_of(&key(0)).expect("a view");
    assert_eq!(world.machines[1].state.materials_missing(&told).len(), 1);
    // Others know that it was deleted here, and have struck it off: they would seal nothing to it.
    if let Some(shared) = &mut told.shared {
        shared.related.remove(&region(1));
    }
    let generation = world.generation(1, 0).expect("it is here");
    told.gone.insert(region(1), generation);
    assert!(world.machines[1].state.materials_missing(&told).is_empty());
    let told = Told { tokens: Vec::new(), view: told };
    let cursor = Cursor { history: [1; 16], index: 1, made: Timestamp(1) };
    let merge = Command::Merge {
        from: region(0),
        cursor,
        told: vec![told],
        principals: Vec::new(),
        authorities: Vec::new(),
    };
    world.machines[1].run(merge).expect("taken");
    assert!(world.machines[1].key(0).is_none());
}

#[test]
fn a_principal_that_any_region_shuts_out_stays_out_in_all() {
    let mut world = World::new();
    world.machines[0].principal(1).expect("created");
    let serial = world.machines[0].certificate(1).expect("issued");
    world.settle();
    assert!(!world.machines[2].seen(0, 1).expect("told").is_disabled());
    // Its own Region is lost; another one shuts it out, and a third hears of that.
    let shut = Command::SetPrincipalDisabled { arn: arn(1), disabled: true };
    world.machines[1].run(shut).expect("shut out");
    while world.pull(2, 1, 9) {}
    assert!(world.machines[2].seen(0, 1).expect("told").is_disabled());
    // Meanwhile the lost one goes on, shuts it out itself and lets it in again: it knows of nothing else.
    for disabled in [true, false] {
        let command = Command::SetPrincipalDisabled { arn: arn(1), disabled };
        world.machines[0].run(command).expect("switched");
    }
    let revoke = Command::RevokeCertificate { arn: arn(1), serial };
    world.machines[2].run(revoke).expect("revoked");
    world.settle();
    for machine in &world.machines {
        let seen = machine.seen(0, 1).expect("known");
        assert!(seen.is_disabled() && seen.certificates.values().all(|record| record.revoked));
    }
    // Whoever knows of it lifts it, for all.
    let again = Command::SetPrincipalDisabled { arn: arn(1), disabled: false };
    world.machines[2].run(again).expect("let in");
    world.settle();
    assert!(world.machines.iter().all(|m| !m.seen(0, 1).expect("known").is_disabled()));
}

#[test]
fn who_is_shut_out_again_is_not_let_in_by_an_earlier_word() {
    let mut world = World::new();
    world.machines[0].principal(1).expect("created");
    let switch = |disabled| Command::SetPrincipalDisabled { arn: arn(1), disabled };
    world.machines[0].run(switch(true)).expect("shut out");
    world.settle();
    world.machines[1].run(switch(false)).expect("let in");
    // It has not heard of that yet, and says so once more.
    world.machines[0].run(switch(true)).expect("shut out");
    world.settle();
    assert!(world.machines.iter().all(|m| m.seen(0, 1).expect("known").is_disabled()));
}

#[test]
fn an_outside_authority_that_any_region_removes_is_believed_nowhere() {
    let mut world = World::new();
    world.machines[0].trust(1, true).expect("added");
    world.machines[1].trust(1, true).expect("added there too");
    assert_eq!(refused(world.machines[0].trust(1, true)), ErrorCode::AlreadyExistsException);
    assert_eq!(refused(world.machines[0].trust(2, false)), ErrorCode::NotFoundException);
    world.settle();
    let believed = |world: &World, at: usize| {
        let state = &world.machines[at].state;
        state.authorities_of(&[1; 32]).filter(|row| state.believes(row)).count()
    };
    assert_eq!([0, 1, 2].map(|at| believed(&world, at)), [2, 2, 2], "once for each Region");
    world.machines[2].trust(1, false).expect("removed");
    world.settle();
    assert_eq!([0, 1, 2].map(|at| believed(&world, at)), [0, 0, 0]);
    // Each Region says for itself that it believes it again.
    world.machines[1].trust(1, true).expect("added again");
    world.settle();
    assert_eq!([0, 1, 2].map(|at| believed(&world, at)), [1, 1, 1]);
    world.agree_on_principals();
    // What a Region believes that is linked no more is of no interest.
    world.machines[2].run(Command::ForgetRegion { region: region(1) }).expect("forgotten");
    assert_eq!(believed(&world, 2), 0);
}

#[test]
fn operators_and_those_of_unknown_regions_do_not_travel() {
    let mut world = World::new();
    let operator: PrincipalArn = "arn:aws:iam::111122223333:user/op".parse().expect("an ARN");
    world.machines[0].principal(1).expect("created");
    world.settle();
    let fed: Vec<_> = world.machines[0].state.feed_after(0).collect();
    let told: Vec<_> =
        fed.iter().filter_map(|fed| world.machines[0].state.told_principal(fed)).collect();
    assert!(told.iter().all(|told| told.principal.arn != operator) && told.len() == 1);
    // An operator who is told all the same: refused whole.
    let mut odd = told[0].clone();
    odd.principal.kinds = Kinds { operator: true, ..Kinds::default() };
    let from = region(0);
    let cursor = Cursor { history: [1; 16], index: 99, made: Timestamp(0) };
    let merge = Command::Merge {
        from,
        cursor,
        told: Vec::new(),
        principals: vec![odd],
        authorities: Vec::new(),
    };
    let before = world.machines[1].state.clone();
    assert_eq!(refused(world.machines[1].run(merge)), ErrorCode::ValidationException);
    assert_eq!(before.peer_region(&region(0)), world.machines[1].state.peer_region(&region(0)));
    // One of a Region that bears a known name and is another: nobody could be let in as it.
    let mut other = told[0].clone();
    other.home_id = [9; 16];
    let from = region(0);
    let merge = Command::Merge {
        from,
        cursor,
        told: Vec::new(),
        principals: vec![other],
        authorities: Vec::new(),
    };
    world.machines[1].run(merge).expect("taken over");
    assert!(world.machines[1].state.foreign_principal(&arn(1), &[9; 16]).is_none());
    // A Region that is forgotten takes its principals with it.
    assert!(world.machines[1].state.knows_principal(&arn(1)));
    world.machines[1].run(Command::ForgetRegion { region: region(0) }).expect("forgotten");
    assert!(!world.machines[1].state.knows_principal(&arn(1)));
    assert!(
        world.machines[1].state.list_principals(None, 10).items.iter().all(|p| p.home.is_none())
    );
}

#[test]
fn a_region_on_old_disks_learns_whom_it_had_made_and_shut_out() {
    let mut world = World::new();
    world.machines[0].principal(1).expect("created");
    world.settle();
    let old = world.machines[0].state.clone();
    world.machines[0].principal(2).expect("created");
    let shut = Command::SetPrincipalDisabled { arn: arn(1), disabled: true };
    world.machines[0].run(shut).expect("shut out");
    world.settle();
    world.machines[0].state = old;
    let begun = Command::BeginHistory { history: [7; 16] };
    world.machines[0].run(begun).expect("a new history");
    world.settle();
    world.agree_on_principals();
    assert!(world.machines[0].seen(0, 1).expect("known").is_disabled());
    assert!(world.machines[0].seen(0, 2).is_some(), "it is told whom it had made");
}

#[test]
fn a_change_has_a_name_that_is_read_as_it_was_written() {
    let world = three();
    let state = &world.machines[0].state;
    let token = state.change_token(state.feed_head()).expect("founded");
    assert_eq!(token.to_string().parse::<ChangeToken>().expect("its own text"), token);
    for odd in ["", "us-east-1", "us-east-1/00/1", "us-east-1/zz/1", "//", "us-east-1/+0/1"] {
        assert_eq!(odd.parse::<ChangeToken>().expect_err(odd).code, ErrorCode::ValidationException);
    }
}
