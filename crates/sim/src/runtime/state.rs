//! What a world is made of: processes, tasks, events and the time.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::Waker;

use super::clock::{Clock, ClockId};
use super::world::Group;
use crate::dice::Dice;

pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
pub(super) type Job = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskKey {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) group: Group,
    /// Out while it is polled.
    pub(super) task: Option<Task>,
    pub(super) alive: bool,
    pub(super) queued: bool,
    pub(super) waker: Option<Waker>,
}

pub(super) struct Process {
    pub(super) clock: ClockId,
    pub(super) alive: bool,
    pub(super) frozen: bool,
    /// Ready tasks of a frozen process.
    pub(super) parked: Vec<TaskKey>,
}

pub(super) enum Event {
    Wake(Waker),
    /// The operating system had put the task off.
    Ready(TaskKey),
    Job(Job),
}

pub(super) struct State {
    pub(super) now_ns: u64,
    /// Counts polls and events: orders what happens at one instant.
    pub(super) step: u64,
    pub(super) polls_here: u64,
    pub(super) hash: u64,
    pub(super) schedule: Dice,
    pub(super) runtime: Dice,
    /// In a thousand: how often a ready task is put off for a few milliseconds.
    pub(super) stall_permille: u64,
    pub(super) current: Group,
    pub(super) processes: Vec<Process>,
    pub(super) clocks: Vec<Clock>,
    pub(super) slots: Vec<Slot>,
    pub(super) free: Vec<u32>,
    pub(super) ready: Vec<TaskKey>,
    pub(super) events: BTreeMap<(u64, u64), Event>,
    pub(super) next_event: u64,
    pub(super) panics: Vec<String>,
}

impl State {
    pub(super) fn mix(&mut self, value: u64) {
        self.hash = (self.hash.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    pub(super) fn task(&mut self, key: TaskKey) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        (slot.generation == key.generation && slot.alive).then_some(slot)
    }

    pub(super) fn enqueue(&mut self, key: TaskKey) {
        if let Some(slot) = self.task(key)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push(key);
        }
    }

    pub(super) fn process(&mut self, group: Group) -> &mut Process {
        &mut self.processes[group.0 as usize]
    }

    pub(super) fn at(&mut self, at_ns: u64, event: Event) -> (u64, u64) {
        let key = (at_ns.max(self.now_ns), self.next_event);
        self.next_event += 1;
        self.events.insert(key, event);
        key
    }

    pub(super) fn release(&mut self, key: TaskKey) -> (Option<Task>, Option<Waker>) {
        let Some(slot) = self.task(key) else { return (None, None) };
        slot.alive = false;
        slot.generation += 1;
        let gone = (slot.task.take(), slot.waker.take());
        self.free.push(key.slot);
        gone
    }
}
