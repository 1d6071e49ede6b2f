//! Random commands against a simple model, reloading, snapshots, and the table of outcomes.

use std::collections::{BTreeMap, BTreeSet};

use keyward_hsm::{RootCopy, SealedDomainKey, SealedToken};
use keyward_model::{
    AccountId, AliasName, DomainKeyId, ErrorCode, KeyId, KeyMaterialId, KeyState, Timestamp,
};
use keyward_state::{
    Batch, Command, Envelope, Founding, MemStore, Outcome, Purpose, Reply, RotationKind, State,
    Store, Table, Timers, apply,
};
use proptest::prelude::*;

const DOMAIN: [u8; 16] = [9; 16];

fn account() -> AccountId {
    "111122223333".parse().expect("an account")
}

fn key(number: u8) -> KeyId {
    KeyId::from_random([number; 16])
}

fn material(number: u16) -> KeyMaterialId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    KeyMaterialId::new(bytes)
}

fn alias(number: u8) -> AliasName {
    format!("alias/a{number}").parse().expect("an alias")
}

/// A token as far as the state looks: version, kind, domain key id, and a body.
fn token() -> SealedToken {
    let mut bytes = vec![1, 1];
    bytes.extend(DOMAIN);
    bytes.extend([0; 16 + 32 + 16]);
    let token = SealedToken::from_bytes(bytes);
    assert_eq!(token.domain_key_id(), Some(DomainKeyId::new(DOMAIN)));
    token
}

fn founding() -> Command {
    let root: keyward_hsm::RootId =
        "memory:00112233445566778899aabbccddeeff".parse().expect("a root id");
    Command::Found(Box::new(Founding {
        purpose: Purpose::Dev,
        region: "eu-west-1".parse().expect("a Region"),
        region_id: [1; 16],
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
    }))
}

/// A state, its store, and a counter of commands.
struct Machine {
    state: State,
    store: MemStore,
    commands: u64,
    /// Periods that were waited for, in milliseconds.
    waited: i64,
    log: Vec<Envelope>,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self::empty();
        machine.run(founding()).expect("founded");
        machine
    }

    fn empty() -> Self {
        Self {
            state: State::default(),
            store: MemStore::default(),
            commands: 0,
            waited: 0,
            log: Vec::new(),
        }
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.commands += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.commands.to_be_bytes());
        let time = 1_000_000 * i64::try_from(self.commands).expect("few") + self.waited;
        let time = Timestamp(time);
        self.run_as(Envelope { id, time, command })
    }

    fn run_as(&mut self, envelope: Envelope) -> Outcome {
        self.log.push(envelope.clone());
        let mut batch = Batch::default();
        let outcome = apply(&mut self.state, &mut batch, &envelope);
        self.store.write(batch, true).expect("written");
        outcome
    }

    fn create(&mut self, number: u8) -> Outcome {
        self.run(Command::CreateKey {
            key: key(number),
            account: account(),
            description: String::new(),
            tags: BTreeMap::new(),
            material: material(u16::from(number)),
            token: token(),
        })
    }
}

/// What a test does at random.
#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Enable(u8, bool),
    Schedule(u8),
    Cancel(u8),
    /// The period passes, and the leader has the key deleted.
    Delete(u8),
    Alias(u8, u8),
    Repoint(u8, u8),
    Unalias(u8),
    Tag(u8, u8),
    Untag(u8, u8),
    Rotate(u8),
    Auto(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let k = 0u8..6;
    prop_oneof![
        k.clone().prop_map(Step::Create),
        (k.clone(), any::<bool>()).prop_map(|(k, on)| Step::Enable(k, on)),
        k.clone().prop_map(Step::Schedule),
        k.clone().prop_map(Step::Cancel),
        k.clone().prop_map(Step::Delete),
        (0u8..5, k.clone()).prop_map(|(a, k)| Step::Alias(a, k)),
        (0u8..5, k.clone()).prop_map(|(a, k)| Step::Repoint(a, k)),
        (0u8..5).prop_map(Step::Unalias),
        (k.clone(), 0u8..4).prop_map(|(k, t)| Step::Tag(k, t)),
        (k.clone(), 0u8..4).prop_map(|(k, t)| Step::Untag(k, t)),
        k.clone().prop_map(Step::Rotate),
        (k, any::<bool>()).prop_map(|(k, on)| Step::Auto(k, on)),
    ]
}

