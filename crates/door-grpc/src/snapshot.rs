//! `keyward.v1.SnapshotService`. A snapshot is written to a file of this node that has no name, as fast as the disk takes
//! it, and sent from there: a caller on a slow line holds nothing up.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use keyward_env::{Env, RealEnv};
use keyward_model::{ErrorCode, KmsError};
use keyward_proto::v1;
use keyward_proto::v1::snapshot_service_server::SnapshotService;
use keyward_service::{Snapshotting, snapshot_refused};
use tokio::sync::{oneshot, watch};
use tonic::{Request, Response, Status};

use crate::errors::status;
use crate::operator::OperatorDoor;

/// Bytes of one message.
const PIECE_BYTES: u64 = 256 * 1024;

/// Operator calls about backups.
pub(crate) struct SnapshotDoor {
    pub(crate) door: Arc<OperatorDoor>,
    /// The folder on whose disk a snapshot lies while it is sent.
    pub(crate) spool: PathBuf,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<v1::SaveSnapshotResponse, Status>> + Send>>;

#[tonic::async_trait]
impl SnapshotService for SnapshotDoor {
    type SaveSnapshotStream = Pieces;

    async fn save_snapshot(
        &self,
        request: Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<Pieces>, Status> {
        let call = self.door.begin(&request, ("SaveSnapshot", false), Vec::new()).await?;
        let begun = self.door.kms.begin_snapshot(&call.caller, call.patience).await;
        let pieces = match begun {
            Ok(snapshotting) => sent(snapshotting, &self.spool).await,
            Err(refusal) => Err(refusal),
        };
        // On record before the first byte leaves.
        call.end(pieces).await
    }
}

/// Writes, and lets be sent what has been written.
async fn sent(snapshotting: Snapshotting<RealEnv>, folder: &Path) -> Result<Pieces, KmsError> {
    let path = folder.to_owned();
    let file = RealEnv.blocking(move || unnamed(&path)).await.map_err(|error| {
        KmsError::new(
            ErrorCode::KMSInternalException,
            format!("a snapshot has no room in this node's data folder: {error}; try another node"),
        )
    })?;
    let file = Arc::new(file);
    let (grown, written) = watch::channel(0);
    let (done, ended) = oneshot::channel();
    let spool = Spool { file: Arc::clone(&file), grown };
    RealEnv.spawn(async move {
        let result = snapshotting.write(spool).await;
        drop(done.send(result.map(drop).map_err(|error| snapshot_refused(&error))));
    });
    let sending = Sending { file, sent: 0, written, ended: Some(ended) };
    Ok(Box::pin(stream::unfold(sending, Sending::next)))
}

/// A file that is gone when nobody has it open any more.
fn unnamed(folder: &Path) -> io::Result<File> {
    let path = folder.join(".snapshot");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// What is written shows as soon as it is.
struct Spool {
    file: Arc<File>,
    grown: watch::Sender<u64>,
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = (&*self.file).write(bytes)?;
        self.grown.send_modify(|length| *length += written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A snapshot on its way.
struct Sending {
    file: Arc<File>,
    sent: u64,
    written: watch::Receiver<u64>,
    /// None once it has been told how it ended.
    ended: Option<oneshot::Receiver<Result<(), KmsError>>>,
}

impl Sending {
    async fn next(mut self) -> Option<(Result<v1::SaveSnapshotResponse, Status>, Self)> {
        loop {
            let length = *self.written.borrow_and_update();
            if self.sent < length {
                let piece = self.piece((length - self.sent).min(PIECE_BYTES)).await;
                return Some((piece.map(|piece| v1::SaveSnapshotResponse { piece }), self));
            }
            if self.written.changed().await.is_ok() {
                continue;
            }
            // The writer has gone, and may have written more before it did.
            if self.sent < *self.written.borrow() {
                continue;
            }
            let ended = self.ended.take()?;
            let lost = || KmsError::new(ErrorCode::KMSInternalException, "the node is stopping");
            match ended.await.unwrap_or_else(|_| Err(lost())) {
                Ok(()) => return None,
                Err(refusal) => return Some((Err(status(refusal)), self)),
            }
        }
    }

    async fn piece(&mut self, bytes: u64) -> Result<Vec<u8>, Status> {
        let (file, at) = (Arc::clone(&self.file), self.sent);
        // A piece is 256 KiB at most.
        let mut piece = vec![0; bytes as usize];
        let read = RealEnv.blocking(move || file.read_exact_at(&mut piece, at).map(|()| piece));
        let piece = read.await.map_err(|error| {
            status(KmsError::new(
                ErrorCode::KMSInternalException,
                format!("the snapshot could not be read back: {error}"),
            ))
        })?;
        self.sent += bytes;
        Ok(piece)
    }
}
