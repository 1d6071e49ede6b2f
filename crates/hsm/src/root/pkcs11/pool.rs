//! The threads that call into the module, and how they come by a session again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use futures_channel::oneshot;
use parking_lot::Mutex;

use super::error::Pkcs11Error;
use super::token::{Access, Fault, RootSession};
use crate::error::RootError;
use crate::root::RootId;
use crate::watch::RootClock;

/// One works while the other one is stuck or opens a session. A node asks a few times an hour.
const THREADS: usize = 2;
/// Calls that may wait.
const QUEUE: usize = 16;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What is to be done in a session. It may be done twice: once more after a session broke.
pub(super) type Work<T> = Box<dyn FnMut(&RootSession) -> Result<T, Fault> + Send>;

/// A job as the threads see it. False from `wanted`: nobody waits any more.
struct Job {
    wanted: Box<dyn Fn() -> bool + Send>,
    run: Box<dyn FnOnce(&mut Worker) + Send>,
}

/// Starts a thread that blocks in a foreign library.
fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), RootError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop).map_err(|error| {
        Pkcs11Error::Failed(format!("no thread can be started for it ({error})")).into()
    })
}

/// Does something that may hang in a thread of its own, and gives it up after a while.
pub(super) fn patiently<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RootError> {
    let (answer, waiting) = sync_channel(1);
    // Nobody may be waiting any more.
    start("keyward-pkcs11-load", move || drop(answer.send(work())))?;
    waiting.recv_timeout(limit).map_err(|_| RootError::Timeout { limit })
}

pub(super) struct Pool {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
}

struct Shared {
    access: Access,
    clock: Arc<dyn RootClock>,
    /// Counts how often a session broke; sessions of before are not used any more.
    generation: AtomicU64,
    connecting: Mutex<Connecting>,
    /// The root that this is, once it is known.
    id: Mutex<Option<RootId>>,
}

/// When a session may be opened again.
#[derive(Default)]
struct Connecting {
    pause: Duration,
    not_before: Duration,
    why: String,
}

impl Pool {
    pub(super) fn new(access: Access, clock: Arc<dyn RootClock>) -> Result<Self, RootError> {
        let shared = Arc::new(Shared {
            access,
            clock,
            generation: AtomicU64::new(0),
            connecting: Mutex::default(),
            id: Mutex::default(),
        });
        let (jobs, waiting) = sync_channel::<Job>(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 1..=THREADS {
            let (shared, waiting) = (Arc::clone(&shared), Arc::clone(&waiting));
            start(&format!("keyward-pkcs11-{number}"), move || {
                Worker { shared, session: None }.run(&waiting);
            })?;
        }
        Ok(Self { jobs, shared })
    }

    fn submit(&self, job: Job) -> Result<(), RootError> {
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(Pkcs11Error::Busy { queued: QUEUE }.into()),
            Err(TrySendError::Disconnected(_)) => {
                Err(Pkcs11Error::Failed("its threads have ended".to_owned()).into())
            }
        }
    }

    /// Queues work; what comes of it arrives later.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        mut work: Work<T>,
    ) -> Result<oneshot::Receiver<Result<T, RootError>>, RootError> {
        let (answer, waiting) = oneshot::channel();
        let answer = Arc::new(Mutex::new(Some(answer)));
        let watched = Arc::clone(&answer);
        let run = Box::new(move |worker: &mut Worker| {
            let outcome = worker.do_it(&mut *work);
            if let Some(answer) = answer.lock().take() {
                // Nobody may be waiting any more; a secret in the outcome is wiped then.
                let _ = answer.send(outcome);
            }
        });
        let wanted =
            Box::new(move || watched.lock().as_ref().is_some_and(|answer| !answer.is_canceled()));
        self.submit(Job { wanted, run })?;
        Ok(waiting)
    }

    /// Waits until the root's key was found; made, if so wanted. Blocks.
    pub(super) fn identify(&self, create: bool, limit: Duration) -> Result<RootId, RootError> {
        let (answer, waiting) = sync_channel(1);
        let run = Box::new(move |worker: &mut Worker| {
            let made = if create { worker.create_key() } else { Ok(()) };
            let id = made.and_then(|()| worker.do_it(&mut |session| Ok(session.id.clone())));
            let _ = answer.send(id);
        });
        self.submit(Job { wanted: Box::new(|| true), run })?;
        let id = waiting.recv_timeout(limit).map_err(|_| RootError::Timeout { limit })??;
        *self.shared.id.lock() = Some(id.clone());
        Ok(id)
    }
}

struct Worker {
    shared: Arc<Shared>,
    /// With the generation that it is of.
    session: Option<(u64, RootSession)>,
}

