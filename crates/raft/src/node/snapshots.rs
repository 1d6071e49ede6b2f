//! Snapshots that a node is sent: pieces one after the other, then the word to install.

use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotMetaOf;

use super::*;
use crate::types::{LogId, StoredMembership, Vote};

/// Between looks at an install that is under way.
const INSTALL_LOOK: Duration = Duration::from_millis(5);

/// A transfer: who sends, and the number that the sender chose.
type Transfer = (NodeId, u64);

/// A snapshot being received.
pub(super) struct Incoming {
    transfer: Transfer,
    /// The piece that comes next.
    next: u64,
    install: Box<dyn Install>,
}

/// The snapshot that was received last. Its sender may ask again what came of it: an answer can be lost.
pub(super) struct Installing<E: Env> {
    transfer: Transfer,
    outcome: Arc<Installed<E>>,
}

type Installed<E> = OnceLock<Result<SnapshotResponse<TypeConfig<E>>, String>>;

impl<E: Env> Node<E> {
    pub(super) async fn receive_piece(
        &self,
        transfer: Transfer,
        number: u64,
        file: String,
        offset: u64,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        // A transfer begins with its first piece: one that was received in part by an earlier start, or that
        // lost a piece, is not gone on with.
        let mut incoming = match self.take_incoming(transfer, number) {
            Some(install) => install,
            None if number == 0 => self.state_store.begin_install()?,
            None => return Err(io::Error::other("pieces of this snapshot transfer are missing")),
        };
        let (incoming, written) = self
            .env
            .blocking(move || {
                let written = incoming.write(&file, offset, &bytes);
                (incoming, written)
            })
            .await;
        *self.incoming.lock() = Some(Incoming { transfer, next: number + 1, install: incoming });
        written
    }

    /// The transfer that is being received, if `next` is its next piece.
    fn take_incoming(&self, transfer: Transfer, next: u64) -> Option<Box<dyn Install>> {
        let mut slot = self.incoming.lock();
        match slot.take() {
            Some(incoming) if (incoming.transfer, incoming.next) == (transfer, next) => {
                Some(incoming.install)
            }
            // Another transfer: what was received of the old one is dropped.
            _ => None,
        }
    }

    /// Installs what was received; once, however often it is asked for. Tells what came of it.
    pub(super) async fn install(
        self: &Arc<Self>,
        transfer: Transfer,
        pieces: u64,
        vote: Vote,
        last: (Option<LogId>, StoredMembership),
    ) -> Result<SnapshotResponse<TypeConfig<E>>, String> {
        let outcome = self
            .outcome_of(transfer)
            .or_else(|| self.begin_installing(transfer, pieces, vote, last))
            .ok_or("no such snapshot transfer")?;
        loop {
            if let Some(outcome) = outcome.get() {
                return outcome.clone();
            }
            self.env.sleep(INSTALL_LOOK).await;
        }
    }

    fn outcome_of(&self, transfer: Transfer) -> Option<Arc<Installed<E>>> {
        let installing = self.installing.lock();
        let same = installing.as_ref().filter(|installing| installing.transfer == transfer)?;
        Some(Arc::clone(&same.outcome))
    }

    fn begin_installing(
        self: &Arc<Self>,
        transfer: Transfer,
        pieces: u64,
        vote: Vote,
        (last_log_id, last_membership): (Option<LogId>, StoredMembership),
    ) -> Option<Arc<Installed<E>>> {
        let install = self.take_incoming(transfer, pieces)?;
        let outcome = Arc::new(Installed::<E>::new());
        let installing = Installing { transfer, outcome: Arc::clone(&outcome) };
        *self.installing.lock() = Some(installing);
        let snapshot = openraft::Snapshot {
            meta: SnapshotMetaOf::<TypeConfig<E>> { last_log_id, last_membership },
            snapshot: SnapshotData::Received(Arc::new(Mutex::new(Some(install)))),
        };
        let told = Arc::clone(&outcome);
        // A task of its own: it goes on when the one who asked is cut off.
        self.spawn(|node| async move {
            let installed = node.raft.install_full_snapshot(vote, snapshot).await;
            // Set here alone.
            let _ = told.set(installed.map_err(|error| error.to_string()));
        });
        Some(outcome)
    }
}
