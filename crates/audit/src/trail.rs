//! The trail as calls see it: a record is appended, and its ticket tells when it is safe to answer.
//!
//! ```text
//! calls     append: a line into the ring, which the operating system has    (one short lock, no I/O)
//! writer    writes what is in the ring to the segment, off the async threads
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
use crate::ring::{self, Mark, Ring};
use crate::segment;
use crate::writer::Writer;

pub use ticket::Ticket;

/// The writer lets so much time pass after the first record that it writes: others come meanwhile. Each time costs two
/// hand-overs between threads, as much as 20 records.
const WRITE_AFTER: Duration = Duration::from_millis(10);
/// A sync begins this long after the first write that it covers: the rest of the 100 ms that are
/// promised is for the disk.
const SYNC_AFTER: Duration = Duration::from_millis(40);
/// How long a trail that failed waits before it tries again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How often old segments are looked for when nothing happens.
const RETENTION_EVERY: Duration = Duration::from_secs(3600);
/// How long a call waits for room in the ring.
const ROOM_WITHIN: Duration = Duration::from_secs(1);
/// How often the ring's next bytes are made ready when nothing happens.
const PREPARE_EVERY: Duration = Duration::from_secs(5);
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
    ring: Ring,
    queue: Mutex<Queue>,
    /// All records with smaller numbers are on disk. Looked at only where answers wait for that.
    done: AtomicU64,
    failing: AtomicBool,
    /// Taken before `queue` where both are held.
    writer: Mutex<Writer>,
    /// No sync is under way any more.
    sync_ended: Condvar,
    work: Notify,
    upkeep: Notify,
    /// There is room in the ring again.
    freed: Notify,
    health: watch::Sender<Health>,
    finished: watch::Sender<Option<Result<(), AuditError>>>,
}

struct Queue {
    /// The end of the newest record.
    head: Mark,
    /// The ring's bytes before it are free.
    tail: u64,
    /// Who waits for the disk: a place for each record that is not done, the first for record `Shared::done`.
    waiting: VecDeque<Option<Waker>>,
    /// The writer has been told that there is work, and will look before it rests.
    writer_called: bool,
    failure: Option<AuditError>,
    closed: bool,
}

