//! What a core dump of a node would hold, if one were written in spite of [`keyward_hsm::harden_process`]:
//! no root, domain or backing key, whatever the root. The kernel leaves out what `smaps` flags `dd`
//! (`MADV_DONTDUMP`); where this system lets a child write a real core file, that is searched too.
//!
//! One test that looks, and a process of its own for each root: keys are a known pattern, and the search
//! sees the whole process.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::block_on;
use common::memory::{Found, PatternEntropy, occurrences, pattern, search};
use keyward_env::Entropy;
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, BackingKey, FileRoot, Hsm, HsmConfig, MemoryRoot, RingProvider,
    RootProvider, SecretVec, ShamirRoot, counter_hmac_sha256,
};
use keyward_model::KeyId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FOLDER: &str = "KEYWARD_TEST_DUMP_FOLDER";
const ROOT: &str = "KEYWARD_TEST_DUMP_ROOT";

/// What the key that wraps is, by the root key, inverted: of the pattern, and of the memory root of seed
/// "seed". A check that fails prints the right ones.
const WRAP_KEYS_INVERTED: [[u8; 32]; 2] = [
    [
        0xff, 0xb4, 0xd8, 0xb7, 0xb7, 0x8b, 0x3a, 0xe9, 0x5b, 0x48, 0xa0, 0xb8, 0x2e, 0xb4, 0xb6,
        0xee, 0x60, 0xfd, 0x5f, 0x32, 0x2b, 0x58, 0xaf, 0x5b, 0x9f, 0x62, 0xf9, 0x33, 0xb5, 0x27,
        0x95, 0xb5,
    ],
    [
        0x5f, 0x7d, 0x9d, 0x8c, 0xb8, 0x3f, 0xca, 0x8c, 0xa2, 0x92, 0xd7, 0x83, 0x6d, 0xde, 0x2e,
        0xdd, 0x8f, 0xd8, 0xbb, 0x09, 0x1d, 0xe2, 0x6a, 0xae, 0x6f, 0x98, 0xc8, 0x34, 0x3f, 0x73,
        0x10, 0x4b,
    ],
];

fn entropy() -> Arc<dyn Entropy> {
    Arc::new(PatternEntropy)
}

fn file_root(folder: &Path) -> Arc<dyn RootProvider> {
    let path = folder.join("root.key");
    drop(FileRoot::create(&path, entropy(), true).unwrap());
    Arc::new(FileRoot::open(&path, entropy(), true).unwrap())
}

fn shamir_root(folder: &Path) -> Arc<dyn RootProvider> {
    let path = folder.join("root.shares");
    let (first, shares) = ShamirRoot::create(&path, 2, 3, entropy(), true).unwrap();
    let root = ShamirRoot::open(&path, entropy(), true).unwrap();
    let mut texts_inverted = Vec::new();
    for share in shares {
        // As it comes from a person, and is wiped.
        let mut typed = SecretVec::new(share.expose().expose().to_vec());
        texts_inverted.push(typed.expose().iter().map(|b| !b).collect::<Vec<u8>>());
        if !root.progress().open {
            root.offer(&typed).unwrap();
        }
        typed = SecretVec::new(Vec::new());
        drop(typed);
    }
    assert!(root.progress().open);
    drop(first);
    // Every coefficient is the pattern's first byte, so share x is pattern + that * x, in GF(256).
    for product in [0x29u8, 0x52, 0x7b] {
        assert_eq!(occurrences(|i| pattern(i) ^ product), 0, "shares, of which {product}");
    }
    for text in &texts_inverted {
        // From the middle: the value.
        assert_eq!(occurrences(|i| !text[50 + i]), 0, "texts of shares");
    }
    Arc::new(root)
}

fn memory_root() -> Arc<dyn RootProvider> {
    Arc::new(MemoryRoot::new(b"seed", entropy(), true).unwrap())
}

fn root(kind: &str, folder: &Path) -> Arc<dyn RootProvider> {
    match kind {
        "file" => file_root(folder),
        "shamir" => shamir_root(folder),
        "memory" => memory_root(),
        other => panic!("{other}"),
    }
}

