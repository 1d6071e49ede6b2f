//! How calls are sent, alone or on a stream, and what is looked at when an answer leaves, whoever gets it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_model::{KmsError, NodeId};
use keyward_service::{Call, Request, Response, Stack};
use tower::ServiceExt;

use super::Callers;
use crate::cluster::Running;
use crate::trail::RequestId;
use keyward_check::Step;

/// How long a call of the harness may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A call is answered within its deadline and this: clocks are up to 5 % slow, a record waits for room for a second.
const LATE_MAX: Duration = Duration::from_secs(2);

/// The calls that wait, each with the time by which it must be answered.
pub(super) type Waiting = BTreeMap<RequestId, (Duration, NodeId, &'static str)>;

/// A call under way.
#[derive(Clone, Copy)]
struct Asked {
    id: RequestId,
    event: &'static str,
    began: Step,
}

/// Takes a call off the list, answered or not.
struct OnList<'a>(&'a Callers, RequestId);

impl Drop for OnList<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(&self.1);
    }
}

impl Callers {
    /// A call of a caller who may.
    #[must_use]
    pub fn call(&self, request: Request, patience: Duration) -> Call {
        Call::new(Arc::clone(&self.caller), request, patience)
    }

    /// Sends a call to that node, in whose own task this runs; on its caller's stream, where callers use them. `note` is
    /// called as the answer leaves. None: the stream broke before.
    pub async fn send<T: Send + 'static>(
        self: &Arc<Self>,
        (index, running): (usize, &Running),
        mut call: Call,
        note: impl FnOnce(Result<Response, KmsError>) -> T + Send + 'static,
    ) -> Option<T> {
        let (id, event) = (running.kms.audit().next_request_id(), call.request.operation().name());
        call.trace.request_id = id;
        let world = &self.cluster.world;
        let asked = Asked { id, event, began: world.step() };
        let by = world.now() + call.patience * 21 / 20 + LATE_MAX;
        self.waiting.lock().insert(id, (by, running.kms.node().id(), event));
        let _on_list = OnList(self, id);
        let this = Arc::clone(self);
        let left = move |result: Result<Response, KmsError>| {
            this.left(index, &asked, result.as_ref());
            note(result)
        };
        if self.streams.take(&call.request) {
            return self.streams.call(self, (index, running), call, left).await;
        }
        Some(left(Stack::clone(&running.stack).oneshot(call).await))
    }

    /// An answer leaves: it must be on record, and none of a node that was removed.
    fn left(&self, index: usize, asked: &Asked, result: Result<&Response, &KmsError>) {
        let (disk, refusal) = (self.cluster.audit_disk(index), result.err());
        if result.is_ok() && self.cluster.had_left(index, asked.began) {
            let (node, event) = (self.cluster.id(index), asked.event);
            self.book.lock().violate(format!("A REMOVED NODE SERVES: node {node}, {event}"));
        }
        let (mut trails, now) = (self.invariants.trails(), self.cluster.world.now());
        let mut book = self.book.lock();
        trails.answered((index, &disk), asked.id, asked.event, refusal, now, &mut book);
        if let Some(error) = refusal
            && !book.texts.errors.contains(error.message.as_str())
        {
            book.texts.errors.insert(error.message.to_string());
        }
    }

    /// A call whose answer the harness waits for. `None`: the node is down, or died, or the stream broke.
    pub async fn ask(
        self: &Arc<Self>,
        index: usize,
        request: Request,
    ) -> Option<Result<Response, KmsError>> {
        let running = self.cluster.running(index)?;
        let call = self.call(request, PATIENCE);
        let (this, group) = (Arc::clone(self), running.group);
        let answer =
            async move { this.send((index, &running), call, std::convert::identity).await };
        self.cluster.world.spawn_in(group, answer).await.ok().flatten()
    }

    /// In the end no call waits long after its deadline.
    pub fn all_are_answered(&self) {
        let now = self.cluster.world.now();
        let waiting = self.waiting.lock();
        let late: Vec<_> = waiting.values().filter(|(by, ..)| *by < now).collect();
        if let Some((by, node, event)) = late.first() {
            self.book.lock().violate(format!(
                "A CALL IS NOT ANSWERED: {event} on node {node}, by {by:?}; {} of them",
                late.len()
            ));
        }
    }
}