thread_local! {
    /// Where a line is made: the record's body before its number is known, then the rest around it. One a thread, and
    /// reused.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Trail {
    /// Opens the trail in a folder, made if it is not there; cuts off what a crash left half-written, and takes
    /// up what only the ring has; starts a new segment, with a real write and sync; and starts writer and upkeep in the runtime of
    /// `env`. Blocks on the disk: call it before the node serves, or through [`Env::blocking`].
    ///
    /// # Errors
    /// [`AuditError::DiskFull`] and [`AuditError::File`]: a node must not start without its trail.
    pub fn open<E: Env>(
        env: &E,
        files: Arc<dyn Files>,
        config: TrailConfig,
    ) -> Result<(Self, Recovery), AuditError> {
        let mut recovery = recover(&*files, &config.folder)?;
        let first = recovery.next_sequence;
        let left_behind = ring::left_behind(&*files, &config.folder, first)
            .map_err(AuditError::file("read", ring::path(&config.folder)))?;
        recovery.from_ring = left_behind.iter().filter(|byte| **byte == b'\n').count() as u64;
        recovery.next_sequence += recovery.from_ring;
        let head = Mark { position: 0, sequence: recovery.next_sequence };
        let writer = Writer::open(Arc::clone(&files), &config, first, &left_behind, head)?;
        // Only now: what it held is in the segment.
        let ring = Ring::create(&*files, &config)?;
        let mut boot = [0; 8];
        env.entropy().fill(&mut boot);
        let clock = env.clone();
        let shared = Arc::new(Shared {
            config,
            files,
            wall_now_ms: Box::new(move || clock.wall_now_ms()),
            boot: u64::from_be_bytes(boot),
            ring,
            queue: Mutex::new(Queue {
                head,
                tail: 0,
                waiting: VecDeque::new(),
                writer_called: false,
                failure: None,
                closed: false,
            }),
            done: AtomicU64::new(head.sequence),
            failing: AtomicBool::new(false),
            writer: Mutex::new(writer),
            sync_ended: Condvar::new(),
            work: Notify::new(),
            upkeep: Notify::new(),
            freed: Notify::new(),
            health: watch::Sender::new(Health::Good),
            finished: watch::Sender::new(None),
        });
        env.spawn(write(env.clone(), Arc::clone(&shared)));
        env.spawn(keep_up(env.clone(), Arc::clone(&shared)));
        Ok((Self(shared), recovery))
    }

    /// Puts a record where the death of the process takes it no more. The call must not be answered before the
    /// ticket is done: it is at once, unless answers wait for the disk. Costs a copy of the record under a lock
    /// that all calls share; no I/O happens here.
    ///
    /// # Errors
    /// [`AuditError::DiskFull`] and [`AuditError::File`] while the trail is failing, [`AuditError::Busy`]
    /// when the disk does not keep up, [`AuditError::TooLarge`], [`AuditError::Closed`]. The record is
    /// then in no file, and never will be.
    pub fn append(&self, record: &Record<'_>) -> Result<Ticket, AuditError> {
        self.0.append(record)
    }

    /// Appends, and waits until the call may be answered. A disk that does not keep up is waited for, a second at
    /// most: then calls are refused. `append` is asked to call [`Trail::append`], again where there was no room.
    ///
    /// # Errors
    /// As [`Trail::append`] and [`Ticket`].
    pub async fn put<E: Env>(
        &self,
        env: &E,
        append: impl Fn(&Self) -> Result<Ticket, AuditError>,
    ) -> Result<(), AuditError> {
        let first = append(self);
        self.put_after(env, first, append).await
    }

    /// The same for one that was appended before, and has its ticket, or its error.
    ///
    /// # Errors
    /// As [`Trail::put`].
    pub async fn put_after<E: Env>(
        &self,
        env: &E,
        first: Result<Ticket, AuditError>,
        append: impl Fn(&Self) -> Result<Ticket, AuditError>,
    ) -> Result<(), AuditError> {
        let end = env.boot_now() + ROOM_WITHIN;
        let mut appended = first;
        loop {
            match appended {
                Ok(ticket) => return ticket.await,
                Err(AuditError::Busy { .. }) if env.boot_now() < end => {}
                Err(error) => return Err(error),
            }
            // Asked for before the record is tried again: room that comes after that is heard of.
            let freed = self.0.freed.notified();
            appended = append(self);
            if matches!(appended, Err(AuditError::Busy { .. })) {
                env.timeout(end.saturating_sub(env.boot_now()), freed).await;
            }
        }
    }

    /// The number that the next record gets: all that are on record have smaller ones.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.0.queue.lock().head.sequence
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
        LINE.with_borrow_mut(|line| {
            line.resize(segment::BEFORE_BODY_BYTES, 0);
            record.write(line);
            let ticket = self.enqueue(line);
            if line.capacity() > BUFFER_KEPT_BYTES_MAX {
                *line = Vec::new();
            }
            ticket
        })
    }

    /// Puts a body into the ring, which has its place for what comes before it.
    fn enqueue(self: &Arc<Self>, line: &mut Vec<u8>) -> Result<Ticket, AuditError> {
        let bytes = line.len() - segment::BEFORE_BODY_BYTES + FRAME_BYTES_MAX;
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
        let Mark { position, sequence } = queue.head;
        let start = segment::frame(line, sequence, self.config.node, self.boot);
        let line = &line[start..];
        let (held, bytes) = (position - queue.tail, line.len() as u64);
        if held + bytes > self.ring.size() {
            return Err(AuditError::Busy { bytes: held });
        }
        self.ring.write(position, line);
        queue.head = Mark { position: position + bytes, sequence: sequence + 1 };
        let waits = self.config.sync == SyncMode::Always;
        if waits {
            queue.waiting.push_back(None);
        }
        let call = !std::mem::replace(&mut queue.writer_called, true);
        drop(queue);
        if call {
            self.work.notify_one();
        }
        Ok(Ticket { waits_in: waits.then(|| Arc::clone(self)), sequence })
    }

    fn begin_close(&self) {
        self.queue.lock().closed = true;
        self.work.notify_one();
        self.upkeep.notify_one();
    }

    /// True when that record is on disk.
    pub(crate) fn is_synced(&self, sequence: u64) -> bool {
        self.writer.lock().synced().sequence > sequence
    }

    fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    // --- The writer. Blocks on the disk.

    /// Writes what waits. Returns the calls that go on, and whether nothing waits now: the writer is called for the
    /// next record then.
    fn write_waiting(&self) -> (Vec<Waker>, bool) {
        let mut writer = self.writer.lock();
        let end = self.queue.lock().head;
        let held = end.position - writer.synced().position;
        let sync = self.config.sync == SyncMode::Always || held > self.ring.size() / 2;
        if sync || writer.may_roll(end) {
            self.sync_ended.wait_while(&mut writer, |writer| writer.is_syncing());
        }
        if self.failing.load(Ordering::Acquire) {
            return (Vec::new(), true);
        }
        let was_covered = writer.is_covered();
        let mut written = writer.write(&self.ring, end);
        if sync {
            written = written.and_then(|()| writer.sync());
        }
        if let Err(error) = written {
            self.fail(&mut writer, error);
            return (Vec::new(), true);
        }
        if was_covered && !writer.is_covered() {
            self.upkeep.notify_one();
        }
        let synced = writer.synced();
        let mut queue = self.queue.lock();
        queue.writer_called = queue.head != end;
        let rests = !queue.writer_called;
        (self.forget(&mut queue, synced), rests)
    }

    /// Records up to that mark are on disk: their place in the ring is free, and their calls go on.
    fn forget(&self, queue: &mut Queue, synced: Mark) -> Vec<Waker> {
        if std::mem::replace(&mut queue.tail, synced.position) != synced.position {
            self.freed.notify_waiters();
        }
        let done = synced.sequence - self.done.swap(synced.sequence, Ordering::AcqRel);
        let done = usize::try_from(done).unwrap_or(usize::MAX).min(queue.waiting.len());
        queue.waiting.drain(..done).flatten().collect()
    }

    /// Nothing is taken any more, and all calls that wait are told why. The records stay in the ring: their calls may
    /// have taken effect. They are written when the trail comes back.
    fn fail(&self, writer: &mut MutexGuard<'_, Writer>, error: AuditError) {
        writer.give_up_segment();
        let waiting = {
            let mut queue = self.queue.lock();
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
        match ended {
            Ok(()) => {
                let waiting = self.forget(&mut self.queue.lock(), writer.synced());
                waiting.into_iter().for_each(Waker::wake);
            }
            Err(error) => self.fail(&mut writer, error),
        }
    }

    /// Has all that was appended so far on disk, unless the trail fails.
    pub(crate) fn write_and_sync(&self) {
        let (waiting, _) = self.write_waiting();
        waiting.into_iter().for_each(Waker::wake);
        self.sync();
    }

    /// Has the ring's next bytes ready.
    fn prepare(&self) {
        let head = self.queue.lock().head;
        self.ring.prepare(head.position);
    }

    /// Tries whether the trail can be written again: a new segment, with all that is held, synced. True
    /// when it can.
    fn retry(&self) -> bool {
        let mut writer = self.writer.lock();
        self.sync_ended.wait_while(&mut writer, |writer| writer.is_syncing());
        // Nothing is appended while the trail fails.
        let end = self.queue.lock().head;
        match writer.start_again(&self.ring, end) {
            Ok(()) => {
                let mut queue = self.queue.lock();
                let waiting = self.forget(&mut queue, end);
                queue.failure = None;
                self.failing.store(false, Ordering::Release);
                drop(queue);
                waiting.into_iter().for_each(Waker::wake);
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

    /// Syncs the last records, gives the rest of the segment back, and removes the ring.
    fn finish(&self) {
        let mut writer = self.writer.lock();
        self.sync_ended.wait_while(&mut writer, |writer| writer.is_syncing());
        let failure = self.queue.lock().failure.clone();
        let result = failure.map_or(Ok(()), Err).and_then(|()| writer.finish());
        if result.is_ok() {
            // One that stays holds nothing that the segments have not.
            let _ = self.files.remove(&ring::path(&self.config.folder));
        }
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

/// Writes until nothing waits, and wakes the calls that go on.
async fn write_waiting<E: Env>(env: &E, shared: &Arc<Shared>) {
    loop {
        let (done, rests) = off_thread(env, shared, |shared| shared.write_waiting()).await;
        done.into_iter().for_each(Waker::wake);
        if rests {
            return;
        }
        gather(env, shared).await;
    }
}

/// Waits for more to write. Where calls wait for the disk, those that are ready get in, and no time passes.
async fn gather<E: Env>(env: &E, shared: &Arc<Shared>) {
    match shared.config.sync {
        SyncMode::Soon => env.sleep(WRITE_AFTER).await,
        SyncMode::Always => let_others_run().await,
    }
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

/// The writer's task: asleep while nothing waits.
async fn write<E: Env>(env: E, shared: Arc<Shared>) {
    loop {
        shared.work.notified().await;
        if !shared.is_closed() {
            gather(&env, &shared).await;
        }
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
    let mut applied = env.boot_now();
    loop {
        let told = env.timeout(PREPARE_EVERY, shared.upkeep.notified()).await;
        while shared.failing.load(Ordering::Acquire) && !shared.is_closed() {
            env.sleep(RETRY_AFTER).await;
            off_thread(&env, &shared, |shared| shared.retry()).await;
        }
        if shared.is_closed() {
            return;
        }
        let synced = told.is_some();
        if synced {
            env.sleep(SYNC_AFTER).await;
        }
        let rolled = off_thread(&env, &shared, move |shared| {
            if synced {
                shared.sync();
            }
            shared.prepare();
            shared.writer.lock().take_rolled()
        });
        if rolled.await || env.boot_now() > applied + RETENTION_EVERY {
            retention::apply(&env, &shared).await;
            applied = env.boot_now();
        }
    }
}
