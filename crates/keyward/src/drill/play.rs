//! Plays a drill: calls in an open loop, steps at their times, all of it on record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use parking_lot::Mutex;

use super::caller::{Caller, Records, micros, since_us};
use super::changes::Changer;
use super::definition::{Drill, Step};
use super::ending::{self, Pools};
use super::history::{CallRecord, Event, History, Kind, NO_ANSWER, Source, sources};
use super::program::Program;
use super::stage::{Ran, Stage};
use super::text::error_named;
use super::watch::{self, Looks};
use crate::error::Failure;

/// After the end, calls under way are waited for so long.
const REST: Duration = Duration::from_secs(4);
/// Between tries of a step.
const AGAIN: Duration = Duration::from_millis(250);
/// What a command said is kept up to so many characters.
const SAID_MAX: usize = 400;

/// Everybody who calls.
#[derive(Default)]
struct Cast {
    callers: Vec<Arc<Caller>>,
    changers: Vec<Changer>,
    programs: Vec<Program>,
}

impl Cast {
    fn new(drill: &Drill, stage: &Stage, pools: &Pools) -> Result<Self, Failure> {
        let mut cast = Self::default();
        for (source, load) in drill.load.iter().enumerate() {
            let pool = pools.get(load.key.get_ref()).map(Arc::clone).unwrap_or_default();
            if let Some(rate) = &load.rate {
                let caller = Caller::new(source, load, *rate.get_ref(), stage, pool)?;
                cast.callers.push(Arc::new(caller));
            }
        }
        for (number, changes) in drill.changes.iter().enumerate() {
            cast.changers.push(Changer::new(drill.load.len() + number, changes, stage)?);
        }
        // Last: what is started so is under way.
        for (source, load) in drill.load.iter().enumerate() {
            if let Some(command) = &load.command {
                cast.programs.push(Program::start(source, load, command.get_ref(), stage)?);
            }
        }
        Ok(cast)
    }

    /// Calls that are meant to be made: of which source, and when.
    fn meant(&self, lasts: Duration, drill: &Drill) -> Vec<(usize, u64)> {
        let with_rate = drill.load.iter().enumerate().filter(|(_, load)| load.rate.is_some());
        let of = self.callers.iter().zip(with_rate);
        of.flat_map(|(caller, (source, _))| caller.due(lasts).map(move |due| (source, micros(due))))
            .collect()
    }
}

async fn take_step(stage: &Stage, step: &Step, began: Duration) -> Event {
    RealEnv.sleep((began + step.at).saturating_sub(RealEnv.boot_now())).await;
    let began_us = since_us(began);
    let end = RealEnv.boot_now() + step.within;
    let (ran, met) = loop {
        let ran = stage.act(&step.region, &step.action).await;
        let met = meets(&ran, step, stage);
        if met.is_ok() || RealEnv.boot_now() >= end {
            break (ran, met);
        }
        RealEnv.sleep(AGAIN).await;
    };
    let said = match &met {
        Ok(()) => ran.said.clone(),
        Err(why) if ran.said.is_empty() => why.clone(),
        Err(why) => format!("{why}: {}", ran.said),
    };
    Event {
        began_us,
        ended_us: since_us(began),
        name: step.name.clone(),
        region: step.region.clone(),
        refused: error_named(&ran.said).filter(|_| !ran.succeeded).map(str::to_owned),
        command: ran.command,
        done: met.is_ok(),
        said: said.chars().take(SAID_MAX).collect(),
    }
}

/// Whether it did what the drill expects of it; if not, why not.
fn meets(ran: &Ran, step: &Step, stage: &Stage) -> Result<(), String> {
    if let Some(error) = &step.refused_with {
        if ran.succeeded || error_named(&ran.said) != Some(error) {
            return Err(format!("it was not refused with {error}"));
        }
    } else if let Some(text) = &step.fails_with {
        if ran.succeeded || !ran.said.contains(text) {
            return Err(format!("it did not fail with '{text}'"));
        }
    } else if !ran.succeeded {
        return Err("it failed".to_owned());
    }
    if let Some(shows) = step.shows.as_ref().filter(|shows| !ran.said.contains(*shows)) {
        return Err(format!("it does not show '{shows}'"));
    }
    let of = |name: &String, result: std::io::Result<Vec<u8>>| {
        result.map_err(|e| format!("{name}: {e}"))
    };
    if let Some(name) = &step.save {
        of(name, std::fs::write(stage.work.join(name), &ran.output).map(|()| Vec::new()))?;
    }
    if let [one, other] = &step.same[..] {
        let read = |name: &String| of(name, std::fs::read(stage.work.join(name)));
        if read(one)? != read(other)? {
            return Err(format!("{one} and {other} are not the same"));
        }
    }
    Ok(())
}

/// What is told of a drill while it is played.
struct View<'a> {
    drill: &'a Drill,
    sources: &'a [Source],
    records: Records,
    looks: Looks,
    events: &'a Mutex<Vec<Event>>,
}

