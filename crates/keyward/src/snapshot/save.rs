//! `keyward snapshot save`.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use keyward_client::{CallError, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use keyward_snapshot::Reader;
use serde_json::json;
use tonic::Streaming;

use super::refusal::cannot;
use super::show::{authority, moment};
use crate::cli::connect::ConnectArgs;
use crate::cli::file::progress;
use crate::cli::output::{Format, one};
use crate::error::Failure;

#[derive(Args, Clone, Debug)]
pub struct SaveArgs {
    /// Where it is put; `-` is standard output
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Put it in the place of a file that is there
    #[arg(long)]
    force: bool,
}

type Pieces = Streaming<v1::SaveSnapshotResponse>;

async fn piece(pieces: &mut Pieces) -> Result<Option<Vec<u8>>, Failure> {
    let told = pieces.message().await.map_err(|status| Failure::from(CallError::from(status)))?;
    Ok(told.map(|told| told.piece))
}

pub async fn save(connect: &ConnectArgs, format: Format, args: SaveArgs) -> Result<(), Failure> {
    let to_stdout = args.file == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Failure::new("a snapshot is no text for a terminal")
            .next("name a file, or pipe it: keyward snapshot save - | ssh vault 'cat > FILE'"));
    }
    if !to_stdout && args.file.exists() && !args.force {
        return Err(Failure::new(format!("{} exists", args.file.display()))
            .next("--force puts the snapshot in its place"));
    }
    let began = RealEnv.boot_now();
    let pieces = connect
        .operator()?
        .snapshot(Repeat::Safe, v1::SaveSnapshotRequest {}, |mut c, r| async move {
            c.save_snapshot(r).await
        })
        .await?;
    if to_stdout {
        return copy(pieces).await;
    }
    let mut draft = args.file.clone().into_os_string();
    draft.push(format!(".{}.part", std::process::id()));
    let draft = PathBuf::from(draft);
    let kept = keep(connect, pieces, &draft).await;
    let kept = kept.and_then(|header| {
        fs::rename(&draft, &args.file).map_err(cannot("write", &args.file))?;
        let folder = args.file.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot("sync", folder))?;
        Ok(header)
    });
    let (header, bytes) = kept.inspect_err(|_| drop(fs::remove_file(&draft)))?;
    one(
        format,
        &[
            ("File", json!(args.file.display().to_string())),
            ("Region", json!(header.region)),
            ("Applied", json!(header.applied)),
            ("RegionTime", json!(moment(header.region_time_ms))),
            ("Keys", json!(header.keys)),
            ("Bytes", json!(bytes)),
            ("Seconds", json!((RealEnv.boot_now() - began).as_millis() as f64 / 1000.0)),
        ],
    );
    Ok(())
}

async fn copy(mut pieces: Pieces) -> Result<(), Failure> {
    while let Some(piece) = piece(&mut pieces).await? {
        let written = std::io::stdout().write_all(&piece);
        written.map_err(|e| Failure::new(format!("standard output: {e}")))?;
    }
    std::io::stdout().flush().map_err(|e| Failure::new(format!("standard output: {e}")))
}

/// Takes it in, then reads it back: it counts when it is whole, signed and on the disk.
async fn keep(
    connect: &ConnectArgs,
    mut pieces: Pieces,
    draft: &Path,
) -> Result<(keyward_snapshot::Header, u64), Failure> {
    let nothing = "name a file in a folder that is there and may be written to; nothing was saved";
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    let mut file = opened
        .map_err(cannot("write", draft))
        .map_err(|refusal| Failure::from(refusal).next(nothing))?;
    let (mut bytes, mut show) = (0, progress(None, "saving"));
    while let Some(piece) = piece(&mut pieces).await? {
        file.write_all(&piece).map_err(cannot("write", draft))?;
        bytes += piece.len() as u64;
        show(bytes);
    }
    file.sync_all().map_err(cannot("write", draft))?;
    let authority = authority(connect)?;
    let path = draft.to_owned();
    let read_back = move || -> Result<keyward_snapshot::Header, Failure> {
        let file = File::open(&path).map_err(cannot("read", &path))?;
        let reader = Reader::open(std::io::BufReader::with_capacity(256 * 1024, file))
            .map_err(Failure::from_error)?;
        let header = reader.header().clone();
        let trailer = reader.skip().map_err(Failure::from_error)?;
        if let Some(authority) = authority {
            trailer.check(&authority).map_err(Failure::from_error)?;
        }
        Ok(header)
    };
    Ok((RealEnv.blocking(read_back).await?, bytes))
}
