//! Fills the data folder of a stopped node of a Region of one with keys, as if they had been created: to measure what
//! takes long with many, without waiting for a million changes.
//!
//! `cargo run --release -p keyward-raft --example fill -- DATA ROOT-KEY KEYS`

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use keyward_env::{Env, RealEnv};
use keyward_hsm::{ArenaConfig, FileRoot, Hsm, HsmConfig};
use keyward_model::{KeyId, KeyState, Timestamp};
use keyward_raft::RocksStore;
use keyward_state::{Batch, Key, Material, Rotation, State, Store, Table, codec};

const BATCH_KEYS: usize = 1000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, root, keys] = arguments.as_slice() else {
        return Err("give the data folder, the root's file, and how many keys".into());
    };
    let store = RocksStore::open(&Path::new(data).join("state"), &Table::STATE)?;
    let state = State::load(&store)?;
    let entropy = RealEnv.entropy();
    let root = FileRoot::open(Path::new(root), Arc::clone(&entropy), true)?;
    let arena = ArenaConfig { allow_unlocked: true, ..ArenaConfig::default() };
    let hsm = Hsm::new(
        Arc::new(root),
        Arc::clone(&entropy),
        &HsmConfig { arena, ..HsmConfig::default() },
    )?;
    let facts = state.region.as_ref().ok_or("the node belongs to no Region")?;
    let domain = facts.active_domain_key;
    hsm.open_domain_key(&state.domain_keys[&domain].sealed).await?;
    let account = "111122223333".parse()?;
    let mut batch = Batch::default();
    for number in 1..=keys.parse::<usize>()? {
        let mut random = [0; 16];
        entropy.fill(&mut random);
        let id = KeyId::from_random(random);
        let (material, token) = hsm.generate_backing_key(domain, id)?;
        let key = Key {
            id,
            account,
            description: "one of many".to_owned(),
            state: KeyState::Enabled,
            created: state.time,
            deletion_date: None,
            tags: BTreeMap::from([("made".to_owned(), "by fill".to_owned())]),
            materials: vec![Material {
                id: material,
                introduced: Timestamp(state.time.0),
                rotated: None,
                kind: None,
            }],
            current: 0,
            rotation: Rotation::default(),
            aliases: 0,
        };
        let row = [&[u8::from(id.is_multi_region())], id.bytes().as_slice()].concat();
        batch.put(Table::Keys, row, codec::encode(&key));
        batch.put(Table::Tokens, material.bytes(), token.as_bytes().to_vec());
        if number % BATCH_KEYS == 0 {
            store.write(std::mem::take(&mut batch), false)?;
        }
    }
    store.write(batch, true)?;
    Ok(())
}
