//! A Region's backup, taken while it serves: the rows of one moment, sealed and signed (`crates/snapshot`).

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_env::Env;
use keyward_hsm::{FileSealer, SealedToken};
use keyward_model::{ErrorCode, KmsError, NodeId, Region, Timestamp};
use keyward_raft::Standing;
use keyward_snapshot::{AuditEnd, Header, SnapshotError, Writer, Written, order};
use keyward_state::codec::SCHEMA;
use keyward_state::{Essentials, Moment, State};
use rcgen::{CertificateParams, KeyPair, SigningKey};

use crate::api::Caller;
use crate::kms::{Kms, hsm_refused, internal, not_founded};
use crate::operator::refused;
use crate::peer::{AppRequest, AppResponse};

/// How long a node may take to say how far its audit trail has come.
const TRAIL_PATIENCE: Duration = Duration::from_secs(1);

/// One snapshot at a time is taken on a node: each reads all that there is.
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(taken: &Arc<AtomicBool>) -> Result<Self, KmsError> {
        if taken.swap(true, Ordering::AcqRel) {
            return Err(refused(
                "this node is taking a snapshot already: wait until it is done, or ask another node".to_owned(),
            ));
        }
        Ok(Self(Arc::clone(taken)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A snapshot about to be written: all that can be refused has been asked for.
pub struct Snapshotting<E: Env> {
    kms: Arc<Kms<E>>,
    about: About,
    sealer: FileSealer,
    signer: Signer,
    _turn: Turn,
}

/// What its header says beside what the rows say.
struct About {
    node: NodeId,
    taken: Timestamp,
    region: Region,
    audit: Vec<AuditEnd>,
    file_key: SealedToken,
}

/// Signs this one file. The key is nowhere else, and gone when it is written.
struct Signer {
    key: KeyPair,
    certificate: Vec<u8>,
}

impl<E: Env> Kms<E> {
    /// Gets ready to write a snapshot of what this node has, which is not older than the last change that was
    /// acknowledged before this call.
    ///
    /// # Errors
    /// Callers who are no operators, a node without a lease, one that is taking a snapshot already, keys that cannot be
    /// used.
    pub async fn begin_snapshot(
        self: &Arc<Self>,
        caller: &Caller,
        patience: Duration,
    ) -> Result<Snapshotting<E>, KmsError> {
        let state = self.operator(caller, patience).await?;
        let turn = Turn::take(&self.taking_snapshot)?;
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let domain = self.active_domain_key(&state).await?;
        let (sealer, file_key) = self.hsm.generate_file_key(domain).map_err(|e| hsm_refused(&e))?;
        let signer = self.snapshot_signer(&state).await?;
        let about = About {
            node: self.node.id(),
            taken: self.now(),
            region: facts.region.clone(),
            audit: self.audit_ends().await,
            file_key,
        };
        tracing::info!(by = %caller.principal, "a snapshot is taken");
        Ok(Snapshotting { kms: Arc::clone(self), about, sealer, signer, _turn: turn })
    }

    async fn snapshot_signer(&self, state: &State) -> Result<Signer, KmsError> {
        let broken =
            |what: &dyn std::fmt::Display| internal("no key to sign a snapshot with", what);
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let key = KeyPair::generate().map_err(|e| broken(&e))?;
        let request =
            CertificateParams::default().serialize_request(&key).map_err(|e| broken(&e))?;
        let authority = self.authority(state).await?;
        let (region, id) = (&facts.region, facts.region_id);
        let issued = authority
            .issue_snapshot(request.der(), region, id, &*self.entropy, self.now())
            .map_err(|e| broken(&e))?;
        Ok(Signer { key, certificate: issued.certificate })
    }

    /// How far the audit trail of every node has come.
    async fn audit_ends(&self) -> Vec<AuditEnd> {
        let asked = self.node.members().into_iter().map(|member| async move {
            if member.node == self.node.id() {
                return AuditEnd { node: member.node, next_sequence: self.audit.next_sequence() };
            }
            let request = AppRequest::TrailEnd;
            let answer =
                self.ask_peer(member.node, &member.address, &request, TRAIL_PATIENCE).await;
            let next_sequence = match answer {
                Ok(AppResponse::TrailEnd(next)) => next,
                _ => None,
            };
            AuditEnd { node: member.node, next_sequence }
        });
        futures_util::future::join_all(asked).await
    }
}

impl<E: Env> Snapshotting<E> {
    /// Writes it. `out` must be a disk's, and wait for nobody: meanwhile deleted keys do not leave this node's files.
    ///
    /// # Errors
    /// What `out` or the store fails with.
    pub async fn write(self, out: impl Write + Send + 'static) -> Result<Written, SnapshotError> {
        let Self { kms, about, sealer, signer, _turn } = self;
        let write = move |rows: &dyn Moment, stands: &Standing| {
            Ok(written(rows, stands, about, sealer, &signer, out))
        };
        let reading = kms.node.read_at_one_moment(write);
        drop(kms);
        reading.await?
    }
}

fn written(
    rows: &dyn Moment,
    stands: &Standing,
    about: About,
    sealer: FileSealer,
    signer: &Signer,
    out: impl Write,
) -> Result<Written, SnapshotError> {
    let essentials = Essentials::read(rows)?
        .filter(|essentials| essentials.region.region == about.region)
        .ok_or_else(|| SnapshotError::Rows("the Region's facts are missing".to_owned()))?;
    let header = header(&essentials, stands, &about);
    let mut writer = Writer::begin(out, &header, sealer)?;
    for table in order() {
        writer.table(table)?;
        let mut stopped = None;
        let scanned = rows.scan(table, &mut |key, value| {
            writer.row(key, value).map_err(|error| {
                stopped = Some(error);
                io::Error::other("stopped")
            })
        });
        match stopped {
            Some(error) => return Err(error),
            None => scanned?,
        }
    }
    let sign = |message: &[u8]| signer.key.sign(message).map_err(io::Error::other);
    writer.finish(&signer.certificate, &sign).map(|(_, written)| written)
}

fn header(essentials: &Essentials, stands: &Standing, about: &About) -> Header {
    let roots = essentials.roots.iter();
    let mut header = Header {
        region: essentials.region.region.to_string(),
        region_id: hex::encode(essentials.region.region_id),
        history: hex::encode(essentials.history),
        applied: stands.applied,
        region_time_ms: essentials.time.0,
        taken_ms: about.taken.0,
        node: about.node,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schema: SCHEMA,
        keys: essentials.keys,
        gone: essentials.gone,
        audit: about.audit.clone(),
        roots: roots
            .map(|root| keyward_snapshot::RootOf { root: root.id.clone(), node: root.node })
            .collect(),
        domain_key: String::new(),
        sealed_for: Vec::new(),
        file_key: String::new(),
    };
    header.seal_with(&essentials.domain_key, &about.file_key);
    header
}

/// What an operator is told of a snapshot that could not be written.
#[must_use]
pub fn snapshot_refused(error: &SnapshotError) -> KmsError {
    tracing::error!(%error, "a snapshot could not be written");
    KmsError::new(
        ErrorCode::KMSInternalException,
        format!(
            "the snapshot could not be written: {error}. Nothing of it counts; try another node"
        ),
    )
}