/// The simple model: what a reader of the AWS documentation would write down.
#[derive(Default)]
struct Model {
    keys: BTreeMap<u8, (KeyState, BTreeSet<u8>, u32)>,
    aliases: BTreeMap<u8, u8>,
    gone: BTreeSet<u8>,
}

impl Model {
    fn step(&mut self, step: &Step) -> Result<(), ErrorCode> {
        use KeyState::{Disabled, Enabled, PendingDeletion};
        let state = |model: &Self, k: &u8| {
            model.keys.get(k).map(|key| key.0).ok_or(ErrorCode::NotFoundException)
        };
        let not_pending = |state: KeyState| match state {
            PendingDeletion => Err(ErrorCode::KMSInvalidStateException),
            _ => Ok(()),
        };
        let only_enabled = |state: KeyState| match state {
            Enabled => Ok(()),
            Disabled => Err(ErrorCode::DisabledException),
            // Of a single-Region key this is the only other one.
            _ => Err(ErrorCode::KMSInvalidStateException),
        };
        match step {
            Step::Create(k) => {
                if self.gone.contains(k) {
                    return Err(ErrorCode::NotFoundException);
                }
                if self.keys.contains_key(k) {
                    return Err(ErrorCode::AlreadyExistsException);
                }
                self.keys.insert(*k, (Enabled, BTreeSet::new(), 0));
            }
            Step::Enable(k, on) => {
                not_pending(state(self, k)?)?;
                self.keys.get_mut(k).expect("there").0 = if *on { Enabled } else { Disabled };
            }
            Step::Schedule(k) => {
                not_pending(state(self, k)?)?;
                self.keys.get_mut(k).expect("there").0 = PendingDeletion;
            }
            Step::Cancel(k) => {
                if state(self, k)? != PendingDeletion {
                    return Err(ErrorCode::KMSInvalidStateException);
                }
                self.keys.get_mut(k).expect("there").0 = Disabled;
            }
            Step::Delete(k) => {
                if self.gone.contains(k) {
                    return Ok(());
                }
                if state(self, k)? != PendingDeletion {
                    return Err(ErrorCode::KMSInvalidStateException);
                }
                self.keys.remove(k);
                self.aliases.retain(|_, target| target != k);
                self.gone.insert(*k);
            }
            Step::Alias(a, k) => {
                not_pending(state(self, k)?)?;
                if self.aliases.contains_key(a) {
                    return Err(ErrorCode::AlreadyExistsException);
                }
                self.aliases.insert(*a, *k);
            }
            Step::Repoint(a, k) => {
                if !self.aliases.contains_key(a) {
                    return Err(ErrorCode::NotFoundException);
                }
                not_pending(state(self, k)?)?;
                self.aliases.insert(*a, *k);
            }
            Step::Unalias(a) => {
                self.aliases.remove(a).ok_or(ErrorCode::NotFoundException)?;
            }
            Step::Tag(k, t) => {
                not_pending(state(self, k)?)?;
                self.keys.get_mut(k).expect("there").1.insert(*t);
            }
            Step::Untag(k, t) => {
                not_pending(state(self, k)?)?;
                self.keys.get_mut(k).expect("there").1.remove(t);
            }
            Step::Rotate(k) => {
                only_enabled(state(self, k)?)?;
                let key = self.keys.get_mut(k).expect("there");
                if key.2 >= 25 {
                    return Err(ErrorCode::LimitExceededException);
                }
                key.2 += 1;
            }
            Step::Auto(k, _) => only_enabled(state(self, k)?)?,
        }
        Ok(())
    }
}

