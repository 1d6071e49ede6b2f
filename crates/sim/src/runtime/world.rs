//! One simulated world: time, processes, tasks, timers and the hash of what happened.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::clock::{Clock, ClockId};
use super::join::JoinHandle;
use super::state::{Event, Process, Slot, State, Task, TaskKey};
use crate::dice::{Dice, Stream};

/// A process: one boot of a node, or the harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(pub(super) u32);

/// Tasks that belong to no node. Its clock runs right.
pub const HARNESS: Group = Group(0);

/// More polls than this at one instant are a task that spins.
const POLLS_AT_ONE_INSTANT_MAX: u64 = 2_000_000;

/// What the loop does next.
pub(super) enum Next {
    Task(TaskKey, Task, Waker),
    /// The draw fell on a task that is gone, frozen or put off.
    Skip,
    /// No task is ready.
    Nothing,
}

/// What came of a timer that was to be set.
pub(super) enum Arm {
    /// Its time has come.
    Due,
    /// It is set already.
    Still,
    /// It is set now.
    Set((u64, u64)),
}

/// One simulated world.
pub struct World {
    state: Mutex<State>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

struct TaskWaker {
    world: Weak<World>,
    key: TaskKey,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(world) = self.world.upgrade() {
            world.state.lock().enqueue(self.key);
        }
    }
}

impl World {
    /// A world of that seed. A ready task is put off for a few milliseconds `stall_permille` times in a
    /// thousand.
    #[must_use]
    pub fn new(seed: u64, stall_permille: u64) -> Arc<Self> {
        let harness = Process { clock: ClockId(0), alive: true, frozen: false, parked: Vec::new() };
        let state = State {
            now_ns: 0,
            step: 0,
            polls_here: 0,
            hash: seed,
            schedule: Dice::new(seed, Stream::Schedule),
            runtime: Dice::new(seed, Stream::Runtime),
            stall_permille,
            current: HARNESS,
            processes: vec![harness],
            clocks: vec![Clock::new(0, Duration::from_secs(86_400))],
            slots: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            events: BTreeMap::new(),
            next_event: 0,
            panics: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    // --- Clocks and processes.

    /// A further clock.
    pub fn add_clock(&self, clock: Clock) -> ClockId {
        let mut state = self.state.lock();
        state.clocks.push(clock);
        ClockId(state.clocks.len() - 1)
    }

    /// A new process on that clock.
    pub fn start_process(&self, clock: ClockId) -> Group {
        let mut state = self.state.lock();
        state.processes.push(Process { clock, alive: true, frozen: false, parked: Vec::new() });
        Group(u32::try_from(state.processes.len() - 1).unwrap_or(u32::MAX))
    }

    /// True until the process is killed.
    #[must_use]
    pub fn is_alive(&self, group: Group) -> bool {
        self.state.lock().process(group).alive
    }

    /// Kills a process. Its stores and its transport must be cut already: dropping its tasks runs their
    /// `Drop` code.
    pub fn kill(&self, group: Group) {
        let mut state = self.state.lock();
        state.process(group).alive = false;
        state.process(group).parked.clear();
        let before = std::mem::replace(&mut state.current, group);
        let keys: Vec<TaskKey> = (0u32..)
            .zip(&state.slots)
            .filter(|(_, slot)| slot.alive && slot.group == group)
            .map(|(index, slot)| TaskKey { slot: index, generation: slot.generation })
            .collect();
        let doomed: Vec<_> = keys.into_iter().map(|key| state.release(key)).collect();
        drop(state);
        // Outside the lock: Drop code reads clocks, cancels timers and wakes.
        drop(doomed);
        self.state.lock().current = before;
    }

    /// Freezes a process: none of its tasks runs until it is thawed.
    pub fn freeze(&self, group: Group) {
        self.state.lock().process(group).frozen = true;
    }

    /// Lets a frozen process go on. `slept`: its machine was suspended for that long, so the monotonic
    /// clock did not count it.
    pub fn thaw(&self, group: Group, slept: Duration) {
        let mut state = self.state.lock();
        let clock = state.process(group).clock;
        state.clocks[clock.0].suspended(u64::try_from(slept.as_nanos()).unwrap_or(0));
        state.process(group).frozen = false;
        let parked = std::mem::take(&mut state.process(group).parked);
        state.ready.extend(parked);
    }

    /// A machine's clock begins anew. No process may be running on it.
    pub fn reboot_clock(&self, clock: ClockId, uptime: Duration) {
        let mut state = self.state.lock();
        let now_ns = state.now_ns;
        state.clocks[clock.0].reboot(now_ns, uptime);
    }

    /// The world's own time, which no node sees.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.state.lock().now_ns)
    }

    /// Orders what happens: grows with every poll and event.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.state.lock().step
    }

