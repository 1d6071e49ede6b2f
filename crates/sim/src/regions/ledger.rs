//! What callers of several Regions know.

use std::collections::BTreeSet;

use keyward_model::KeyId;

use super::roamers::Doors;
use crate::counters::Counters;

/// Broken rules told at most.
const VIOLATIONS_MAX: usize = 20;

/// A ciphertext that a caller was given.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Of which key.
    pub key: KeyId,
    /// In which Region.
    pub region: usize,
    /// The ciphertext.
    pub blob: Vec<u8>,
    /// What it must open to.
    pub plaintext: Vec<u8>,
}

/// What callers know.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Keys that were made.
    pub keys: Vec<KeyId>,
    /// Ciphertexts.
    pub samples: Vec<Sample>,
    /// Keys whose deletion somebody asked for, and where.
    pub unwanted: BTreeSet<(usize, KeyId)>,
    /// Keys of which a replica was promoted, or may have been.
    pub promoted: BTreeSet<KeyId>,
    /// Keys that were there when a Region came back with old disks.
    pub restored: BTreeSet<KeyId>,
    /// Who is shut out where.
    pub doors: Doors,
    /// Numbers.
    pub counters: Counters,
    /// Broken rules.
    pub violations: Vec<String>,
}

impl Ledger {
    /// Notes a broken rule.
    pub fn violate(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX && !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }
}