fn perform(machine: &mut Machine, step: &Step, number: u16) -> Result<(), ErrorCode> {
    let outcome = match step {
        Step::Create(k) => machine.create(*k),
        Step::Enable(k, enabled) => {
            machine.run(Command::SetEnabled { key: key(*k), enabled: *enabled })
        }
        Step::Schedule(k) => {
            machine.run(Command::ScheduleDeletion { key: key(*k), window_days: 7 })
        }
        Step::Cancel(k) => machine.run(Command::CancelDeletion { key: key(*k) }),
        Step::Delete(k) => {
            let date = machine.state.key(&key(*k)).and_then(|key| key.deletion_date);
            if let Some(date) = date.filter(|date| date.0 > machine.state.time.0 + 10_000_000) {
                // Not a moment before its date.
                let early = machine.run(Command::DeleteKey { key: key(*k), date });
                let code = early.expect_err("too early").code;
                assert_eq!(code, ErrorCode::KMSInvalidStateException);
                machine.waited += 7 * Timestamp::DAY_MS;
            }
            machine.run(Command::DeleteKey { key: key(*k), date: date.unwrap_or_default() })
        }
        Step::Alias(a, k) => machine.run(Command::CreateAlias {
            account: account(),
            name: alias(*a),
            target: key(*k),
        }),
        Step::Repoint(a, k) => machine.run(Command::UpdateAlias {
            account: account(),
            name: alias(*a),
            target: key(*k),
        }),
        Step::Unalias(a) => {
            machine.run(Command::DeleteAlias { account: account(), name: alias(*a) })
        }
        Step::Tag(k, t) => machine.run(Command::Tag {
            key: key(*k),
            tags: BTreeMap::from([(t.to_string(), "v".to_owned())]),
        }),
        Step::Untag(k, t) => {
            machine.run(Command::Untag { key: key(*k), tag_keys: vec![t.to_string()] })
        }
        Step::Rotate(k) => {
            let material = material(1000 + number);
            let introduced = machine.run(Command::IntroduceMaterial {
                key: key(*k),
                material,
                token: token(),
                kind: RotationKind::OnDemand,
            });
            match introduced {
                Ok(_) => machine.run(Command::ActivateMaterial { key: key(*k), material }),
                refused => refused,
            }
        }
        Step::Auto(k, true) => {
            machine.run(Command::EnableRotation { key: key(*k), period_days: 365 })
        }
        Step::Auto(k, false) => machine.run(Command::DisableRotation { key: key(*k) }),
    };
    outcome.map(drop).map_err(|error| error.code)
}

fn check(state: &State, model: &Model) {
    assert_eq!(state.key_count(), model.keys.len());
    for (k, (expected, tags, rotations)) in &model.keys {
        let found = state.key(&key(*k)).expect("the key");
        assert_eq!(found.state, *expected);
        assert_eq!(
            found.tags.keys().cloned().collect::<BTreeSet<_>>(),
            tags.iter().map(ToString::to_string).collect()
        );
        assert_eq!(found.materials.len(), 1 + *rotations as usize);
        assert_eq!(found.current, *rotations, "no rotation is left half done");
        let pointing = model.aliases.values().filter(|target| *target == k).count();
        assert_eq!(found.aliases as usize, pointing);
        let listed = state.list_aliases(account(), Some(key(*k)), None, 100).items;
        assert_eq!(listed.len(), pointing);
    }
    assert_eq!(state.deletions(), model.gone.len() as u64);
    for k in &model.gone {
        assert!(state.key(&key(*k)).is_none() && state.tombstone(&key(*k)).is_some());
    }
    let listed = state.list_keys(account(), None, 100).items;
    assert_eq!(listed.len(), model.keys.len());
    for (a, target) in &model.aliases {
        let found = state.alias(account(), &alias(*a)).expect("the alias");
        assert_eq!(found.target, key(*target));
    }
    assert_eq!(state.list_aliases(account(), None, None, 100).items.len(), model.aliases.len());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Outcomes and state are the model's, and the store holds exactly what memory holds.
    #[test]
    fn random_commands_agree_with_the_model_and_survive_reloading(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut machine = Machine::new();
        let mut model = Model::default();
        for (number, step) in steps.iter().enumerate() {
            let expected = model.step(step);
            let got = perform(&mut machine, step, u16::try_from(number).expect("few"));
            prop_assert_eq!(got, expected, "step {} {:?}", number, step);
        }
        check(&machine.state, &model);
        let reloaded = State::load(&machine.store).expect("it loads");
        check(&reloaded, &model);
        prop_assert!(reloaded == machine.state, "the store and memory differ");
    }

    /// A log that sealed material of deleted keys was taken out of leads to the same state and the same
    /// rows, and holds none of it.
    #[test]
    fn a_scrubbed_log_leads_to_the_same_state(steps in prop::collection::vec(step(), 1..120)) {
        let mut machine = Machine::new();
        for (number, step) in steps.iter().enumerate() {
            let _ = perform(&mut machine, step, u16::try_from(number).expect("few"));
        }
        let gone: BTreeSet<KeyId> = machine.state.deleted_after(0).map(|tomb| tomb.key).collect();
        let mut replayed = Machine::empty();
        for envelope in &machine.log {
            let mut envelope = envelope.clone();
            let before = envelope.clone();
            let scrubbed = envelope.command.scrub(&|key| gone.contains(key));
            prop_assert_eq!(scrubbed, envelope != before);
            let holds = match &envelope.command {
                Command::CreateKey { key, token, .. }
                | Command::IntroduceMaterial { key, token, .. } => {
                    gone.contains(key) && !token.as_bytes().is_empty()
                }
                _ => false,
            };
            prop_assert!(!holds, "the log still holds material of a deleted key");
            let _ = replayed.run_as(envelope);
        }
        prop_assert!(replayed.state == machine.state, "a scrubbed log leads elsewhere");
        for table in Table::STATE {
            let rows = |store: &MemStore| {
                let mut rows = Vec::new();
                store
                    .scan(table, &mut |key, value| {
                        rows.push((key.to_vec(), value.to_vec()));
                        Ok(())
                    })
                    .expect("scanned");
                rows
            };
            prop_assert!(rows(&replayed.store) == rows(&machine.store), "table {}", table.name());
        }
    }

    /// A snapshot carried in pieces of any size into another store gives the same state.
    #[test]
    fn a_snapshot_in_pieces_is_the_same_state(
        steps in prop::collection::vec(step(), 1..60),
        piece in 1usize..5000,
    ) {
        let mut machine = Machine::new();
        for (number, step) in steps.iter().enumerate() {
            let _ = perform(&mut machine, step, u16::try_from(number).expect("few"));
        }
        let checkpoint = machine.store.checkpoint().expect("a checkpoint");
        // What happens after the checkpoint is not in it.
        let frozen = machine.state.clone();
        machine.create(200).expect("created");
        let target = MemStore::default();
        let mut install = target.begin_install().expect("an install");
        for (file, len) in checkpoint.files() {
            let mut offset = 0;
            while offset < len {
                let bytes = checkpoint.read(&file, offset, piece).expect("a piece");
                install.write(&file, offset, &bytes).expect("written");
                offset += bytes.len() as u64;
            }
        }
        install.commit().expect("installed");
        let reloaded = State::load(&target).expect("it loads");
        prop_assert!(reloaded == frozen, "the snapshot is another state");
    }
}