    /// What a clock shows, counting suspended time.
    #[must_use]
    pub fn boot_now(&self, clock: ClockId) -> Duration {
        let state = self.state.lock();
        Duration::from_nanos(state.clocks[clock.0].boot_ns(state.now_ns))
    }

    /// The clock of the task that runs, and what it shows, not counting suspended time.
    pub(super) fn monotonic_here(&self) -> (ClockId, u64) {
        let mut state = self.state.lock();
        let current = state.current;
        let clock = state.process(current).clock;
        (clock, state.clocks[clock.0].monotonic_ns(state.now_ns))
    }

    // --- Randomness and the trace.

    pub(super) fn draw(&self) -> u64 {
        self.state.lock().runtime.word()
    }

    /// Draws from the stream that decides the schedule.
    pub fn throw<T>(&self, throw: impl FnOnce(&mut Dice) -> T) -> T {
        throw(&mut self.state.lock().schedule)
    }

    /// Adds something that happened to the trace.
    pub fn note(&self, what: u64) {
        self.state.lock().mix(what);
    }

    /// The hash of everything that has happened, and how many polls and events that was.
    #[must_use]
    pub fn trace(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hash, state.step)
    }

    /// What tasks have panicked with.
    #[must_use]
    pub fn take_panics(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().panics)
    }

    pub(super) fn note_panic(&self, panic: &(dyn Any + Send)) {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        self.state.lock().panics.push(text.unwrap_or_else(|| "no text".to_owned()));
    }

    /// Stops putting tasks off.
    pub fn calm_schedule(&self) {
        self.state.lock().stall_permille = 0;
    }

    // --- Tasks.

    pub(super) fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let group = self.state.lock().current;
        self.spawn_in(group, future)
    }

    /// Starts a task of that process. In a process that was killed, nothing starts.
    pub fn spawn_in<F>(self: &Arc<Self>, group: Group, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let task: Task = Box::pin(async move {
            // Nobody may be waiting.
            let _ = sender.send(future.await);
        });
        let mut state = self.state.lock();
        if !state.process(group).alive {
            drop(state);
            drop(task);
            return JoinHandle(receiver);
        }
        let index = match state.free.pop() {
            Some(index) => index,
            None => {
                state.slots.push(Slot {
                    generation: 0,
                    group,
                    task: None,
                    alive: false,
                    queued: false,
                    waker: None,
                });
                u32::try_from(state.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let slot = &mut state.slots[index as usize];
        let key = TaskKey { slot: index, generation: slot.generation };
        let waker = Waker::from(Arc::new(TaskWaker { world: Arc::downgrade(self), key }));
        slot.group = group;
        slot.task = Some(task);
        slot.alive = true;
        slot.queued = false;
        slot.waker = Some(waker);
        state.enqueue(key);
        JoinHandle(receiver)
    }

    /// Draws the next task.
    pub(super) fn next(&self) -> Next {
        let mut state = self.state.lock();
        if state.ready.is_empty() {
            return Next::Nothing;
        }
        let among = state.ready.len();
        let chosen = if among == 1 { 0 } else { state.schedule.index(among) };
        let key = state.ready.swap_remove(chosen);
        let Some(group) = state.task(key).map(|slot| slot.group) else { return Next::Skip };
        if state.process(group).frozen {
            state.process(group).parked.push(key);
            return Next::Skip;
        }
        let often = state.stall_permille;
        if group != HARNESS && often > 0 && state.schedule.permille(often) {
            let until = state.now_ns + 1000 * state.schedule.below(8000);
            state.at(until, Event::Ready(key));
            return Next::Skip;
        }
        state.step += 1;
        state.polls_here += 1;
        assert!(state.polls_here < POLLS_AT_ONE_INSTANT_MAX, "a task spins: time stands still");
        let trace = u64::from(key.slot) << 40 ^ state.now_ns;
        state.mix(trace);
        let taken = state.task(key).and_then(|slot| {
            slot.queued = false;
            slot.task.take().zip(slot.waker.clone())
        });
        match taken {
            Some((task, waker)) => {
                state.current = group;
                Next::Task(key, task, waker)
            }
            None => Next::Skip,
        }
    }

    /// The task has been polled, and waits. From here on the harness runs.
    pub(super) fn put_back(&self, key: TaskKey, task: Task) {
        let mut state = self.state.lock();
        if let Some(slot) = state.task(key) {
            slot.task = Some(task);
            state.current = HARNESS;
            return;
        }
        drop(state);
        // Its process was killed while it ran.
        drop(task);
        self.state.lock().current = HARNESS;
    }

    /// The task is done. From here on the harness runs.
    pub(super) fn finish(&self, key: TaskKey) {
        let mut state = self.state.lock();
        state.current = HARNESS;
        let gone = state.release(key);
        drop(state);
        drop(gone);
    }

    /// Jumps to the next event. False: there is none.
    pub(super) fn advance(&self) -> bool {
        let mut due = Vec::new();
        {
            let mut state = self.state.lock();
            let Some((&(at_ns, _), _)) = state.events.first_key_value() else { return false };
            if at_ns > state.now_ns {
                state.now_ns = at_ns;
                state.polls_here = 0;
            }
            while let Some(entry) = state.events.first_entry() {
                if entry.key().0 > at_ns {
                    break;
                }
                let ((_, number), event) = entry.remove_entry();
                state.mix(number ^ at_ns << 20);
                due.push(event);
            }
            state.step += 1;
        }
        for event in due {
            match event {
                Event::Wake(waker) => waker.wake(),
                Event::Job(job) => job(),
                Event::Ready(key) => {
                    let mut state = self.state.lock();
                    if state.task(key).is_some() {
                        state.ready.push(key);
                    }
                }
            }
        }
        true
    }

    // --- Timers.

    /// Does `job` after `delay`, as the harness.
    pub fn after(&self, delay: Duration, job: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        let at_ns = state.now_ns + u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX / 2);
        state.at(at_ns, Event::Job(Box::new(job)));
    }

    /// Sets a timer, in the place of the one `before`; unless that is still to come and `wakes` the right task.
    pub(super) fn arm(
        &self,
        clock: ClockId,
        deadline_ns: u64,
        before: Option<(u64, u64)>,
        wakes: bool,
        waker: &Waker,
    ) -> Arm {
        let mut state = self.state.lock();
        let now_ns = state.now_ns;
        let clock = state.clocks[clock.0];
        if clock.monotonic_ns(now_ns) >= deadline_ns {
            return Arm::Due;
        }
        // The machine may have slept meanwhile: then the timer has gone off too early.
        if wakes && before.is_some_and(|(at_ns, _)| at_ns > now_ns) {
            return Arm::Still;
        }
        let replaced = before.and_then(|before| state.events.remove(&before));
        let at_ns = clock.world_time_of(deadline_ns, now_ns);
        let armed = state.at(at_ns, Event::Wake(waker.clone()));
        drop(state);
        drop(replaced);
        Arm::Set(armed)
    }

    pub(super) fn disarm(&self, armed: (u64, u64)) {
        let event = self.state.lock().events.remove(&armed);
        drop(event);
    }

    /// Drops all tasks and events; what they spawn while being dropped is dropped too.
    pub(super) fn drop_everything(&self) {
        let groups = {
            let state = self.state.lock();
            u32::try_from(state.processes.len()).unwrap_or(u32::MAX)
        };
        for group in (0..groups).rev() {
            self.kill(Group(group));
        }
        let events = std::mem::take(&mut self.state.lock().events);
        drop(events);
    }
}
