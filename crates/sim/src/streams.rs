//! Streams of calls (`DataPlane.Stream`): each caller has one to each process, and the shipped [`Multiplex`] serves it in a
//! task of that process. A stream dies with its process, and stands still with it. Now and then its caller hangs up, or
//! closes it. What a door does is left out: calls are not translated, and between a caller and a node there is no network,
//! as for calls that go alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use keyward_model::KmsError;
use keyward_service::{Call, Multiplex, Request, Response, Stack};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::client::Callers;
use crate::cluster::Running;
use crate::dice::Dice;
use crate::env::SimEnv;
use crate::runtime::Group;
use crate::trail::RequestId;

/// Calls that wait to be read from a stream; more wait for room. As many as in the client.
const TO_READ_MAX: usize = 256;
/// How often a call is sent whose stream turns out to be over.
const TRIES_MAX: usize = 2;

/// What an answer is handed to as it leaves.
type Leave = Box<dyn FnOnce(Result<Response, KmsError>) + Send>;

/// A call on its way, and what is done with its answer.
struct Sent {
    call: Call,
    leave: Leave,
}

/// How a caller ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At once: what is under way is not answered.
    Broken,
    /// No more calls come; those under way are answered.
    Closed,
}

/// A caller's end of a stream.
struct Line {
    to_send: mpsc::Sender<Sent>,
    hang_up: oneshot::Sender<()>,
}

/// The streams of a run, by process and by the serial of the caller's certificate.
pub struct Streams {
    used: bool,
    lines: Mutex<BTreeMap<(Group, Vec<u8>), Line>>,
}

impl Streams {
    /// None so far. `used`: calls that may go over streams do.
    #[must_use]
    pub fn new(used: bool) -> Self {
        Self { used, lines: Mutex::default() }
    }

    /// Whether that goes over a stream: the operations that `DataPlane.Stream` has, if callers use streams.
    #[must_use]
    pub fn take(&self, request: &Request) -> bool {
        self.used
            && matches!(
                request,
                Request::Encrypt(_)
                    | Request::Decrypt(_)
                    | Request::ReEncrypt(_)
                    | Request::GenerateDataKey(_)
                    | Request::GenerateDataKeyWithoutPlaintext(_)
                    | Request::GenerateRandom(_)
            )
    }

    /// Sends a call on its caller's stream to that process, in whose own task this runs. `left` is called as the answer
    /// leaves. None: the stream broke before.
    pub async fn call<T: Send + 'static>(
        &self,
        callers: &Arc<Callers>,
        on: (usize, &Running),
        call: Call,
        left: impl FnOnce(Result<Response, KmsError>) -> T + Send + 'static,
    ) -> Option<T> {
        let (told, tells) = oneshot::channel();
        let (of, serial) = (Arc::clone(callers), call.caller.serial.clone());
        let leave = Box::new(move |result| {
            of.book.lock().counters.streamed += 1;
            drop(told.send(left(result)));
        });
        let mut sent = Sent { call, leave };
        for _ in 0..TRIES_MAX {
            match self.line(callers, on, &serial).send(sent).await {
                Ok(()) => break,
                Err(mpsc::error::SendError(again)) => sent = again,
            }
        }
        let answer = tells.await.ok();
        callers.book.lock().counters.hung_up += u64::from(answer.is_none());
        answer
    }

    /// The stream of that caller to that process; another one where it is over.
    fn line(
        &self,
        callers: &Arc<Callers>,
        (index, running): (usize, &Running),
        serial: &[u8],
    ) -> mpsc::Sender<Sent> {
        let mut lines = self.lines.lock();
        let of = (running.group, serial.to_vec());
        if let Some(line) = lines.get(&of).filter(|line| !line.to_send.is_closed()) {
            return line.to_send.clone();
        }
        // Those of processes that died, too.
        lines.retain(|_, line| !line.to_send.is_closed());
        let (to_send, calls) = mpsc::channel(TO_READ_MAX);
        let (hang_up, hung_up) = oneshot::channel();
        lines.insert(of, Line { to_send: to_send.clone(), hang_up });
        drop(lines);
        let stack = Stack::clone(&running.stack);
        let served = serve(Arc::clone(callers), index, stack, calls, hung_up);
        drop(callers.cluster.world.spawn_in(running.group, served));
        to_send
    }

    /// Ends one of them. False: there is none.
    pub fn end_one(&self, dice: &mut Dice, how: End) -> bool {
        let mut lines = self.lines.lock();
        lines.retain(|_, line| !line.to_send.is_closed());
        if lines.is_empty() {
            return false;
        }
        let at = dice.index(lines.len());
        let Some(of) = lines.keys().nth(at).cloned() else { return false };
        let line = lines.remove(&of);
        drop(lines);
        if let (Some(line), End::Broken) = (line, how) {
            // Its process may have died.
            let _ = line.hang_up.send(());
        }
        true
    }
}

/// A node's end of a stream, until it is over.
async fn serve(
    callers: Arc<Callers>,
    index: usize,
    stack: Stack<SimEnv>,
    mut calls: mpsc::Receiver<Sent>,
    hung_up: oneshot::Receiver<()>,
) {
    let under_way = Mutex::new(BTreeSet::new());
    let broken = Box::pin(async move {
        if hung_up.await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let calls = stream::poll_fn(|cx| {
        calls.poll_recv(cx).map(|sent| {
            let Sent { call, leave } = sent?;
            let id = call.trace.request_id;
            under_way.lock().insert(id);
            Some(((id, leave), Ok(call)))
        })
    });
    let mut answers = Multiplex::new(stack, calls).take_until(broken);
    while let Some(((id, leave), result)) = answers.next().await {
        under_way.lock().remove(&id);
        leave(result);
    }
    let closed = answers.take_future().is_some();
    drop(answers);
    is_over(&callers, index, closed, &under_way.into_inner());
}

/// A stream is over. Every call that was closed out is answered; one whose caller hung up is on record.
fn is_over(callers: &Callers, index: usize, closed: bool, under_way: &BTreeSet<RequestId>) {
    let disk = callers.cluster.audit_disk(index);
    let (mut trails, now) = (callers.invariants.trails(), callers.cluster.world.now());
    let mut book = callers.book.lock();
    if closed && !under_way.is_empty() {
        let (node, calls) = (callers.cluster.id(index), under_way.len());
        book.violate(format!("A CLOSED STREAM ENDED with {calls} calls under way on node {node}"));
    }
    for id in under_way {
        trails.hung_up((index, &disk), *id, now, &mut book);
    }
}
