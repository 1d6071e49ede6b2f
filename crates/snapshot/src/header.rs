//! What a snapshot says of itself in clear.

use keyward_hsm::{RootCopy, RootId, SealedDomainKey, SealedToken};
use keyward_model::{DomainKeyId, NodeId, Region};
use keyward_state::codec::SCHEMA;
use serde::{Deserialize, Serialize};

use crate::error::SnapshotError;

/// The header. Identifiers are hexadecimal, times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// The Region's name.
    pub region: String,
    /// Tells it from others of that name: 16 bytes.
    pub region_id: String,
    /// Names the line of the Region's life that it was taken in: 16 bytes.
    pub history: String,
    /// The last change that is in it, by its number in the Region's log.
    pub applied: u64,
    /// Region time of that change.
    pub region_time_ms: i64,
    /// When it was taken, on the clock of the node that did.
    pub taken_ms: i64,
    /// That node.
    pub node: NodeId,
    /// The version of Keyward that wrote it.
    pub version: String,
    /// The schema of its rows.
    pub schema: u8,
    /// Keys that are in it.
    pub keys: u64,
    /// Keys that were gone.
    pub gone: u64,
    /// How far the nodes' audit trails had come.
    pub audit: Vec<AuditEnd>,
    /// The Region's roots.
    pub roots: Vec<RootOf>,
    /// The domain key that the file's key is sealed under: 16 bytes.
    pub domain_key: String,
    /// That domain key, once for each root that opens it.
    pub sealed_for: Vec<SealedFor>,
    /// The file's key, sealed under the domain key.
    pub file_key: String,
}

/// How far a node's audit trail had come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEnd {
    /// Which node.
    pub node: NodeId,
    /// The number that its next record had. None of a node that did not answer.
    pub next_sequence: Option<u64>,
}

/// A root of the Region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootOf {
    /// Its id.
    pub root: RootId,
    /// The node whose it was.
    pub node: NodeId,
}

/// The domain key, as one root sealed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFor {
    /// The root that opens it.
    pub root: RootId,
    /// What it wrapped.
    pub sealed: String,
}

fn bytes(what: &str, text: &str) -> Result<Vec<u8>, SnapshotError> {
    hex::decode(text).map_err(|e| SnapshotError::Header { why: format!("{what}: {e}") })
}

fn sixteen(what: &str, text: &str) -> Result<[u8; 16], SnapshotError> {
    bytes(what, text)?
        .try_into()
        .map_err(|_| SnapshotError::Header { why: format!("{what} is not of 16 bytes") })
}

impl Header {
    /// Reads one, and refuses what this build would have to guess.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, SnapshotError> {
        // The schema first: a later version's header may hold other things.
        #[derive(Deserialize)]
        struct About {
            schema: u8,
            #[serde(default)]
            version: String,
        }
        let wrong = |e: serde_json::Error| SnapshotError::Header { why: e.to_string() };
        let about: About = serde_json::from_slice(json).map_err(wrong)?;
        if about.schema != SCHEMA {
            return Err(SnapshotError::NewerSchema {
                found: about.schema,
                known: SCHEMA,
                by: about.version,
            });
        }
        let header: Self = serde_json::from_slice(json).map_err(wrong)?;
        header.region_id()?;
        header.domain_key()?;
        Ok(header)
    }

    /// Fills in how the file's key is sealed.
    pub fn seal_with(&mut self, domain_key: &SealedDomainKey, file_key: &SealedToken) {
        self.domain_key = hex::encode(domain_key.id.bytes());
        let copies = domain_key.copies.iter();
        self.sealed_for = copies
            .map(|copy| SealedFor { root: copy.root.clone(), sealed: hex::encode(&copy.sealed) })
            .collect();
        self.file_key = hex::encode(file_key.as_bytes());
    }

    /// The Region's name.
    ///
    /// # Errors
    /// It is none.
    pub fn region(&self) -> Result<Region, SnapshotError> {
        let wrong = |e| SnapshotError::Header { why: format!("region is {e}") };
        self.region.parse().map_err(wrong)
    }

    /// Tells the Region from others of that name.
    ///
    /// # Errors
    /// Not 16 bytes.
    pub fn region_id(&self) -> Result<[u8; 16], SnapshotError> {
        sixteen("regionId", &self.region_id)
    }

    /// The domain key that the file's key is sealed under.
    ///
    /// # Errors
    /// Something that is not hexadecimal.
    pub fn domain_key(&self) -> Result<SealedDomainKey, SnapshotError> {
        let copies = self.sealed_for.iter().map(|copy| {
            let sealed = bytes("sealedFor", &copy.sealed)?;
            Ok(RootCopy { root: copy.root.clone(), sealed })
        });
        Ok(SealedDomainKey {
            id: DomainKeyId::new(sixteen("domainKey", &self.domain_key)?),
            copies: copies.collect::<Result<_, SnapshotError>>()?,
        })
    }

    /// The file's key, sealed.
    ///
    /// # Errors
    /// Something that is not hexadecimal.
    pub fn file_key(&self) -> Result<SealedToken, SnapshotError> {
        Ok(SealedToken::from_bytes(bytes("fileKey", &self.file_key)?))
    }
}
