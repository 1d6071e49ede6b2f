//! A link between machines that can be slow, lossy and cut: every connection to a node goes through here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyward_env::{AsyncRuntime, Env, RealEnv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

use crate::support::machines::{Machines, PORT};

/// Between looks whether a cut link is mended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What TCP takes to send a lost segment again, at the least.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// On one connection, so that no queue grows without bound.
const PIECES_UNDER_WAY: usize = 64;

/// How one direction of a link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Nothing comes through, and nobody is told.
    pub cut: bool,
    pub delay: Duration,
    /// Of a thousand pieces, how many are lost and sent again.
    pub loss_permille: u32,
}

/// All links: from host to host, by the last part of the address.
#[derive(Clone, Default)]
pub struct Links(Arc<Mutex<BTreeMap<(usize, usize), Way>>>);

impl Links {
    pub fn set(&self, from: usize, to: usize, way: Way) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((from, to), way);
    }

    pub fn mend(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn way(&self, from: usize, to: usize) -> Way {
        let ways = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ways.get(&(from, to)).copied().unwrap_or_default()
    }

    /// Nothing comes from one to the other any more.
    pub fn cut(&self, from: usize, to: usize) {
        self.set(from, to, Way { cut: true, ..Way::default() });
    }

    /// Cuts a node off from the two others. Clients still reach it.
    pub fn isolate(&self, node: usize) {
        for other in (1..=3).filter(|other| *other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Configures three machines that are reached through links, by peers and clients.
    pub async fn between(machines: &Machines) -> Self {
        let links = Self::default();
        for node in 1..=3 {
            let front = machines.own_address(100 + node);
            machines.configure_as(node, &front);
            let target = format!("{}:{PORT}", machines.address(node));
            links.carry(format!("{front}:{PORT}"), target, node).await;
        }
        links
    }

    /// Carries connections that arrive at `listen` to the node at `target`, host `to`.
    async fn carry(&self, listen: String, target: String, to: usize) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("reusable");
        socket.bind(listen.parse().expect("an address")).expect("bound");
        let listener: TcpListener = socket.listen(256).expect("a listener");
        let links = self.clone();
        drop(<RealEnv as Env>::Runtime::spawn(async move {
            while let Ok((near, peer)) = listener.accept().await {
                let from = match peer.ip() {
                    IpAddr::V4(address) => usize::from(address.octets()[3]),
                    IpAddr::V6(_) => 0,
                };
                let (links, target) = (links.clone(), target.clone());
                drop(<RealEnv as Env>::Runtime::spawn(async move {
                    // A cut link lets no connection through, and says nothing.
                    while links.way(from, to).cut || links.way(to, from).cut {
                        RealEnv.sleep(LOOK_AGAIN).await;
                    }
                    let connected =
                        RealEnv.timeout(Duration::from_secs(2), TcpStream::connect(target));
                    let Some(Ok(far)) = connected.await else { return };
                    drop((near.set_nodelay(true), far.set_nodelay(true)));
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    let back = links.clone();
                    drop(<RealEnv as Env>::Runtime::spawn(async move {
                        back.pump(far_in, near_out, (to, from)).await;
                    }));
                    links.pump(near_in, far_out, (from, to)).await;
                }));
            }
        }));
    }

    /// Carries bytes one way. A piece is under way while the next ones set out, and none overtakes another: a lost one
    /// holds up those behind it, as in TCP.
    async fn pump(
        &self,
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        (sender, receiver): (usize, usize),
    ) {
        let (sets_out, mut under_way) = mpsc::channel::<(Duration, Vec<u8>)>(PIECES_UNDER_WAY);
        let links = self.clone();
        drop(<RealEnv as Env>::Runtime::spawn(async move {
            while let Some((due, piece)) = under_way.recv().await {
                let wait = due.saturating_sub(RealEnv.boot_now());
                if !wait.is_zero() {
                    RealEnv.sleep(wait).await;
                }
                while links.way(sender, receiver).cut {
                    RealEnv.sleep(LOOK_AGAIN).await;
                }
                if to.write_all(&piece).await.is_err() {
                    return;
                }
            }
        }));
        let mut piece = vec![0; 16 * 1024];
        let mut number = 0_u32;
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let way = self.way(sender, receiver);
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let lost = (number >> 16) % 1000 < way.loss_permille;
            let wait = way.delay + if lost { RETRANSMIT } else { Duration::ZERO };
            let piece = (RealEnv.boot_now() + wait, piece[..length].to_vec());
            if sets_out.send(piece).await.is_err() {
                return;
            }
        }
    }
}
