//! The trail as calls see it: a record is appended, and its ticket tells when the operating system has it.
//!
//! ```text
//! calls     append: a line into the queue, a ticket back        (one short lock, no I/O)
//! writer    takes all that waits, one write off the async threads, all tickets done
//! upkeep    syncs within 100 ms, tries again after a failure, removes old segments
//! ```

mod ticket;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use keyward_env::Env;
use keyward_model::Timestamp;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::config::{SyncMode, TrailConfig};
use crate::error::AuditError;
use crate::files::Files;
use crate::record::{RECORD_BYTES_MAX, Record};
use crate::recovery::{Recovery, recover};
use crate::retention;
use crate::segment;
use crate::writer::Writer;

pub use ticket::Ticket;

/// Bytes that wait for the writer at most; more are refused. All calls that a node has under way at once
/// (4,096) fit in with records of 4 KiB, and a disk that takes no more is noticed early.
pub const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A sync begins this long after the first write that it covers: the rest of the 100 ms that are
/// promised is for the disk.
const SYNC_AFTER: Duration = Duration::from_millis(50);
/// How long a trail that failed waits before it tries again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How often old segments are looked for when nothing happens.
const RETENTION_EVERY: Duration = Duration::from_secs(3600);
/// What a line has besides its record's body, at most.
const FRAME_BYTES_MAX: usize = 256;
/// A buffer that grew beyond this for one large record is given back.
const BUFFER_KEPT_BYTES_MAX: usize = 64 * 1024;

/// Whether the trail takes records.
#[derive(Clone, Debug)]
pub enum Health {
    /// It does.
    Good,
    /// It does not: calls must be refused, and another node should lead.
    Failing {
        /// Since when, on the node's wall clock.
        since: Timestamp,
        /// Why: the latest reason.
        reason: AuditError,
    },
}

impl Health {
    /// True when the trail takes records.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::Good)
    }
}

/// The trail of one node. Dropping it closes it; [`Trail::close`] does so in order and tells.
pub struct Trail(Arc<Shared>);

/// What calls, writer and upkeep share.
pub(crate) struct Shared {
    pub(crate) config: TrailConfig,
    pub(crate) files: Arc<dyn Files>,
    wall_now_ms: Box<dyn Fn() -> i64 + Send + Sync>,
    /// Drawn at open: the part of event ids that differs from start to start.
    boot: u64,
    queue: Mutex<Queue>,
    /// All records with smaller numbers are with the operating system, or synced where the
    /// configuration says so.
    done: AtomicU64,
    failing: AtomicBool,
    /// Taken before `queue` where both are held.
    writer: Mutex<Writer>,
    /// No sync is under way any more.
    sync_ended: Condvar,
    work: Notify,
    upkeep: Notify,
    health: watch::Sender<Health>,
    finished: watch::Sender<Option<Result<(), AuditError>>>,
}

struct Queue {
    /// Lines that the writer has not taken yet.
    lines: Vec<u8>,
    /// The number of the next record.
    next: u64,
    /// Who waits: a place for each record that is not done, the first for record `Shared::done`.
    waiting: VecDeque<Option<Waker>>,
    /// The writer has been told that there is work, and will look before it rests.
    writer_called: bool,
    failure: Option<AuditError>,
    closed: bool,
}

