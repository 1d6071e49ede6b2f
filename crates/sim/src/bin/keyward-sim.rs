//! Runs simulated Regions by seed, and prints the one command that replays a failure.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use keyward_env::sabotage::Bug;
use keyward_sim::plan::Plan;
use keyward_sim::{Counters, Options, Outcome, Scene, Spared, run, shrink};
use parking_lot::Mutex;

const EXAMPLES: &str = "\
Examples:
  keyward-sim --seeds 0..200 --jobs 2       200 Regions, on two cores
  keyward-sim --seed 31                     one of them; prints its trace hash
  keyward-sim --seed 31 --shrink            what of all that went wrong does its failure need?
  keyward-sim --regions --seeds 0..50       50 times three Regions
  keyward-sim --scene deaf-holder           one moment, staged; 200 times
  keyward-sim --seed 31 --without lies,4    without lying disks, and without fault 4

Exit code: 0 all is well, 1 a rule is broken, 2 something was asked for that cannot be.";

/// Simulates a Region of three to five nodes while things break, and checks what must hold.
#[derive(Parser)]
#[command(name = "keyward-sim", after_help = EXAMPLES)]
struct Arguments {
    /// Runs this seed alone, and prints its trace hash.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs these seeds, the last one not included: `0..200`.
    #[arg(long, value_parser = parse_seeds, default_value = "0..200")]
    seeds: (u64, u64),
    /// Threads, 1 to 256; each runs whole seeds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// How long things break, in simulated seconds, 1 to 3600; 20 to 40 by the seed otherwise.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    faults: Option<u64>,
    /// What does not go wrong: audit, clocks, disks, hand-overs, lies, members, roots, streams, weather, or numbers of
    /// faults, with commas between.
    #[arg(long, default_value = None)]
    without: Option<Spared>,
    /// Three Regions at once, and what goes wrong between them.
    #[arg(long, conflicts_with = "growing")]
    regions: bool,
    /// Stages one moment, in a Region where nothing else goes wrong.
    #[arg(long, value_name = "NAME", value_parser = parse_scene, conflicts_with_all = ["regions", "growing", "faults", "without", "shrink"])]
    scene: Option<Scene>,
    /// Of the seeds, those alone whose Region grows to five machines.
    #[arg(long, conflicts_with = "seed")]
    growing: bool,
    /// Stops at the first seed that breaks a rule.
    #[arg(long)]
    first: bool,
    /// Leaves out what a failure does not need, and tells what is left. With --seeds: of the first that fails.
    #[arg(long)]
    shrink: bool,
    /// Gives the nodes a known bug, which must be found. In builds with the feature `sabotage` alone.
    #[arg(long, value_name = "NAME", value_parser = parse_bug)]
    bug: Option<Bug>,
    /// Lists the known bugs.
    #[arg(long)]
    bugs: bool,
}

/// Prints a line; a reader that has gone (`| head`) does not stop a sweep.
macro_rules! say {
    ($($argument:tt)*) => {{
        let _ = writeln!(std::io::stdout().lock(), $($argument)*);
    }};
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let wrong =
        |why: &str| format!("'{text}' is not a range of seeds: {why}; expected A..B, as in 0..200");
    let (from, to) = text.split_once("..").ok_or_else(|| wrong("no '..' in it"))?;
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|_| wrong(&format!("'{text}' is no number from 0 to {}", u64::MAX)))
    };
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok((from, to)) } else { Err(wrong("it has no seed in it")) }
}

/// Counts runs, and shows on a terminal how far a sweep has come.
struct Progress {
    started: Instant,
    all: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    shows: bool,
    last: Mutex<Duration>,
}

impl Progress {
    const BAR: u64 = 30;
    const SHOWN_EVERY: Duration = Duration::from_millis(200);

