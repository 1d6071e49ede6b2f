//! `keyward dev`: a Region on this machine. One node runs in this process; more run as processes of their
//! own under a supervisor. Data is kept and used again.

mod demo_regions;
pub mod fault;
mod fleet;
mod home;
mod proxy;
pub mod regions;
pub mod suffer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use keyward_client::Repeat;
use keyward_env::{Env, RealEnv};
use keyward_model::{AccountId, Region};
use keyward_proto::v1;
use keyward_service::Authority;

use crate::cli::connect::ConnectArgs;
use crate::cli::output::done;
use crate::config::{Config, Overrides};
use crate::error::Failure;
use crate::{demo, server};

pub use fleet::Fleet;
use home::io_failure;
pub use home::{Home, Plan};

/// Nodes of a development Region at most.
const NODES_MAX: u16 = 9;
/// How long a Region may take until it serves.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// Between looks at a node that is starting.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// A node that ended unexpectedly is started again after this.
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// Health and metrics are this far above a node's gRPC port.
const OBSERVE_OFFSET: u16 = 100;

#[derive(Subcommand)]
pub enum DevCommand {
    /// Bring a Region up; Ctrl-C stops it, its data is kept
    #[command(after_help = "Examples:
  keyward dev up                      one node, in ./keyward-dev
  keyward dev up --nodes 3            three processes with real consensus
  keyward dev up --regions us-east-1,eu-west-1,ap-southeast-2 --nodes 3
                                      three Regions, linked, of three processes each
  eval \"$(keyward dev env)\"           in another terminal: point the other commands at it")]
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
        nodes: u16,
        /// Where everything is kept
        #[arg(long, default_value = "keyward-dev", value_name = "DIR")]
        data: PathBuf,
        /// Node N listens on this port + N
        #[arg(long, default_value_t = 7100, value_parser = clap::value_parser!(u16).range(1024..=65000))]
        port_base: u16,
        /// The Region's name
        #[arg(long, default_value = "eu-west-1")]
        region: Region,
        /// Several Regions, linked with each other, instead of one
        #[arg(
            long,
            value_delimiter = ',',
            value_name = "REGION,REGION",
            conflicts_with = "region"
        )]
        regions: Vec<Region>,
        /// What other Regions tell comes about as late as with AWS KMS: minutes until a replica is there, one until a
        /// primary has moved
        #[arg(long, requires = "regions")]
        aws_like_delays: bool,
        /// Seconds that nodes use keys for after their roots have gone; an hour when absent
        #[arg(long, requires = "regions", value_parser = clap::value_parser!(u64).range(1..=86_400))]
        root_grace: Option<u64>,
        /// The account of the principal that is made
        #[arg(long, default_value = "111122223333")]
        account: AccountId,
    },
    /// Print the exports that point other commands at a Region of `dev up`
    Env {
        /// The folder of `dev up`
        #[arg(long, default_value = "keyward-dev", value_name = "DIR")]
        data: PathBuf,
        /// Which Region, of several
        #[arg(long)]
        region: Option<String>,
    },
    /// Faults of Regions that `dev up --regions` has brought up: cut links, stop nodes and Regions
    Fault {
        /// The folder of `dev up`
        #[arg(long, global = true, default_value = "keyward-dev", value_name = "DIR")]
        data: PathBuf,
        #[command(subcommand)]
        command: fault::FaultCommand,
    },
    /// Move the Region's clock ahead, so that waiting periods and rotations can be rehearsed
    #[command(subcommand)]
    Clock(ClockCommand),
    /// Show what happens when a Region is lost: a file opened elsewhere, promotion, its return and its report
    DemoRegions {
        /// The first Region's node N listens on this port + N; the rest follows
        #[arg(long, default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1024..=60000))]
        port_base: u16,
    },
    /// Show the main job: a three-node Region, a real file, a killed leader, a disabled key, a restart
    Demo {
        /// Where to work; a fresh temporary folder when absent
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Node N listens on this port + N
        #[arg(long, default_value_t = 7300, value_parser = clap::value_parser!(u16).range(1024..=65000))]
        port_base: u16,
        /// The file to encrypt, 64 MiB or more; this program itself, repeated, when absent
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum ClockCommand {
    /// Move it ahead. It never goes back, and it is on record
    #[command(after_help = "Example:\n  keyward dev clock advance 8d")]
    Advance {
        /// For example 90s, 30m, 12h, 8d
        #[arg(value_parser = period)]
        by: i64,
    },
}

/// A period in milliseconds.
fn period(text: &str) -> Result<i64, String> {
    let wrong = || format!("'{text}' is no period: expected for example 90s, 30m, 12h or 8d");
    let unit = match text.chars().last() {
        Some('s') => 1_000,
        Some('m') => 60_000,
        Some('h') => 3_600_000,
        Some('d') => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: i64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|ms| *ms >= 0).ok_or_else(wrong)
}

/// Tells the person at the terminal, if there still is one: a supervisor whose output nobody reads goes on.
fn tell(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

pub async fn run(command: DevCommand, connect: &ConnectArgs) -> Result<(), Failure> {
    match command {
        DevCommand::Clock(ClockCommand::Advance { by }) => {
            let request = v1::AdvanceClockRequest { milliseconds: by };
            let moved =
                connect
                    .operator()?
                    .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                        c.advance_clock(r).await
                    })
                    .await?;
            let hours = moved.offset_milliseconds / 3_600_000;
            done(connect.output, &format!("the Region's clock is {hours} h ahead of the real one"));
            Ok(())
        }
        DevCommand::Up {
            nodes,
            data,
            port_base,
            region: _,
            regions,
            account,
            aws_like_delays,
            root_grace,
        } if !regions.is_empty() || regions::World::is_in(&data) => {
            let world = if regions.is_empty() {
                regions::World::open(&data)?
            } else {
                regions::World {
                    aws_like_delays,
                    root_grace_seconds: root_grace,
                    ..regions::world(&regions, account, nodes, port_base)?
                }
            };
            regions::up(world, &data).await
        }
        DevCommand::Up {
            nodes,
            data,
            port_base,
            region,
            regions: _,
            account,
            aws_like_delays: _,
            root_grace: _,
        } => {
            let plan = Plan {
                region,
                account,
                nodes,
                port_base,
                aws_like_delays: false,
                root_grace_seconds: None,
                ready: false,
            };
            up(plan, &data).await
        }
        DevCommand::Fault { data, command } => fault::run(&data, command, connect.output),
        DevCommand::Env { data, region } => {
            let home = if regions::World::is_in(&data) {
                let world = regions::World::open(&data)?;
                let region = region.as_ref().unwrap_or(&world.regions[0]);
                world.home(&data, region)?
            } else {
                Home::open(&data)?
            };
            print!("{}", home.exports());
            Ok(())
        }
        DevCommand::DemoRegions { port_base } => demo_regions::run(port_base).await,
        DevCommand::Demo { data, port_base, file } => demo::run(data, port_base, file).await,
    }
}

