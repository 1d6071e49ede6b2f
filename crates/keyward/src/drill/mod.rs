//! `keyward drill`: a disaster rehearsed, with figures of what every caller saw.

mod asked;
mod bring_up;
mod caller;
mod changes;
mod check;
mod definition;
mod ending;
mod history;
mod invariants;
mod limits;
mod page;
mod place;
mod play;
mod pool;
mod program;
mod report;
mod sign;
mod stage;
mod text;
mod verdict;
mod watch;
mod wrong;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use keyward_env::{Env, RealEnv};
use serde_json::{Value, json};

use self::asked::Names;
use self::definition::Drill;
use self::report::{Heading, Report};
use self::sign::Signer;
use self::stage::Stage;
use self::verdict::Verdict;
use crate::cli::output::{Format, list, one, sayln};
use crate::error::Failure;

#[derive(Subcommand)]
pub enum DrillCommand {
    /// Look at a drill's file: every error with its line, and what would do
    #[command(after_help = "Example:\n  keyward drill check deploy/drills/leader-kill.toml")]
    Check {
        /// The drill
        file: PathBuf,
    },
    /// Bring it up, or attach to what is there, play it, and say whether what it promises held
    #[command(after_help = "Example:
  keyward drill run deploy/drills/region-lost.toml --report region-lost

Exit code 0: what was promised held. The report's folder holds report.html, report.json (signed), junit.xml and
history.csv, which has every call.")]
    Run {
        /// The drill
        file: PathBuf,
        /// Write the report into this folder
        #[arg(long, value_name = "DIR", default_value = "drill-report")]
        report: PathBuf,
        /// The first Region's node N listens on this port + N; the rest follows
        #[arg(long, default_value_t = 7500, value_parser = clap::value_parser!(u16).range(1024..=60000))]
        port_base: u16,
        /// A promise is to be broken: succeed if one is, to see that the verdict can be red
        #[arg(long)]
        expect_fail: bool,
    },
    /// Check a report: who signed it, and that nothing of it was changed since
    #[command(after_help = "Example:\n  keyward drill verify region-lost")]
    Verify {
        /// Its folder
        report: PathBuf,
    },
}

pub async fn drill(format: Format, command: DrillCommand) -> Result<(), Failure> {
    match command {
        DrillCommand::Check { file } => {
            let drill = Drill::read(&file)?;
            one(
                format,
                &[
                    ("Name", json!(drill.name)),
                    ("Regions", json!(drill.regions())),
                    ("Seconds", json!(drill.lasts().as_secs())),
                    ("Loads", json!(drill.load.len())),
                    ("Steps", json!(drill.step.len())),
                    ("Promises", json!(drill.promise.len())),
                ],
            );
            Ok(())
        }
        DrillCommand::Run { file, report, port_base, expect_fail } => {
            let drill = Drill::read(&file)?;
            let folder = std::env::temp_dir().join(format!("keyward-drill-{}", std::process::id()));
            let result = run(format, &drill, &file, &report, &folder, port_base).await;
            // There may be none.
            drop(std::fs::remove_dir_all(&folder));
            match (result?, expect_fail) {
                (true, false) | (false, true) => Ok(()),
                (false, false) => Err(Failure::new("not all of what was promised held")
                    .next(format!("look at {}", report.join(report::PAGE).display()))),
                (true, true) => Err(Failure::new(
                    "all of what was promised held, and something was to be broken (--expect-fail)",
                )),
            }
        }
        DrillCommand::Verify { report } => {
            let (told, fingerprint) = sign::verify(&report)?;
            one(
                format,
                &[
                    ("Name", told["Name"].clone()),
                    ("Date", told["Date"].clone()),
                    ("Held", told["Held"].clone()),
                    ("HistorySha256", told["HistorySha256"].clone()),
                    ("SignedBy", json!(fingerprint)),
                ],
            );
            Ok(())
        }
    }
}

/// Plays it and writes the report. Whether all held. `folder`: for what it works with.
async fn run(
    format: Format,
    drill: &Drill,
    file: &Path,
    report: &Path,
    folder: &Path,
    port_base: u16,
) -> Result<bool, Failure> {
    let say = |line: String| {
        if format == Format::Table {
            sayln!("{line}");
        }
    };
    let text = std::fs::read_to_string(file)
        .map_err(|e| Failure::new(format!("cannot read {}: {e}", file.display())))?;
    // What would fail in the end fails before anything has happened.
    for folder in [report, &folder.join("work")] {
        std::fs::create_dir_all(folder)
            .map_err(|e| Failure::new(format!("cannot make {}: {e}", folder.display())))?;
    }
    let stage = match &drill.topology {
        Some(topology) => {
            let (regions, nodes) = (drill.regions().join(", "), topology.nodes.get_ref());
            say(format!("{}: bringing up {regions} with {nodes} node(s) each", drill.name));
            Stage::bring_up(drill, folder, port_base).await?
        }
        None => {
            say(format!("{}: attaching to {}", drill.name, drill.regions().join(", ")));
            Stage::attach(drill, file, &folder.join("work")).await?
        }
    };
    let played = play_and_sign(drill, &stage, say).await;
    let names = names(&stage);
    if let Some(dev) = stage.dev {
        dev.down().await;
    }
    let (history, signer) = played?;
    let verdicts = verdict::judge(drill, &history, &names);
    let date = crate::cli::output::date(Some(&prost_types::Timestamp {
        seconds: RealEnv.wall_now_ms() / 1000,
        nanos: 0,
    }));
    let commands = vec![
        format!("keyward drill check {}", file.display()),
        format!("keyward drill run {} --report {}", file.display(), report.display()),
        format!("keyward drill verify {}", report.display()),
    ];
    let told = Report::new(drill, Heading { text, date, commands }, &history, verdicts);
    told.save(report, drill, &history, &signer)?;
    show(format, &told.verdicts);
    say(format!("\nThe report is {}", report.join(report::PAGE).display()));
    Ok(told.held)
}

async fn play_and_sign(
    drill: &Drill,
    stage: &Stage,
    say: impl FnMut(String),
) -> Result<(history::History, Signer), Failure> {
    let signer = Signer::new(&stage.signer()?)?;
    Ok((play::play(drill, stage, say).await?, signer))
}

/// What commands of steps call keys and principals.
fn names(stage: &Stage) -> Names {
    let keys = stage.keys.iter().map(|(name, id)| (id.clone(), name.clone()));
    let own = stage.principals.iter().map(|(name, one)| (one.arn.clone(), name.clone()));
    let dev = stage.dev.as_ref().map(|dev| (dev.user(), String::new()));
    Names { keys: keys.collect(), principals: own.chain(dev).collect() }
}

fn show(format: Format, verdicts: &[Verdict]) {
    let rows: Vec<Vec<Value>> = verdicts
        .iter()
        .map(|verdict| {
            vec![
                json!(if verdict.held { "held" } else { "BROKEN" }),
                json!(verdict.name),
                json!(verdict.of),
                json!(verdict.promised),
                json!(verdict.seen),
            ]
        })
        .collect();
    if format == Format::Table {
        sayln!("");
    }
    list(format, "Verdicts", &["Verdict", "Promise", "Of", "Promised", "Seen"], &rows);
}