    #[expect(
        clippy::disallowed_methods,
        reason = "how fast the simulator is, is a matter of real time"
    )]
    fn new(all: u64) -> Self {
        Self {
            started: Instant::now(),
            all: AtomicU64::new(all),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            shows: all > 1 && std::io::stderr().is_terminal(),
            last: Mutex::new(Duration::ZERO),
        }
    }

    fn ended(&self, outcome: &Outcome) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let failed = u64::from(!outcome.violations.is_empty());
        let failed = self.failed.fetch_add(failed, Ordering::Relaxed) + failed;
        let now = self.started.elapsed();
        let mut last = self.last.lock();
        let all = self.all.load(Ordering::Relaxed);
        if !self.shows || (now < *last + Self::SHOWN_EVERY && done < all) {
            return;
        }
        *last = now;
        let full = usize::try_from(done * Self::BAR / all).unwrap_or(0);
        let rest = usize::try_from(Self::BAR).unwrap_or(0) - full;
        let left = now.as_secs_f64() / done as f64 * all.saturating_sub(done) as f64;
        let _ = write!(
            std::io::stderr().lock(),
            "\r[{}{}] {done} of {} seeds, {failed} broke a rule, {left:.0} s left \x1b[K",
            "=".repeat(full),
            " ".repeat(rest),
            all
        );
    }

    /// A seed that is not run.
    fn left_out(&self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes room for a line.
    fn clear(&self) {
        if self.shows {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn parse_scene(name: &str) -> Result<Scene, String> {
    let names = || Scene::ALL.map(Scene::name).join(", ");
    Scene::by_name(name).ok_or_else(|| format!("no scene has that name; there are {}", names()))
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    Bug::by_name(name)
        .ok_or_else(|| "no bug has that name; `keyward-sim --bugs` lists them".to_owned())
}

/// Gives this process its bug.
#[cfg(feature = "sabotage")]
fn select(bug: Option<Bug>) -> Result<(), String> {
    keyward_env::sabotage::select(bug);
    Ok(())
}

#[cfg(not(feature = "sabotage"))]
fn select(bug: Option<Bug>) -> Result<(), String> {
    match bug {
        None => Ok(()),
        Some(bug) => Err(format!(
            "this build has no bugs: cargo run -p keyward-sim --features sabotage -- --bug {}",
            bug.name()
        )),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.bugs {
        Bug::ALL.iter().for_each(|bug| say!("{:30}{}", bug.name(), bug.what()));
        return ExitCode::SUCCESS;
    }
    if let Err(why) = select(arguments.bug) {
        eprintln!("error: {why}");
        return ExitCode::from(2);
    }
    let (from, to) = match arguments.seed {
        Some(u64::MAX) => {
            eprintln!("error: {} is no seed: the largest is {}", u64::MAX, u64::MAX - 1);
            return ExitCode::from(2);
        }
        Some(seed) => (seed, seed + 1),
        None => arguments.seeds,
    };
    let options = Options {
        faults: arguments.faults.map(Duration::from_secs),
        without: arguments.without.unwrap_or_default(),
        regions: arguments.regions,
        scene: arguments.scene,
    };
    let alone = arguments.seed.is_some();
    let first = arguments.first || arguments.shrink;
    let progress = Progress::new(to - from);
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Counters::default());
    let red = Mutex::new(None::<u64>);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        return;
                    }
                    if arguments.growing && Plan::new(seed, None).growing.is_none() {
                        progress.left_out();
                        continue;
                    }
                    let outcome = run(seed, &options);
                    progress.ended(&outcome);
                    if alone {
                        say!("trace {:016x}", outcome.trace_hash);
                    }
                    if !outcome.violations.is_empty() {
                        progress.clear();
                        report(&outcome, &options, arguments.bug);
                        let mut red = red.lock();
                        *red = Some(red.map_or(seed, |other| other.min(seed)));
                        stop.fetch_or(first, Ordering::Relaxed);
                    }
                    sum.lock().add(&outcome.counters);
                }
            });
        }
    });
    progress.clear();
    let sum = sum.into_inner();
    let seconds = progress.started.elapsed().as_secs_f64();
    let simulated = sum.simulated_ms as f64 / 1000.0;
    say!(
        "{} seeds, {} broke a rule; {simulated:.0} simulated seconds in {seconds:.1} s: {:.0} a second\n{sum:?}",
        progress.done.load(Ordering::Relaxed),
        progress.failed.load(Ordering::Relaxed),
        simulated / seconds
    );
    match (red.into_inner(), arguments.shrink) {
        (None, false) => ExitCode::SUCCESS,
        (None, true) => {
            eprintln!("error: no seed broke a rule: there is nothing to shrink");
            ExitCode::from(2)
        }
        (Some(_), false) => ExitCode::FAILURE,
        (Some(seed), true) => {
            tell_shrunken(seed, &options, arguments.bug);
            ExitCode::FAILURE
        }
    }
}

/// The command that runs a seed in the same way.
fn replay(seed: u64, options: &Options, bug: Option<Bug>) -> String {
    let mut command = match bug {
        None => format!("cargo run -p keyward-sim -- --seed {seed}"),
        Some(bug) => format!(
            "cargo run -p keyward-sim --features sabotage -- --bug {} --seed {seed}",
            bug.name()
        ),
    };
    if options.regions {
        command += " --regions";
    }
    if let Some(scene) = options.scene {
        command += &format!(" --scene {}", scene.name());
    }
    if let Some(faults) = options.faults {
        command += &format!(" --faults {}", faults.as_secs());
    }
    if !options.without.0.is_empty() {
        command += &format!(" --without {}", options.without);
    }
    command
}

fn report(outcome: &Outcome, options: &Options, bug: Option<Bug>) {
    say!("seed {} broke a rule. Replay: {}", outcome.seed, replay(outcome.seed, options, bug));
    for violation in &outcome.violations {
        say!("  {violation}");
    }
}

fn tell_shrunken(seed: u64, options: &Options, bug: Option<Bug>) {
    let shows = std::io::stderr().is_terminal();
    let shrunken = shrink(seed, options, |runs, left| {
        if shows {
            let _ = write!(std::io::stderr().lock(), "\r{runs} runs, {left} faults left \x1b[K");
        }
    });
    if shows {
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
    }
    let Some(shrunken) = shrunken else {
        say!("seed {seed} broke no rule when it was run again: that is a bug of the simulator");
        return;
    };
    say!("shrunk in {} runs. What is left goes wrong:", shrunken.runs);
    for fault in &shrunken.outcome.faults {
        say!("  {:8.3} s  {:>7}  {}", fault.at.as_secs_f64(), fault.kind.to_string(), fault.what);
    }
    report(&shrunken.outcome, &Options { without: shrunken.without, ..options.clone() }, bug);
}