#[test]
fn a_command_that_is_retried_gets_the_first_outcome_and_changes_nothing() {
    let mut machine = Machine::new();
    machine.create(1).expect("created");
    let envelope = |command| Envelope { id: [77; 16], time: Timestamp(5_000_000_000), command };
    let rotate = envelope(Command::IntroduceMaterial {
        key: key(1),
        material: material(500),
        token: token(),
        kind: RotationKind::OnDemand,
    });
    let first = machine.run_as(rotate.clone());
    assert_eq!(first, Ok(Reply::Introduced(material(500))));
    let before = machine.state.clone();
    assert_eq!(machine.run_as(rotate.clone()), first);
    assert!(machine.state == before, "a retry changed something");
    // Also after a restart.
    machine.state = State::load(&machine.store).expect("it loads");
    assert_eq!(machine.run_as(rotate), first);
    assert_eq!(machine.state.key(&key(1)).expect("the key").materials.len(), 2);
    // A refusal is an outcome too.
    let refused = Envelope { id: [78; 16], ..envelope(Command::CancelDeletion { key: key(1) }) };
    let error = machine.run_as(refused.clone()).expect_err("refused");
    machine.run(Command::ScheduleDeletion { key: key(1), window_days: 7 }).expect("scheduled");
    assert_eq!(machine.run_as(refused), Err(error));
}

#[test]
fn time_that_jumps_makes_no_outcome_old() {
    let mut machine = Machine::new();
    let create = Command::CreateKey {
        key: key(1),
        account: account(),
        description: String::new(),
        tags: BTreeMap::new(),
        material: material(1),
        token: token(),
    };
    let created =
        Envelope { id: [77; 16], time: Timestamp(5_000_000_000), command: create.clone() };
    let first = machine.run_as(created.clone());
    assert!(first.is_ok());
    let week = 7 * Timestamp::DAY_MS;
    let moved = Envelope {
        id: [78; 16],
        time: Timestamp(5_000_001_000),
        command: Command::AdvanceClock { milliseconds: week },
    };
    let before = machine.state.time.0 - machine.state.clock_offset_ms;
    let offset = machine.run_as(moved.clone());
    assert!(machine.state.time.0 - machine.state.clock_offset_ms >= before, "time went back");
    // One whose time does not know of it yet, one that does, and one after another week without power.
    let times = [5_000_001_000, 5_000_002_000 + week, 5_000_003_000 + 2 * week];
    for (id, time) in (79u8..).zip(times) {
        let command = Command::SetDescription { key: key(1), description: id.to_string() };
        machine.run_as(Envelope { id: [id; 16], time: Timestamp(time), command }).expect("done");
        assert_eq!(machine.run_as(created.clone()), first, "a second key");
        assert_eq!(machine.run_as(moved.clone()), offset, "moved twice");
        assert!(machine.state.outcome(&[79; 16]).is_some());
    }
}

