//! Messages between Regions. Like those between nodes they are of one version: a Region refuses what it does not know.

use keyward_model::{KeyId, KeyMaterialId, Region};
use keyward_state::codec::{self, CodecError};
use keyward_state::{Cursor, ForeignPrincipal, HistoryId, KeyView, OutsideAuthority, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What one Region asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionRequest {
    /// Changes, please.
    Pull(PullRequest),
    /// Materials of a key, sealed to the Region that asks.
    Materials {
        /// The key.
        key: KeyId,
        /// Which of them.
        materials: Vec<KeyMaterialId>,
        /// The telling that named them.
        version: Version,
    },
}

/// Asks for what has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// Up to here everything is taken over and fenced.
    pub have: Cursor,
    /// How long to wait for a change when there is none, in milliseconds.
    pub wait_ms: u64,
    /// Changes in one answer at most.
    pub limit: u32,
}

/// What a Region answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionResponse {
    /// Changes.
    Page(Page),
    /// Materials, in the order in which they were asked for.
    Materials(Vec<SealedMaterial>),
    /// Another node leads: it has to be asked.
    NotLeader,
    /// No, and why.
    Refused(String),
}

/// A part of a feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// In which line of the Region's life.
    pub history: HistoryId,
    /// Keys that changed, each as it is now.
    pub views: Vec<KeyView>,
    /// Principals that changed, each as it is now.
    pub principals: Vec<ForeignPrincipal>,
    /// Outside authorities that changed, each as it is now.
    pub authorities: Vec<OutsideAuthority>,
    /// How far this goes.
    pub upto: Cursor,
    /// How far there is more to come.
    pub head: u64,
    /// The Region's time, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

/// A material that was sealed to the Region that asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedMaterial {
    /// Which.
    pub material: KeyMaterialId,
    /// Sealed to its HSM.
    pub message: Vec<u8>,
}

/// What a sealed material is about: sender and receiver compose it for themselves, and it opens only if they agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct About<'a> {
    /// Who sends.
    pub source: &'a Region,
    /// In which line of its life.
    pub history: HistoryId,
    /// To whom.
    pub target: &'a Region,
    /// Which Region of that name.
    pub target_id: [u8; 16],
    /// Of which key.
    pub key: KeyId,
    /// Which material.
    pub material: KeyMaterialId,
    /// By which telling of it.
    pub version: &'a Version,
}

impl About<'_> {
    /// The bytes that are bound in.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }
}

/// A message's bytes.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message)
}

/// A message from its bytes.
///
/// # Errors
/// A message that this build does not know.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    codec::decode(bytes)
}