/// Ends this process when its parent ends.
pub fn end_with_parent() {
    let signal = Some(rustix::process::Signal::TERM);
    if let Err(error) = rustix::process::set_parent_process_death_signal(signal) {
        eprintln!("this node will outlive its supervisor: {error}");
    }
}

async fn up(plan: Plan, folder: &Path) -> Result<(), Failure> {
    let began = RealEnv.boot_now();
    let (mut home, authority) = if folder.join("dev.json").exists() {
        let home = Home::open(folder)?;
        home.plan.check_ports()?;
        if home.plan.nodes != plan.nodes || home.plan.port_base != plan.port_base {
            tell(&format!(
                "{} holds a Region of {} node(s) on ports from {}: that is what comes up",
                folder.display(),
                home.plan.nodes,
                home.plan.port_base + 1
            ));
        }
        (home, None)
    } else {
        plan.check_ports()?;
        let (home, authority) = Home::create(folder, plan)?;
        (home, Some(authority))
    };
    if home.plan.nodes == 1 {
        up_one(&mut home, authority, began).await
    } else {
        up_many(&mut home, authority, began).await
    }
}

/// Founds if there is something to found, waits until all serve, and says so.
async fn bring_up(
    home: &mut Home,
    authority: Option<Authority>,
    began: Duration,
) -> Result<(), Failure> {
    if let Some(authority) = authority {
        home.found(&authority).await?;
    }
    home.wait_ready(RealEnv.boot_now() + READY_PATIENCE).await?;
    let took = RealEnv.boot_now() - began;
    tell(&format!(
        "Region {} is up: {} node(s), ready in {:.1} s\n  gRPC    {}\n  health  http://127.0.0.1:{}/readyz\n\nIn another terminal:\n  eval \"$(keyward dev env --data {})\"\n  keyward key create --alias alias/demo\n\nCtrl-C stops it; the data is kept.",
        home.plan.region,
        home.plan.nodes,
        took.as_secs_f64(),
        home.endpoints().join(" "),
        home.plan.port_base + 1 + OBSERVE_OFFSET,
        home.folder.display(),
    ));
    Ok(())
}

async fn up_one(
    home: &mut Home,
    authority: Option<Authority>,
    began: Duration,
) -> Result<(), Failure> {
    let overrides =
        Overrides { log: Some("warn,openraft=error".to_owned()), ..Overrides::default() };
    let config = Config::load(&home.config_path(1), &overrides).map_err(Failure::from_error)?;
    crate::observe::start_log(&config.observe);
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let node = server::run(config, server::For::Good, async move {
        tokio::select! {
            () = server::until_told_to_stop() => {}
            () = stopped.notified() => {}
        }
    });
    let guide = async {
        let result = bring_up(home, authority, began).await;
        if result.is_err() {
            stop.notify_one();
        }
        result
    };
    let (served, guided) = tokio::join!(node, guide);
    guided.and(served)
}

async fn up_many(
    home: &mut Home,
    authority: Option<Authority>,
    began: Duration,
) -> Result<(), Failure> {
    let mut fleet = Fleet::new(home)?;
    let result = tokio::select! {
        () = server::until_told_to_stop() => Ok(()),
        result = async {
            fleet.start_all().await?;
            bring_up(home, authority, began).await?;
            Err(fleet.keep_up().await)
        } => result,
    };
    tell("stopping");
    fleet.stop_all().await;
    result
}