/// An HSM with one domain key and one backing key open.
fn hsm_in_use(root: Arc<dyn RootProvider>) -> (Arc<Hsm>, Arc<BackingKey>) {
    let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
    let hsm = Hsm::new(root, entropy(), &HsmConfig { cache_max_entries: 16, arena }).unwrap();
    let sealed = block_on(hsm.generate_domain_key()).unwrap();
    hsm.forget_domain_key(sealed.id);
    block_on(hsm.open_domain_key(&sealed)).unwrap();
    let key = KeyId::from_random([1; 16]);
    let (material, token) = hsm.generate_backing_key(sealed.id, key).unwrap();
    let backing = hsm.unseal(key, material, &token).unwrap();
    (hsm, backing)
}

#[test]
fn a_core_dump_would_hold_no_root_domain_or_backing_key() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return in_child(&std::env::var(ROOT).unwrap(), Path::new(&folder));
    }
    for kind in ["file", "shamir", "memory"] {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "a_core_dump_would_hold_no_root_domain_or_backing_key",
                "--nocapture",
            ])
            .current_dir(folder.path())
            .env(FOLDER, folder.path())
            .env(ROOT, kind)
            .output()
            .unwrap();
        let said = [&child.stdout[..], &child.stderr[..]].map(String::from_utf8_lossy).concat();
        assert!(said.contains("LOOKED"), "{kind}:\n{said}");
        let core = std::fs::read_dir(folder.path()).unwrap().find_map(|entry| {
            let path = entry.unwrap().path();
            path.file_name().unwrap().to_str().unwrap().starts_with("core").then_some(path)
        });
        let Some(core) = core else {
            println!("{kind}: no core file is written here (see /proc/sys/kernel/core_pattern)");
            continue;
        };
        let core = std::fs::read(core).unwrap();
        let holds = |byte: &dyn Fn(usize) -> u8| {
            core.windows(32).any(|w| w.iter().enumerate().all(|(i, b)| *b == byte(i)))
        };
        // A buffer that the child left in ordinary memory for this: the core holds memory at all.
        assert!(holds(&|i| pattern(i) ^ 0x33), "{kind}: the core file is empty");
        assert!(!holds(&pattern), "{kind}: a key is in the core file");
        for inverted in &WRAP_KEYS_INVERTED {
            assert!(!holds(&|i| !inverted[i]), "{kind}: a root's key is in the core file");
        }
    }
}

fn in_child(kind: &str, folder: &Path) {
    let root = root(kind, folder);
    let (hsm, backing) = hsm_in_use(root);
    // The domain key and the backing key; of the root, only what wraps.
    assert_eq!(search(pattern), Found { dumped: 0, kept_out: 2 }, "{kind}");
    let inverted = &WRAP_KEYS_INVERTED[usize::from(kind == "memory")];
    let wraps = search(|i| !inverted[i]);
    let marker: Vec<u8> = (0..32).map(|i| pattern(i) ^ 0x33).collect();
    std::hint::black_box(&marker);
    if wraps != (Found { dumped: 0, kept_out: 1 }) {
        print_wrap_keys();
        panic!("{kind}: {wraps:?}");
    }
    println!("LOOKED");
    let maximum = getrlimit(Resource::Core).maximum;
    if setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).is_ok() {
        std::process::abort();
    }
    drop((hsm, backing));
}

fn print_wrap_keys() {
    let pattern_key: [u8; 32] = std::array::from_fn(pattern);
    let seed_key =
        keyward_hsm::CryptoProvider::sha256(&RingProvider, &[b"keyward memory root v1", b"seed"]);
    for key in [pattern_key, seed_key] {
        let mut wrap_key = [0; 32];
        counter_hmac_sha256(&RingProvider, &key, b"keyward root wrap key v1", &[], &mut wrap_key);
        println!("inverted: {:?}", wrap_key.map(|b| !b));
    }
}