impl View<'_> {
    /// Tells of each second: what was answered in each Region and why the rest was not, how far it is behind, and steps.
    async fn seconds(&self, began: Duration, mut tell: impl FnMut(String)) {
        let (mut seen, mut told) = (0, 0);
        for second in 1.. {
            let at = Duration::from_secs(second);
            RealEnv.sleep((began + at).saturating_sub(RealEnv.boot_now())).await;
            let new: Vec<CallRecord> = {
                let records = self.records.lock();
                let new = records[seen.min(records.len())..].to_vec();
                seen = records.len();
                new
            };
            let mut lines: Vec<String> = Vec::new();
            for event in self.events.lock().iter().skip(told) {
                let sign = if event.done { "done" } else { "FAILED" };
                lines.push(format!("       {sign}: {} [{}]", event.command, event.region));
                told += 1;
            }
            lines.push(self.line(second, &new));
            tell(lines.join("\n"));
            if at >= self.drill.lasts() {
                return;
            }
        }
    }

    fn line(&self, second: u64, calls: &[CallRecord]) -> String {
        let mut line = format!("{second:4} s");
        for region in self.drill.regions() {
            let of = || {
                calls.iter().filter(|call| {
                    let source = &self.sources[call.source];
                    source.region == region && matches!(source.kind, Kind::Load | Kind::Program)
                })
            };
            let answered = of().filter(|call| call.answered()).count();
            line += &format!("  {region} {answered}/s");
            let mut kinds = BTreeMap::<&str, u64>::new();
            for call in of().filter(|call| !call.answered()) {
                *kinds.entry(&call.ended).or_default() += 1;
            }
            for (kind, count) in kinds {
                line += &format!(" ({count} {kind})");
            }
            let looks = self.looks.lock();
            let lag = looks.iter().rev().find(|look| look.region == region).map(|look| look.lag_ms);
            if let Some(lag) = lag.filter(|lag| *lag >= 1000) {
                line += &format!(" {} s behind", lag / 1000);
            }
        }
        line
    }
}

/// Plays it, and tells of each second and of each step.
pub async fn play(
    drill: &Drill,
    stage: &Stage,
    tell: impl FnMut(String),
) -> Result<History, Failure> {
    let (sources, lasts) = (sources(drill), drill.lasts());
    let pools: Pools =
        drill.key.iter().map(|key| (key.name.get_ref().clone(), Arc::default())).collect();
    let (records, looks) = (Records::default(), Looks::default());
    ending::before(stage, &sources, &pools, &records).await?;
    let cast = Cast::new(drill, stage, &pools)?;
    let meant = cast.meant(lasts, drill);
    let began = RealEnv.boot_now();
    watch::watch(stage, began, lasts, &looks)?;
    for caller in cast.callers {
        RealEnv.spawn(caller.keep_calling(began, lasts, Arc::clone(&records)));
    }
    for changer in cast.changers {
        RealEnv.spawn(changer.keep_changing(began, lasts, Arc::clone(&records)));
    }
    let programs =
        cast.programs.into_iter().map(|program| program.listen(began, lasts, Arc::clone(&records)));
    let events = Mutex::new(Vec::new());
    let steps = async {
        for step in drill.steps() {
            let event = take_step(stage, &step, began).await;
            events.lock().push(event);
        }
    };
    let view = View {
        drill,
        sources: &sources,
        records: Arc::clone(&records),
        looks: Arc::clone(&looks),
        events: &events,
    };
    let programs = futures_util::future::join_all(programs);
    futures_util::future::join3(steps, view.seconds(began, tell), programs).await;
    rest(&meant, &records).await;
    let open = unanswered(&meant, &records, began);
    ending::look(stage, &sources, &pools, began, &records).await?;
    let mut calls = std::mem::take(&mut *records.lock());
    calls.extend(open);
    let looks = std::mem::take(&mut *looks.lock());
    let mut history = History { calls, events: events.into_inner(), looks, sources };
    history.sort();
    Ok(history)
}

/// Which of the calls that were meant have begun.
fn begun(meant: &[(usize, u64)], records: &Records) -> BTreeSet<(usize, u64)> {
    let records = records.lock();
    let ended: BTreeSet<(usize, u64)> =
        records.iter().map(|call| (call.source, call.began_us)).collect();
    meant.iter().filter(|call| ended.contains(call)).copied().collect()
}

/// Waits for calls under way.
async fn rest(meant: &[(usize, u64)], records: &Records) {
    let end = RealEnv.boot_now() + REST;
    while begun(meant, records).len() < meant.len() && RealEnv.boot_now() < end {
        RealEnv.sleep(Duration::from_millis(100)).await;
    }
}

/// What has not ended until now, or could not be begun, is a call without an answer.
fn unanswered(meant: &[(usize, u64)], records: &Records, began: Duration) -> Vec<CallRecord> {
    let begun = begun(meant, records);
    let open = meant.iter().filter(|call| !begun.contains(call));
    open.map(|(source, began_us)| CallRecord {
        source: *source,
        operation: "(unknown)".into(),
        began_us: *began_us,
        sent_us: *began_us,
        took_us: since_us(began).saturating_sub(*began_us),
        subject: 0,
        value: 0,
        ended: NO_ANSWER.to_owned(),
    })
    .collect()
}
