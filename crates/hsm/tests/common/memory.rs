//! Randomness that is a known pattern, so that every key is, and a search for keys in this process's
//! memory. What is searched for has to be computed byte by byte, or kept inverted, so that the search does
//! not find itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use keyward_env::Entropy;

/// Byte `i` of every draw.
pub fn pattern(i: usize) -> u8 {
    (i.wrapping_mul(73) ^ (i << 3)).wrapping_add(41) as u8
}

pub struct PatternEntropy;

impl Entropy for PatternEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = pattern(i);
        }
    }
}

/// A writable mapping, and whether the kernel leaves it out of core dumps (`dd` among its flags).
struct Mapping {
    addresses: Range<u64>,
    kept_out: bool,
}

fn mappings() -> Vec<Mapping> {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut mappings = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let first = fields.next().unwrap();
        if first == "VmFlags:" {
            let flags: BTreeSet<_> = fields.collect();
            if let Some(addresses) = current.take()
                && flags.contains("wr")
                && flags.contains("rd")
            {
                mappings.push(Mapping { addresses, kept_out: flags.contains("dd") });
            }
        } else if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            current = Some(start..end);
        }
    }
    assert!(mappings.iter().any(|mapping| !mapping.kept_out), "smaps was not understood");
    mappings
}

/// How often something was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// In memory that a core dump would hold.
    pub dumped: usize,
    /// In memory that it would not.
    pub kept_out: usize,
}

/// How often 32 bytes, given by their number, occur in the writable memory of this process.
pub fn search(byte: impl Fn(usize) -> u8) -> Found {
    const CHUNK: usize = 1 << 20;
    const KEY: usize = 32;
    let memory = File::open("/proc/self/mem").unwrap();
    let mut buffer = vec![0u8; CHUNK + KEY];
    let own = buffer.as_ptr().addr() as u64..buffer.as_ptr().addr() as u64 + buffer.len() as u64;
    let mut found = Found { dumped: 0, kept_out: 0 };
    for Mapping { addresses, kept_out } in mappings() {
        let counter = if kept_out { &mut found.kept_out } else { &mut found.dumped };
        let mut at = addresses.start;
        while at < addresses.end {
            let want = usize::try_from(addresses.end - at).unwrap().min(buffer.len());
            let Ok(len) = memory.read_at(&mut buffer[..want], at) else { break };
            if len < KEY {
                break;
            }
            for i in 0..=len - KEY {
                let address = at + i as u64;
                if !own.contains(&address) && (0..KEY).all(|k| buffer[i + k] == byte(k)) {
                    // Windows that the next chunk begins with are counted there.
                    *counter += usize::from(i < CHUNK);
                }
            }
            at += len.min(CHUNK) as u64;
        }
    }
    buffer.fill(0);
    found
}

/// How often in all.
pub fn occurrences(byte: impl Fn(usize) -> u8) -> usize {
    let Found { dumped, kept_out } = search(byte);
    dumped + kept_out
}
