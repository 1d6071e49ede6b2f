//! Runs simulated Regions by seed, and prints the one command that replays a failure.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use keyward_env::sabotage::Bug;
use keyward_sim::{Counters, Options, Outcome, run};
use parking_lot::Mutex;

/// Simulates a Region of three nodes while things break, and checks what must hold.
#[derive(Parser)]
#[command(name = "keyward-sim")]
struct Arguments {
    /// Runs this seed alone, and prints its trace hash.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs these seeds, the last one not included: `0..200`.
    #[arg(long, value_parser = parse_seeds, default_value = "0..200")]
    seeds: (u64, u64),
    /// Threads; each runs whole seeds.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// How long things break, in simulated seconds; 20 to 40 by the seed otherwise.
    #[arg(long)]
    faults: Option<u64>,
    /// Stops at the first seed that breaks a rule.
    #[arg(long)]
    first: bool,
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
        use std::io::Write;
        let _ = writeln!(std::io::stdout().lock(), $($argument)*);
    }};
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("'{text}' is not a range of seeds: expected A..B");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let from = from.parse().map_err(|_| wrong())?;
    let to = to.parse().map_err(|_| wrong())?;
    if from < to { Ok((from, to)) } else { Err(wrong()) }
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
        say!("error: {why}");
        return ExitCode::FAILURE;
    }
    let (from, to) = match arguments.seed {
        Some(seed) => (seed, seed + 1),
        None => arguments.seeds,
    };
    let options = Options { faults: arguments.faults.map(Duration::from_secs) };
    #[expect(
        clippy::disallowed_methods,
        reason = "how fast the simulator is, is a matter of real time"
    )]
    let started = std::time::Instant::now();
    let next = AtomicU64::new(from);
    let outcomes = Mutex::new(Vec::<Outcome>::new());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        return;
                    }
                    let outcome = run(seed, options);
                    report(&outcome, arguments.seed.is_some());
                    if arguments.first && !outcome.violations.is_empty() {
                        next.store(to, Ordering::Relaxed);
                    }
                    outcomes.lock().push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner();
    let mut sum = Counters::default();
    for outcome in &outcomes {
        sum.add(&outcome.counters);
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).count();
    let seconds = started.elapsed().as_secs_f64();
    let simulated = sum.simulated_ms as f64 / 1000.0;
    say!(
        "{} seeds, {failed} broke a rule; {simulated:.0} simulated seconds in {seconds:.1} s: {:.0} a second\n{sum:?}",
        outcomes.len(),
        simulated / seconds
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(outcome: &Outcome, alone: bool) {
    if alone {
        say!("trace {:016x}", outcome.trace_hash);
    }
    if outcome.violations.is_empty() {
        return;
    }
    say!(
        "seed {} broke a rule. Replay: cargo run -p keyward-sim -- --seed {}",
        outcome.seed,
        outcome.seed
    );
    for violation in &outcome.violations {
        say!("  {violation}");
    }
}
