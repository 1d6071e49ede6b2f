//! What lies in a node's memory while it serves: the keys in use in locked memory that no core dump takes, and nowhere
//! else; a key that has left the cache, nowhere at all.
//!
//! The keys are known to the test because it opens the disk as whoever has a node's `root.key` can: by the formats of
//! decisions 0002 and 0003.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use keyward_hsm::{CryptoProvider, RingProvider, counter_hmac_sha256};
use keyward_state::{State, Table};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::support::{Region, code, create_key, encrypt, token_of, wait_until};

const KEY_BYTES: usize = 32;
/// Keys that push others out of a cache of 16.
const CROWD: usize = 80;

type Key = [u8; KEY_BYTES];

fn derive(key: &Key, label: &[u8], context: &[u8]) -> Key {
    let mut derived = [0; KEY_BYTES];
    counter_hmac_sha256(&RingProvider, key, label, context, &mut derived);
    derived
}

fn open(key: &Key, nonce: &[u8], aad: &[u8], sealed: &[u8]) -> Key {
    let (sealed, tag) = sealed.split_last_chunk().expect("a tag");
    let mut opened: Key = sealed.try_into().expect("a sealed key");
    RingProvider
        .aes_256_gcm_open(key, nonce.try_into().expect("a nonce"), aad, &mut opened, tag)
        .expect("it opens");
    opened
}

/// The keys of a node that stands still: what wraps, the domain key, and the backing keys of these KMS keys with
/// their material ids.
struct Keys {
    root: Key,
    wrap: Key,
    domain: Key,
    backing: Vec<(Key, Key)>,
}

fn keys_of(region: &Region, node: u16, key_ids: &[&str]) -> Keys {
    let root: Key = fs::read(region.node_folder(node).join("root.key"))
        .expect("the root")
        .try_into()
        .expect("32 bytes");
    let wrap = derive(&root, b"keyward root wrap key v1", &[]);
    let place = region.node_folder(node).join("data/state");
    let store = keyward_raft::RocksStore::open(&place, &Table::STATE).expect("the state");
    let state = State::load(&store).expect("the state");
    drop(store);
    let active = state.region.as_ref().expect("a Region").active_domain_key;
    let sealed = &state.domain_keys[&active].sealed;
    let own = state.roots_of(node.into()).next().expect("a root");
    let copy = &sealed.copy_for(&own.id).expect("its copy").sealed;
    let aad = [b"keyward domain key v1", &active.bytes()[..]].concat();
    let domain = open(&wrap, &copy[1..13], &aad, &copy[13..]);
    let backing = key_ids.iter().map(|id| {
        let key = state.key(&id.parse().expect("a key id")).expect("the key");
        let material = key.current_material().id;
        let token = token_of(region, node, &hex::encode(material.bytes()));
        let (header, sealed) = token.split_at(34);
        let once = derive(&domain, b"keyward token key v1", &header[18..]);
        let aad = [header, &[0], key.id.bytes(), material.bytes()].concat();
        (open(&once, &[0; 12], &aad, sealed), *material.bytes())
    });
    Keys { root, wrap, domain, backing: backing.collect() }
}

/// How often something was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// In memory that a core dump takes.
    dumped: usize,
    /// In memory that it does not (`MADV_DONTDUMP`).
    kept_out: usize,
}

const NOWHERE: Found = Found { dumped: 0, kept_out: 0 };

/// Looks through the writable memory of a process for each of the needles. None, said aloud, where that is not
/// permitted.
fn look<const N: usize>(pid: u32, needles: [&Key; N]) -> Option<[Found; N]> {
    const CHUNK: usize = 1 << 20;
    let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else {
        eprintln!("skipped: looking into another process takes root");
        return None;
    };
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let (mut found, mut range) = ([NOWHERE; N], 0..0);
    let mut buffer = vec![0; CHUNK + KEY_BYTES - 1];
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            range = start..end;
        }
        let Some(flags) = line.strip_prefix("VmFlags:") else { continue };
        let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
        if !has("rd") || !has("wr") {
            continue;
        }
        for at in range.clone().step_by(CHUNK) {
            let want = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
            let Ok(length) = memory.read_at(&mut buffer[..want], at) else { break };
            for (needle, found) in needles.iter().zip(&mut found) {
                let (first, bytes) = (needle[0], &buffer[..length]);
                let hits = bytes
                    .windows(KEY_BYTES)
                    .filter(|window| window[0] == first && *window == *needle)
                    .count();
                *(if has("dd") { &mut found.kept_out } else { &mut found.dumped }) += hits;
            }
        }
    }
    Some(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_in_locked_memory_alone_and_leave_it_with_the_cache() {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let mut ids = Vec::new();
    for _ in 0..=CROWD {
        ids.push(create_key(&client).await.expect("a key"));
    }
    region.stop(1);
    let Keys { root, wrap, domain, backing } = keys_of(&region, 1, &[&ids[0]]);
    let (backing, material) = backing[0];
    let text = fs::read_to_string(region.config(1)).expect("read");
    let small = text.replace("cache_max_entries = 1048576", "cache_max_entries = 16");
    assert_ne!(text, small);
    fs::write(region.config(1), small).expect("written");
    region.start_node(1);
    region.wait_serving(1).await;

    // In use. The material's id lies in ordinary memory: the search finds what a core dump would hold.
    for _ in 0..20 {
        assert_eq!(code(encrypt(&client, &ids[0]).await), "ok");
    }
    let inner = backing.map(|byte| byte ^ 0x36);
    let outer = backing.map(|byte| byte ^ 0x5c);
    let needles = [&material, &root, &wrap, &domain, &backing, &inner, &outer];
    let Some([id, root_key, rest @ ..]) = look(region.pid(1), needles) else { return };
    assert!(id.dumped > 0, "the search finds nothing in ordinary memory");
    assert_eq!(root_key.dumped, 0, "the root key");
    let once = Found { dumped: 0, kept_out: 1 };
    assert_eq!(rest, [once, once, once, NOWHERE, NOWHERE], "wrapping, domain, backing, padded");

    // Crowded out of the cache.
    for id in &ids[1..] {
        assert_eq!(code(encrypt(&client, id).await), "ok");
    }
    wait_until("the key has left memory", Duration::from_secs(10), async || {
        look(region.pid(1), [&backing]).is_some_and(|[found]| found == NOWHERE)
    })
    .await;
    let found = look(region.pid(1), [&wrap, &domain]).expect("as before");
    assert_eq!(found, [once, once], "the search still finds keys");

    // A core dump that is forced: the limit is raised from outside where that is permitted, and the process told to
    // dump. (What it would have held is what was looked at above.)
    let pid = Pid::from_raw(region.pid(1).cast_signed()).expect("a process id");
    let unlimited = Rlimit { current: None, maximum: None };
    if prlimit(Some(pid), Resource::Core, unlimited).is_err() {
        eprintln!("the limit of core dumps cannot be raised here: it is tried with the node's own");
    }
    let folder = fs::read_link(format!("/proc/{}/cwd", region.pid(1))).expect("its folder");
    let before = cores(&folder);
    kill_process(pid, Signal::ABORT).expect("a signal");
    wait_until("it ends", Duration::from_secs(10), async || region.has_ended(1)).await;
    assert_eq!(cores(&folder), before, "a core was written");
}

fn cores(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut cores: Vec<_> = paths
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("core")))
        .collect();
    cores.sort();
    cores
}
