//! A Region out of a backup: what of its state is new, and what stays gone.

use std::collections::BTreeMap;

use keyward_hsm::{RootCopy, RootId, SealedDomainKey, SealedToken};
use keyward_model::{DomainKeyId, KeyId, KeyMaterialId, Timestamp};
use keyward_state::{
    Batch, Command, Envelope, Essentials, Founding, MemStore, Purpose, Restoring, State, Store,
    Table, Timers, Tombstone, apply, restore,
};

const DOMAIN: DomainKeyId = DomainKeyId::new([9; 16]);

fn root(digit: char) -> RootId {
    format!("memory:{}", digit.to_string().repeat(32)).parse().expect("a root id")
}

fn token() -> SealedToken {
    let mut bytes = vec![1, 1];
    bytes.extend(DOMAIN.bytes());
    bytes.extend([0; 16 + 32 + 16]);
    SealedToken::from_bytes(bytes)
}

fn key(number: u8) -> KeyId {
    KeyId::from_random([number; 16])
}

fn material(number: u8) -> KeyMaterialId {
    KeyMaterialId::new([number; 32])
}

fn run(state: &mut State, store: &MemStore, number: u8, command: Command) {
    let envelope =
        Envelope { id: [number; 16], time: Timestamp(1000 * i64::from(number)), command };
    let mut batch = Batch::default();
    apply(state, &mut batch, &envelope).expect("done");
    store.write(batch, true).expect("written");
}

/// A Region with two keys, one of them with an alias.
fn region() -> (State, MemStore) {
    let (mut state, store) = (State::default(), MemStore::default());
    let copies = vec![RootCopy { root: root('1'), sealed: vec![1] }];
    let founding = Command::Found(Box::new(Founding {
        purpose: Purpose::Dev,
        region: "eu-west-1".parse().expect("a Region"),
        region_id: [1; 16],
        authorities: Vec::new(),
        timers: Timers::DEFAULT,
        ca_certificate: vec![1],
        ca_private_key: token(),
        domain_key: SealedDomainKey { id: DOMAIN, copies },
        node: 1,
        root: root('1'),
        operator: "arn:aws:iam::111122223333:user/op".parse().expect("an ARN"),
        operator_certificate: (vec![1], Timestamp(i64::MAX)),
    }));
    run(&mut state, &store, 1, founding);
    let account = "111122223333".parse().expect("an account");
    for number in [2, 3] {
        let create = Command::CreateKey {
            key: key(number),
            account,
            description: String::new(),
            tags: BTreeMap::new(),
            material: material(number),
            token: token(),
        };
        run(&mut state, &store, number, create);
    }
    let name = "alias/a".parse().expect("an alias");
    run(&mut state, &store, 4, Command::CreateAlias { account, name, target: key(3) });
    (state, store)
}

fn restoring() -> Restoring {
    Restoring {
        history: [5; 16],
        node: 1234,
        lost: BTreeMap::from([(1, "kms-1:7100".to_owned())]),
        roots: vec![root('2')],
        copies: vec![(DOMAIN, RootCopy { root: root('2'), sealed: vec![2] })],
        deleted: [3, 7]
            .map(|number| Tombstone {
                key: key(number),
                account: "111122223333".parse().expect("an account"),
                due: Timestamp(5000),
                deleted: Timestamp(6000),
                number: 40 + u64::from(number),
                materials: vec![material(number)],
            })
            .to_vec(),
    }
}

#[test]
fn a_restored_region_has_a_new_history_one_node_its_roots_and_nothing_that_was_deleted() {
    let (mut state, store) = region();
    let mut batch = Batch::default();
    restore(&mut state, &mut batch, &restoring()).expect("restored");
    store.write(batch, true).expect("written");

    assert_eq!(state.history_id(), [5; 16]);
    assert_eq!(state.region.as_ref().map(|facts| facts.region_id), Some([1; 16]));
    assert_eq!(state.lost.get(&1).map(String::as_str), Some("kms-1:7100"));
    assert!(
        state.unused_node_id(1) > 1234,
        "ids of old nodes and of this one are never given again"
    );
    assert_eq!(state.roots.keys().collect::<Vec<_>>(), [&root('2')]);
    let copies = &state.domain_keys[&DOMAIN].sealed.copies;
    assert!(copies.iter().map(|copy| &copy.root).eq([&root('2')]));

    assert!(state.key(&key(2)).is_some() && state.key(&key(3)).is_none());
    assert!(state.tombstone(&key(3)).is_some() && state.tombstone(&key(7)).is_some());
    assert_eq!(state.deletions(), 2, "numbered among this Region's own");
    assert_eq!(state.key_that_is_gone(), None);
    assert_eq!(store.get(Table::Tokens, material(3).bytes()).expect("read"), None);
    assert!(store.get(Table::Tokens, material(2).bytes()).expect("read").is_some());

    // Memory and rows have not parted.
    let mut loaded = State::load(&store).expect("loads");
    loaded.applied = state.applied;
    assert!(loaded == state, "what is loaded is what was made");
    store
        .at_one_moment(&mut |rows| {
            let essentials = Essentials::read(rows)?.expect("a Region");
            assert_eq!((essentials.keys, essentials.gone, essentials.history), (1, 2, [5; 16]));
            assert_eq!(essentials.domain_key.id, DOMAIN);
            Ok(())
        })
        .expect("looked at");
}

#[test]
fn a_region_that_no_root_would_open_is_not_restored() {
    let (mut state, _) = region();
    let without = Restoring { copies: Vec::new(), ..restoring() };
    let error = restore(&mut state, &mut Batch::default(), &without).expect_err("refused");
    assert!(error.message.contains("none of the roots at hand"), "{}", error.message);
}

#[test]
fn a_key_beside_its_tombstone_is_noticed() {
    let (mut state, store) = region();
    let mut batch = Batch::default();
    restore(&mut state, &mut batch, &restoring()).expect("restored");
    // The tombstones are written, and the keys stay.
    let tombstones = batch
        .changes
        .into_iter()
        .filter(|change| matches!(change, keyward_state::Change::Put(Table::Tombstones, ..)));
    store.write(Batch { changes: tombstones.collect() }, true).expect("written");
    let mixed = State::load(&store).expect("loads");
    assert_eq!(mixed.key_that_is_gone(), Some(key(3)));
}
