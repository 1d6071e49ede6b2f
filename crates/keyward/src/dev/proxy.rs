//! A proxy between two Regions on one machine: passes bytes on, later or not at all.

use std::collections::VecDeque;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What is read at once.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces on their way in one direction at most: beyond that the sender waits, as on a real link.
const PIECES_MAX: usize = 256;
/// Between looks at a way that is cut.
const LOOK: Duration = Duration::from_millis(20);

/// How one direction of a link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Nothing gets through. What is under way waits, and new connections wait too: nobody is told.
    pub cut: bool,
    /// Everything takes so much longer.
    pub delay: Duration,
}

/// Passes connections on to `target`, for ever.
pub async fn serve(
    listener: TcpListener,
    target: String,
    there: impl Fn() -> Condition + Clone + Send + Sync + 'static,
    back: impl Fn() -> Condition + Clone + Send + Sync + 'static,
) {
    loop {
        let Ok((caller, _)) = listener.accept().await else {
            RealEnv.sleep(LOOK).await;
            continue;
        };
        let (target, there, back) = (target.clone(), there.clone(), back.clone());
        RealEnv.spawn(async move {
            // A node that is down refuses; so does its proxy, by hanging up.
            let Ok(called) = TcpStream::connect(&target).await else { return };
            drop((caller.set_nodelay(true), called.set_nodelay(true)));
            let (caller_in, caller_out) = caller.into_split();
            let (called_in, called_out) = called.into_split();
            tokio::select! {
                () = pass(caller_in, called_out, there) => {}
                () = pass(called_in, caller_out, back) => {}
            }
        });
    }
}

/// Passes one direction on. Each piece leaves when its time has come, in order.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    condition: impl Fn() -> Condition + Send + Sync,
) {
    let (pieces, mut arriving) = mpsc::channel::<(Duration, Vec<u8>)>(PIECES_MAX);
    let read = async {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            match from.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(bytes) => piece.truncate(bytes),
            }
            if pieces.send((RealEnv.boot_now(), piece)).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        let mut waiting: VecDeque<(Duration, Vec<u8>)> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match arriving.recv().await {
                    Some(piece) => waiting.push_back(piece),
                    None => return,
                }
            }
            let Some((sent, _)) = waiting.front() else { continue };
            let state = condition();
            let due = *sent + state.delay;
            let now = RealEnv.boot_now();
            if state.cut || now < due {
                let wait = if state.cut { LOOK } else { (due - now).min(LOOK) };
                RealEnv.sleep(wait).await;
                continue;
            }
            let Some((_, piece)) = waiting.pop_front() else { continue };
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}