impl Worker {
    /// Works until the root is dropped.
    fn run(mut self, waiting: &Mutex<Receiver<Job>>) {
        loop {
            // A statement of its own: the lock must be free again while the job runs.
            let job = waiting.lock().recv();
            let Ok(job) = job else { break };
            if (job.wanted)() {
                (job.run)(&mut self);
            }
        }
        let shared = Arc::clone(&self.shared);
        self.end_session(*shared.access.module.enter());
    }

    fn end_session(&mut self, epoch: u64) {
        if let Some((_, session)) = self.session.take() {
            session.end(epoch);
        }
    }

    fn create_key(&mut self) -> Result<(), RootError> {
        let shared = Arc::clone(&self.shared);
        let entered = shared.access.module.enter();
        let made = shared.access.create_key();
        drop(entered);
        made.map_err(final_error)
    }

    /// Does the work, once more in a new session when this one breaks.
    fn do_it<T>(
        &mut self,
        work: &mut dyn FnMut(&RootSession) -> Result<T, Fault>,
    ) -> Result<T, RootError> {
        match self.attempt(work) {
            Ok(done) => Ok(done),
            Err((Fault::Broken(_), generation)) if generation.is_some() => {
                self.attempt(work).map_err(|(fault, _)| final_error(fault))
            }
            Err((fault, _)) => Err(final_error(fault)),
        }
    }

    /// With a failure comes the generation of the session that it happened in, if there was one.
    fn attempt<T>(
        &mut self,
        work: &mut dyn FnMut(&RootSession) -> Result<T, Fault>,
    ) -> Result<T, (Fault, Option<u64>)> {
        let shared = Arc::clone(&self.shared);
        let entered = self.session().map_err(|fault| (fault, None))?;
        let module = &shared.access.module;
        let epoch = module.enter();
        let Some((generation, session)) = &self.session else {
            return Err((broken("the session is gone"), Some(entered)));
        };
        // Between opening and now the module may have been restarted for another root.
        if session.epoch != *epoch {
            return Err((broken("the module was restarted"), Some(entered)));
        }
        let generation = *generation;
        work(session).map_err(|fault| {
            if let Fault::Broken(_) = &fault {
                // The first one to notice ends all sessions of this generation.
                let _ = shared.generation.compare_exchange(
                    generation,
                    generation + 1,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
            }
            (fault, Some(generation))
        })
    }

    /// Sees to it that there is a session, and tells its generation.
    fn session(&mut self) -> Result<u64, Fault> {
        let shared = Arc::clone(&self.shared);
        {
            let epoch = shared.access.module.enter();
            let generation = shared.generation.load(Ordering::Acquire);
            match &self.session {
                Some((of, session)) if *of == generation && session.epoch == *epoch => {
                    return Ok(*of);
                }
                _ => self.end_session(*epoch),
            }
        }
        let mut connecting = shared.connecting.lock();
        let generation = shared.generation.load(Ordering::Acquire);
        let now = shared.clock.boot_now();
        if now < connecting.not_before {
            let (wait, why) = (connecting.not_before - now, connecting.why.clone());
            return Err(Pkcs11Error::Resting { wait, why }.into());
        }
        match shared.connect() {
            Ok(session) => {
                *connecting = Connecting::default();
                self.session = Some((generation, session));
                Ok(generation)
            }
            Err(fault) => {
                if let Fault::Broken(why) = &fault {
                    connecting.pause = (connecting.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                    connecting.not_before = shared.clock.boot_now() + connecting.pause;
                    connecting.why = why.to_string();
                }
                Err(fault)
            }
        }
    }
}

impl Shared {
    /// Opens a session; when that fails, once more after restarting the module.
    fn connect(&self) -> Result<RootSession, Fault> {
        let module = &self.access.module;
        let open = || {
            let epoch = module.enter();
            let session = self.access.connect(*epoch);
            (*epoch, session.and_then(|session| self.check_id(session, *epoch)))
        };
        match open() {
            (epoch, Err(Fault::Broken(why))) => match module.restart(epoch) {
                Ok(()) => open().1,
                Err(_) => Err(Fault::Broken(why)),
            },
            (_, outcome) => outcome,
        }
    }

    fn check_id(&self, session: RootSession, epoch: u64) -> Result<RootSession, Fault> {
        let expected = self.id.lock().clone();
        match expected {
            Some(expected) if expected != session.id => {
                let (label, found) = (self.access.key_label.clone(), session.id.clone());
                session.end(epoch);
                Err(Pkcs11Error::OtherKey { label, expected, found }.into())
            }
            _ => Ok(session),
        }
    }
}

fn broken(why: &str) -> Fault {
    Fault::Broken(Pkcs11Error::Failed(why.to_owned()))
}

fn final_error(fault: Fault) -> RootError {
    match fault {
        Fault::Broken(error) => error.into(),
        Fault::Refused(error) => error,
    }
}