thread_local! {
    /// Where a record is written before its number is known. One a thread, and reused.
    static BODY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Trail {
    /// Opens the trail in a folder, made if it is not there; cuts off what a crash left half-written;
    /// starts a new segment, with a real write and sync; and starts writer and upkeep in the runtime of
    /// `env`. Blocks on the disk: call it before the node serves, or through [`Env::blocking`].
    ///
    /// # Errors
    /// [`AuditError::DiskFull`] and [`AuditError::File`]: a node must not start without its trail.
    pub fn open<E: Env>(
        env: &E,
        files: Arc<dyn Files>,
        config: TrailConfig,
    ) -> Result<(Self, Recovery), AuditError> {
        let recovery = recover(&*files, &config.folder)?;
        let next = recovery.next_sequence;
        let mut writer = Writer::new(Arc::clone(&files), &config, next);
        writer.start_segment()?;
        let mut boot = [0; 8];
        env.entropy().fill(&mut boot);
        let clock = env.clone();
        let shared = Arc::new(Shared {
            config,
            files,
            wall_now_ms: Box::new(move || clock.wall_now_ms()),
            boot: u64::from_be_bytes(boot),
            queue: Mutex::new(Queue {
                lines: Vec::new(),
                next,
                waiting: VecDeque::new(),
                writer_called: false,
                failure: None,
                closed: false,
            }),
            done: AtomicU64::new(next),
            failing: AtomicBool::new(false),
            writer: Mutex::new(writer),
            sync_ended: Condvar::new(),
            work: Notify::new(),
            upkeep: Notify::new(),
            health: watch::Sender::new(Health::Good),
            finished: watch::Sender::new(None),
        });
        env.spawn(write(env.clone(), Arc::clone(&shared)));
        env.spawn(keep_up(env.clone(), Arc::clone(&shared)));
        Ok((Self(shared), recovery))
    }

    /// Puts a record in line. The call must not be answered before the ticket is done. Costs a copy of
    /// the record under a lock that all calls share; no I/O happens here.
    ///
    /// # Errors
    /// [`AuditError::DiskFull`] and [`AuditError::File`] while the trail is failing, [`AuditError::Busy`]
    /// when the disk does not keep up, [`AuditError::TooLarge`], [`AuditError::Closed`]. The record is
    /// then in no file, and never will be.
    pub fn append(&self, record: &Record<'_>) -> Result<Ticket, AuditError> {
        self.0.append(record)
    }

    /// Fails when the trail takes no records now. For calls to ask before they begin: one atomic.
    ///
    /// # Errors
    /// Why it fails.
    pub fn check(&self) -> Result<(), AuditError> {
        if !self.0.failing.load(Ordering::Acquire) {
            return Ok(());
        }
        self.0.queue.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Whether the trail takes records, since when not, and why.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.health.borrow().clone()
    }

    /// The same, to wait on: a node whose trail fails hands over leadership.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// Writes and syncs what waits, gives the unused rest of the segment back, and ends.
    ///
    /// # Errors
    /// Why the trail was failing: records of calls that were refused are lost then.
    pub async fn close(self) -> Result<(), AuditError> {
        let mut finished = self.0.finished.subscribe();
        self.0.begin_close();
        match finished.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            // The runtime was stopped under it.
            Ok(None) | Err(_) => Err(AuditError::Closed),
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.0.begin_close();
    }
}

impl Shared {
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp((self.wall_now_ms)())
    }

    pub(crate) fn append(self: &Arc<Self>, record: &Record<'_>) -> Result<Ticket, AuditError> {
        BODY.with_borrow_mut(|body| {
            body.clear();
            record.write(body);
            let ticket = self.enqueue(body);
            if body.capacity() > BUFFER_KEPT_BYTES_MAX {
                *body = Vec::new();
            }
            ticket
        })
    }

    fn enqueue(self: &Arc<Self>, body: &[u8]) -> Result<Ticket, AuditError> {
        let bytes = body.len() + FRAME_BYTES_MAX;
        if bytes > RECORD_BYTES_MAX {
            return Err(AuditError::TooLarge { bytes });
        }
        let mut queue = self.queue.lock();
        if let Some(failure) = &queue.failure {
            return Err(failure.clone());
        }
        if queue.closed {
            return Err(AuditError::Closed);
        }
        if queue.lines.len() + bytes > WAITING_BYTES_MAX {
            return Err(AuditError::Busy { bytes: queue.lines.len() });
        }
        let sequence = queue.next;
        queue.next += 1;
        queue.waiting.push_back(None);
        segment::line(&mut queue.lines, sequence, self.config.node, self.boot, body);
        let call = !std::mem::replace(&mut queue.writer_called, true);
        drop(queue);
        if call {
            self.work.notify_one();
        }
        Ok(Ticket { shared: Arc::clone(self), sequence })
    }

    fn begin_close(&self) {
        self.queue.lock().closed = true;
        self.work.notify_one();
        self.upkeep.notify_one();
    }

    /// True when all records so far are on disk.
    pub(crate) fn is_synced(&self) -> bool {
        let writer = self.writer.lock();
        !self.failing.load(Ordering::Acquire) && writer.is_synced()
    }

    /// True when nothing waits: the writer is called for the next record.
    fn may_rest(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.writer_called = !queue.lines.is_empty();
        !queue.writer_called
    }

    fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    // --- The writer. Blocks on the disk.

    /// Writes what waits, as one group. Returns the calls that go on.
    fn write_group(&self) -> Vec<Waker> {
        let mut writer = self.writer.lock();
        let end = {
            let mut queue = self.queue.lock();
            writer.take(&mut queue.lines);
            queue.next
        };
        let needs_sync = self.config.sync == SyncMode::Always || writer.must_sync();
        if needs_sync || writer.must_roll() {
            self.sync_ended.wait_while(&mut writer, |writer| writer.is_syncing());
        }
        let was_synced = writer.is_synced();
        let rolled = writer.must_roll();
        let mut written = writer.write(end);
        if needs_sync {
            written = written.and_then(|()| writer.sync());
        }
        if let Err(error) = written {
            self.fail(&mut writer, error);
            return Vec::new();
        }
        if rolled || (was_synced && !writer.is_synced()) {
            self.upkeep.notify_one();
        }
        self.finish_group(end)
    }

    /// All records below `end` are handed over: their calls go on.
    fn finish_group(&self, end: u64) -> Vec<Waker> {
        let mut queue = self.queue.lock();
        let records = end - self.done.swap(end, Ordering::AcqRel);
        let records = usize::try_from(records).unwrap_or(usize::MAX).min(queue.waiting.len());
        let mut waiting = Vec::with_capacity(records);
        waiting.extend(queue.waiting.drain(..records).flatten());
        waiting
    }

    /// Nothing is taken any more, and all calls that wait are told why.
    fn fail(&self, writer: &mut MutexGuard<'_, Writer>, error: AuditError) {
        let waiting = {
            let mut queue = self.queue.lock();
            // They have their numbers, and their calls may have taken effect: they are kept, and written
            // when the trail comes back.
            let next = queue.next;
            writer.hold(&mut queue.lines, next);
            queue.failure = Some(error.clone());
            queue.writer_called = false;
            self.failing.store(true, Ordering::Release);
            std::mem::take(&mut queue.waiting)
        };
        tracing::error!(%error, "the audit trail takes no records");
        self.tell_failing(error);
        waiting.into_iter().flatten().for_each(Waker::wake);
        self.upkeep.notify_one();
    }

    fn tell_failing(&self, reason: AuditError) {
        let now = self.now();
        self.health.send_modify(|health| {
            let since = match health {
                Health::Failing { since, .. } => *since,
                Health::Good => now,
            };
            *health = Health::Failing { since, reason };
        });
    }

    // --- Upkeep. Blocks on the disk.

    /// Syncs what was written. The writer goes on meanwhile.
    pub(crate) fn sync(&self) {
        let mut writer = self.writer.lock();
        let Some(sync) = writer.begin_sync() else { return };
        let result = MutexGuard::unlocked(&mut writer, || sync.run());
        let ended = writer.end_sync(sync, result);
        self.sync_ended.notify_all();
        if let Err(error) = ended {
            self.fail(&mut writer, error);
        }
    }

    /// Tries whether the trail can be written again: a new segment, with all that is held, synced. True
    /// when it can.
    fn retry(&self) -> bool {
        let mut writer = self.writer.lock();
        self.sync_ended.wait_while(&mut writer, |writer| writer.is_syncing());
        match writer.start_segment() {
            Ok(()) => {
                let mut queue = self.queue.lock();
                self.done.store(queue.next, Ordering::Release);
                queue.failure = None;
                self.failing.store(false, Ordering::Release);
                drop(queue);
                tracing::info!("the audit trail takes records again");
                self.health.send_replace(Health::Good);
                true
            }
            Err(error) => {
                self.queue.lock().failure = Some(error.clone());
                self.tell_failing(error);
                false
            }
        }
    }

    /// Syncs the last records and gives the rest of the segment back.
    fn finish(&self) {
        let mut writer = self.writer.lock();
        self.sync_ended.wait_while(&mut writer, |writer| writer.is_syncing());
        let failure = self.queue.lock().failure.clone();
        let result = failure.map_or(Ok(()), Err).and_then(|()| writer.finish());
        self.finished.send_replace(Some(result));
    }
}