#[test]
fn outcomes_are_forgotten_after_ten_minutes_and_time_never_goes_backwards() {
    let mut machine = Machine::new();
    machine.create(1).expect("created");
    let at = |id: u8, minutes: i64| Envelope {
        id: [id; 16],
        time: Timestamp(10_000_000_000 + minutes * 60_000),
        command: Command::SetDescription { key: key(1), description: id.to_string() },
    };
    for minute in 0..=10 {
        machine.run_as(at(101 + minute, i64::from(minute))).expect("done");
    }
    assert!(machine.state.outcome(&[101; 16]).is_some());
    machine.run_as(at(112, 11)).expect("done");
    assert!(machine.state.outcome(&[101; 16]).is_none(), "eleven minutes old");
    assert!(machine.state.outcome(&[102; 16]).is_some(), "ten minutes old");
    let time = machine.state.time;
    machine.run_as(at(120, -1000)).expect("done");
    assert_eq!(machine.state.time, time);
    let rows = |store: &MemStore| {
        let mut count = 0;
        store
            .scan(Table::Outcomes, &mut |_, _| {
                count += 1;
                Ok(())
            })
            .expect("scanned");
        count
    };
    assert_eq!(rows(&machine.store), 12);
}

#[test]
fn old_invitations_are_forgotten_but_not_those_of_nodes_that_were_let_in_and_no_id_is_given_twice()
{
    let mut machine = Machine::new();
    let invite = |machine: &mut Machine, number: u8| {
        let by = "arn:aws:iam::111122223333:user/op".parse().expect("an ARN");
        match machine.run(Command::Invite { id: [number; 16], valid_ms: 3_600_000, by }) {
            Ok(Reply::Invited { node, .. }) => node,
            other => panic!("{other:?}"),
        }
    };
    let use_it = |machine: &mut Machine, number: u8| {
        let address = format!("machine-{number}:4410");
        machine.run(Command::UseInvitation { id: [number; 16], address }).expect("used");
    };
    let (unused, used, let_in) =
        (invite(&mut machine, 1), invite(&mut machine, 2), invite(&mut machine, 3));
    use_it(&mut machine, 2);
    use_it(&mut machine, 3);
    let root = "memory:33112233445566778899aabbccddeeff".parse().expect("a root id");
    machine.run(Command::RegisterRoot { root, node: let_in }).expect("let in");
    assert_eq!((unused, used, let_in), (2, 3, 4));
    machine.waited += 30 * Timestamp::DAY_MS;
    assert_eq!(invite(&mut machine, 4), 5);
    let kept: Vec<u64> = machine.state.invitations.values().map(|i| i.node).collect();
    assert_eq!(kept, [let_in, 5], "the one that was let in has yet to ask for its vote");
    // It leaves; nobody is left who has one of these ids.
    machine.run(Command::ForgetRoot { node: let_in }).expect("forgotten");
    machine.waited += 30 * Timestamp::DAY_MS;
    assert_eq!(invite(&mut machine, 5), 5, "no machine ever came for it");
    use_it(&mut machine, 5);
    machine.waited += 30 * Timestamp::DAY_MS;
    assert_eq!(invite(&mut machine, 6), 6, "a machine has a certificate for the last one");
    assert_eq!(State::load(&machine.store).expect("read").invitations.len(), 1);
}

#[test]
fn material_under_an_unknown_domain_key_is_refused() {
    let mut machine = Machine::new();
    let mut bytes = token().as_bytes().to_vec();
    bytes[2] ^= 1;
    let refused = machine.run(Command::CreateKey {
        key: key(1),
        account: account(),
        description: String::new(),
        tags: BTreeMap::new(),
        material: material(1),
        token: SealedToken::from_bytes(bytes),
    });
    assert_eq!(refused.expect_err("refused").code, ErrorCode::KMSInternalException);
    assert_eq!(machine.state.key_count(), 0);
}
