//! The network between simulated nodes: messages are late, lost, doubled, cut off one way or both.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::AsyncRuntime;
use keyward_model::NodeId;
use keyward_raft::{BasicNode, BoxFuture, Node, Transport, TransportError};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::dice::{Dice, Stream};
use crate::env::SimEnv;
use crate::runtime::{Group, SimRuntime, World};

/// How the network is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Messages lost in a thousand, each way on its own.
    pub loss_permille: u64,
    /// Messages that arrive a second time, in a thousand.
    pub twice_permille: u64,
    /// Delays to draw from, in milliseconds.
    pub delays_ms: &'static [u64],
}

impl Weather {
    /// Nothing is lost, everything arrives within a few milliseconds.
    pub const FAIR: Self = Self { loss_permille: 0, twice_permille: 0, delays_ms: &[1, 1, 2, 5] };
}

/// What comes back: the answer, or word that nobody listens there.
type Answer = oneshot::Sender<Option<Vec<u8>>>;

/// How a process answers a message of that sender. None: as if nobody listened.
pub type Answers =
    Arc<dyn Fn(NodeId, Vec<u8>) -> BoxFuture<'static, Option<Vec<u8>>> + Send + Sync>;

struct Member {
    id: NodeId,
    group: Group,
    answers: Answers,
}

struct Links {
    dice: Dice,
    weather: Weather,
    cut: BTreeSet<(NodeId, NodeId)>,
    members: Vec<Member>,
    delivered: u64,
}

/// The network.
pub struct Net {
    world: Arc<World>,
    links: Mutex<Links>,
}

impl Net {
    /// A network in fair weather.
    #[must_use]
    pub fn new(world: Arc<World>, seed: u64) -> Arc<Self> {
        let links = Links {
            dice: Dice::new(seed, Stream::Network),
            weather: Weather::FAIR,
            cut: BTreeSet::new(),
            members: Vec::new(),
            delivered: 0,
        };
        Arc::new(Self { world, links: Mutex::new(links) })
    }

    /// Changes the weather. Messages under way keep their delays.
    pub fn set_weather(&self, weather: Weather) {
        self.links.lock().weather = weather;
    }

    /// Cuts the way from one node to another.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.links.lock().cut.insert((from, to));
    }

    /// Mends every link.
    pub fn mend(&self) {
        self.links.lock().cut.clear();
    }

    /// How many messages arrived.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.links.lock().delivered
    }

    /// A process listens from now on.
    pub fn listen(&self, id: NodeId, group: Group, answers: Answers) {
        let mut links = self.links.lock();
        links.members.retain(|member| member.id != id);
        links.members.push(Member { id, group, answers });
    }

    /// Nobody listens there any more.
    pub fn hang_up(&self, id: NodeId) {
        let gone = {
            let mut links = self.links.lock();
            let at = links.members.iter().position(|member| member.id == id);
            at.map(|at| links.members.swap_remove(at))
        };
        drop(gone);
    }

    /// The delay of a message, or nothing when it is lost.
    fn fate(links: &mut Links, from: NodeId, to: NodeId) -> Option<Duration> {
        if links.cut.contains(&(from, to)) || links.dice.permille(links.weather.loss_permille) {
            return None;
        }
        let delay_ms = links.dice.pick(links.weather.delays_ms);
        // Never on the stroke of a millisecond: messages of one millisecond overtake each other.
        Some(links.dice.between_ms(delay_ms, delay_ms + 1) - Duration::from_micros(500))
    }

    fn send(self: &Arc<Self>, from: NodeId, to: NodeId, body: Vec<u8>, answer: Answer) {
        let mut links = self.links.lock();
        let Some(delay) = Self::fate(&mut links, from, to) else { return };
        let group = links.members.iter().find(|member| member.id == to).map(|member| member.group);
        let twice = links.weather.twice_permille;
        let again =
            if links.dice.permille(twice) { Self::fate(&mut links, from, to) } else { None };
        drop(links);
        if let Some(again) = again {
            let (this, body) = (Arc::clone(self), body.clone());
            let (unheard, _) = oneshot::channel();
            self.world.after(again, move || this.deliver(from, to, group, body, unheard));
        }
        let this = Arc::clone(self);
        self.world.after(delay, move || this.deliver(from, to, group, body, answer));
    }

    /// A message is there: the process that it was sent to answers it, as soon as it runs.
    fn deliver(
        self: &Arc<Self>,
        from: NodeId,
        to: NodeId,
        group: Option<Group>,
        body: Vec<u8>,
        answer: Answer,
    ) {
        let mut links = self.links.lock();
        let listens = links.members.iter().find(|member| member.id == to);
        let Some(member) = listens.filter(|member| Some(member.group) == group) else {
            // Connection refused; a connection to an earlier process is broken.
            let _ = answer.send(None);
            return;
        };
        let (answers, group) = (Arc::clone(&member.answers), member.group);
        links.delivered += 1;
        drop(links);
        self.world.note(from << 8 | to << 4 | body.len() as u64);
        let this = Arc::clone(self);
        drop(self.world.spawn_in(group, async move {
            let response = answers(from, body).await;
            this.answer(to, from, response, answer);
        }));
    }

    fn answer(&self, from: NodeId, to: NodeId, response: Option<Vec<u8>>, answer: Answer) {
        let fate = Self::fate(&mut self.links.lock(), from, to);
        if let Some(delay) = fate {
            self.world.after(delay, move || drop(answer.send(response)));
        }
    }

    /// Sends a message of that process, and waits for its answer.
    pub async fn call(
        self: &Arc<Self>,
        (from, group): (NodeId, Group),
        to: NodeId,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let (answer, answered) = oneshot::channel();
        if self.world.is_alive(group) {
            self.send(from, to, body, answer);
        }
        let waiting = async move {
            match answered.await {
                Ok(answer) => answer,
                // Lost: silence.
                Err(_) => std::future::pending().await,
            }
        };
        match SimRuntime::timeout(patience, waiting).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(TransportError::Unreachable {
                node: to,
                reason: "connection refused".to_owned(),
            }),
            Err(_) => {
                Err(TransportError::NoAnswer { node: to, reason: "the time was up".to_owned() })
            }
        }
    }
}

/// A node's answers to the other nodes of its Region.
#[must_use]
pub fn answers_of(node: Arc<Node<SimEnv>>) -> Answers {
    Arc::new(move |from, body| {
        let node = Arc::clone(&node);
        Box::pin(async move { Some(node.answer(from, body).await) })
    })
}

/// One process's end of the network.
pub struct SimTransport {
    net: Arc<Net>,
    me: NodeId,
    group: Group,
}

impl SimTransport {
    /// The end of that process.
    #[must_use]
    pub fn new(net: Arc<Net>, me: NodeId, group: Group) -> Arc<Self> {
        Arc::new(Self { net, me, group })
    }
}

impl Transport for SimTransport {
    fn call(
        &self,
        target: NodeId,
        _: &BasicNode,
        body: Vec<u8>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(self.net.call((self.me, self.group), target, body, patience))
    }
}