async fn off_thread<E: Env, T: Send + 'static>(
    env: &E,
    shared: &Arc<Shared>,
    work: impl FnOnce(&Arc<Shared>) -> T + Send + 'static,
) -> T {
    let shared = Arc::clone(shared);
    env.blocking(move || work(&shared)).await
}

/// Lets tasks run first that are ready on this thread.
async fn let_others_run() {
    let mut told = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut told, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Writes until nothing waits. Each group costs two hand-overs between threads, so calls that are ready get in first;
/// and calls that go on are woken from here, which costs a fraction of waking them from the thread that writes.
async fn write_waiting<E: Env>(env: &E, shared: &Arc<Shared>) {
    loop {
        let_others_run().await;
        if shared.may_rest() {
            return;
        }
        let done = off_thread(env, shared, |shared| shared.write_group()).await;
        done.into_iter().for_each(Waker::wake);
    }
}

/// The writer's task: asleep while nothing waits.
async fn write<E: Env>(env: E, shared: Arc<Shared>) {
    loop {
        shared.work.notified().await;
        write_waiting(&env, &shared).await;
        if shared.is_closed() {
            // What was appended before the trail was closed, and after the writer last looked.
            write_waiting(&env, &shared).await;
            return off_thread(&env, &shared, |shared| shared.finish()).await;
        }
    }
}

/// The upkeep's task.
async fn keep_up<E: Env>(env: E, shared: Arc<Shared>) {
    retention::apply(&env, &shared).await;
    loop {
        let told = env.timeout(RETENTION_EVERY, shared.upkeep.notified()).await;
        while shared.failing.load(Ordering::Acquire) && !shared.is_closed() {
            env.sleep(RETRY_AFTER).await;
            off_thread(&env, &shared, |shared| shared.retry()).await;
        }
        if shared.is_closed() {
            return;
        }
        if told.is_some() {
            env.sleep(SYNC_AFTER).await;
            off_thread(&env, &shared, |shared| shared.sync()).await;
        }
        let rolled = off_thread(&env, &shared, |shared| shared.writer.lock().take_rolled()).await;
        if rolled || told.is_none() {
            retention::apply(&env, &shared).await;
        }
    }
}
