//! `keyward dev fault`: faults of development Regions. The command writes down what is asked for; the supervisor of
//! `dev up --regions`, which owns the processes and the proxies, makes it so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::io_failure;
use super::regions::World;
use crate::cli::output::{Format, done};
use crate::error::Failure;

#[derive(Subcommand)]
pub enum FaultCommand {
    /// Kill a node or a whole Region, as a power cut would; it is started again after 3 s
    #[command(after_help = "Example:\n  keyward dev fault kill us-east-1/2")]
    Kill {
        /// REGION or REGION/NODE
        place: String,
    },
    /// Kill a node or a whole Region, and keep it down until it is healed
    Down {
        /// REGION or REGION/NODE
        place: String,
    },
    /// Lose a node or a whole Region with its disk: it is killed, what it had is put aside, and it is down until it is healed
    #[command(after_help = "Example:
  keyward dev fault lose us-east-1
  keyward snapshot restore us-east-1.snapshot --config DIR/us-east-1/node-1/keyward.toml
  keyward dev fault heal us-east-1/1

Its data folder is DIR/REGION/node-N/data.lost-1 from then on. Its root key is not lost: that is an HSM's.")]
    Lose {
        /// REGION or REGION/NODE
        place: String,
    },
    /// Stop a node or a whole Region in order, as for an upgrade; it is started again after 3 s
    Restart {
        /// REGION or REGION/NODE
        place: String,
    },
    /// Freeze a node or a whole Region until it is healed
    Pause {
        /// REGION or REGION/NODE
        place: String,
    },
    /// Cut the link between two Regions; nobody is told
    #[command(after_help = "Example:\n  keyward dev fault cut us-east-1 eu-west-1 --one-way")]
    Cut {
        /// A Region
        from: String,
        /// Another one
        to: String,
        /// Only what goes from the first to the second
        #[arg(long)]
        one_way: bool,
    },
    /// Slow the link between two Regions down, each way
    #[command(after_help = "Example:\n  keyward dev fault slow us-east-1 ap-southeast-2 --ms 150")]
    Slow {
        /// A Region
        from: String,
        /// Another one
        to: String,
        /// Milliseconds that everything takes longer, each way; up to 60000
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60_000))]
        ms: u64,
    },
    /// Let a node's or a Region's disks take nothing more until it is healed: every write fails
    #[command(after_help = "Example:\n  keyward dev fault fill us-east-1/2

The kernel holds it: the process gets a limit of 0 bytes for the size of its files (RLIMIT_FSIZE), so what it writes fails
with EFBIG, as with ENOSPC on a full disk.")]
    Fill {
        /// REGION or REGION/NODE
        place: String,
    },
    /// Cut a node off from the other nodes of its Region until it is healed; callers reach it as before
    #[command(after_help = "Example:\n  keyward dev fault isolate us-east-1/2")]
    Isolate {
        /// REGION/NODE; of a whole REGION, all of its nodes from each other
        place: String,
    },
    /// Take the root key of a node or of a whole Region away until it is healed, as an HSM that is unplugged
    #[command(after_help = "Example:\n  keyward dev fault root-away us-east-1/2

Keys that are open are used on for an hour, or for as long as `dev up --root-grace` says. A node that starts without its
root waits for it.")]
    RootAway {
        /// REGION or REGION/NODE
        place: String,
    },
    /// Put the wall clock of a node or of a whole Region wrong until it is healed
    #[command(
        after_help = "Example:\n  keyward dev fault skew us-east-1/2 --by 1h\n  keyward dev fault skew us-east-1/2 --by=-90s"
    )]
    Skew {
        /// REGION or REGION/NODE
        place: String,
        /// For example 90s, 30m, 12h, 365d; behind with a minus
        #[arg(long, allow_hyphen_values = true, value_parser = offset)]
        by: i64,
    },
    /// End all faults, or those of one place
    Heal {
        /// REGION or REGION/NODE; all of them when absent
        place: Option<String>,
    },
    /// Show the faults that are in force
    List,
}

/// A node of a Region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    region: String,
    node: u16,
}

impl Place {
    pub fn node(region: &str, node: u16) -> Self {
        Self { region: region.to_owned(), node }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.region, self.node)
    }
}

/// One direction of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFault {
    pub from: String,
    pub to: String,
    pub cut: bool,
    pub delay_ms: u64,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    pub links: Vec<LinkFault>,
    down: BTreeSet<String>,
    paused: BTreeSet<String>,
    #[serde(default)]
    full: BTreeSet<String>,
    #[serde(default)]
    isolated: BTreeSet<String>,
    #[serde(default)]
    rootless: BTreeSet<String>,
    /// Milliseconds that wall clocks are wrong by.
    #[serde(default)]
    skewed: BTreeMap<String, i64>,
    /// How often each was killed.
    kills: BTreeMap<String, u64>,
    /// How often each lost its disk.
    #[serde(default)]
    losses: BTreeMap<String, u64>,
    /// How often each was stopped in order.
    #[serde(default)]
    restarts: BTreeMap<String, u64>,
}

impl Faults {
    pub fn is_down(&self, place: &Place) -> bool {
        self.down.contains(&place.to_string())
    }

    pub fn is_paused(&self, place: &Place) -> bool {
        self.paused.contains(&place.to_string())
    }

    pub fn is_full(&self, place: &Place) -> bool {
        self.full.contains(&place.to_string())
    }

    /// Whether other nodes of its Region cannot be reached from it.
    pub fn is_isolated(&self, place: &Place) -> bool {
        self.isolated.contains(&place.to_string())
    }

    /// Whether its root is away.
    pub fn is_rootless(&self, place: &Place) -> bool {
        self.rootless.contains(&place.to_string())
    }

    pub fn losses_of(&self, place: &Place) -> u64 {
        self.losses.get(&place.to_string()).copied().unwrap_or(0)
    }

    pub fn restarts_of(&self, place: &Place) -> u64 {
        self.restarts.get(&place.to_string()).copied().unwrap_or(0)
    }

    /// Milliseconds that its wall clock is wrong by.
    pub fn skew_of(&self, place: &Place) -> i64 {
        self.skewed.get(&place.to_string()).copied().unwrap_or(0)
    }

    pub fn kills_of(&self, place: &Place) -> u64 {
        self.kills.get(&place.to_string()).copied().unwrap_or(0)
    }

    fn direction(&mut self, from: &str, to: &str) -> &mut LinkFault {
        let at = self.links.iter().position(|link| link.from == from && link.to == to);
        let at = at.unwrap_or_else(|| {
            self.links.push(LinkFault {
                from: from.to_owned(),
                to: to.to_owned(),
                cut: false,
                delay_ms: 0,
            });
            self.links.len() - 1
        });
        &mut self.links[at]
    }
}

/// A period in milliseconds, ahead or behind.
fn offset(text: &str) -> Result<i64, String> {
    match text.strip_prefix('-') {
        Some(period) => super::period(period).map(|ms| -ms),
        None => super::period(text),
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("faults.json")
}

/// What is asked for in a folder; nothing where there is no such file.
pub fn asked(folder: &Path) -> Faults {
    let text = fs::read_to_string(path(folder)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Ends all faults.
pub fn clear(folder: &Path) {
    // There may be none.
    let _ = fs::remove_file(path(folder));
}

/// The nodes that a place names.
fn places(world: &World, place: &str) -> Result<Vec<String>, Failure> {
    let (region, node) = match place.split_once('/') {
        Some((region, node)) => (region, Some(node)),
        None => (place, None),
    };
    if world.regions.iter().all(|known| known != region) {
        return Err(Failure::new(format!(
            "there is no Region {region} here: there are {}",
            world.regions.join(", ")
        )));
    }
    let all = 1..=world.nodes;
    match node {
        None => Ok(all.map(|node| Place::node(region, node).to_string()).collect()),
        Some(node) => match node.parse::<u16>() {
            Ok(node) if all.contains(&node) => Ok(vec![Place::node(region, node).to_string()]),
            _ => Err(Failure::new(format!(
                "{region} has no node {node}: it has nodes 1 to {}",
                world.nodes
            ))),
        },
    }
}

/// Whether a fault names places that are there.
pub fn check(regions: &[String], nodes: u16, command: &FaultCommand) -> Result<(), Failure> {
    let world = World {
        regions: regions.to_vec(),
        account: String::new(),
        nodes,
        port_base: 0,
        aws_like_delays: false,
        root_grace_seconds: None,
        ready: true,
    };
    match command {
        FaultCommand::Kill { place }
        | FaultCommand::Down { place }
        | FaultCommand::Lose { place }
        | FaultCommand::Restart { place }
        | FaultCommand::Pause { place }
        | FaultCommand::Fill { place }
        | FaultCommand::Isolate { place }
        | FaultCommand::RootAway { place }
        | FaultCommand::Skew { place, .. }
        | FaultCommand::Heal { place: Some(place) } => places(&world, place).map(drop),
        FaultCommand::Cut { from, to, .. } | FaultCommand::Slow { from, to, .. } => {
            link(&world, from, to)
        }
        FaultCommand::Heal { place: None } | FaultCommand::List => Ok(()),
    }
}

/// Two Regions that are linked.
fn link(world: &World, from: &str, to: &str) -> Result<(), Failure> {
    places(world, from)?;
    places(world, to)?;
    if from.contains('/') || to.contains('/') || from == to {
        return Err(Failure::new(format!("'{from}' and '{to}' are not two Regions")));
    }
    Ok(())
}

pub fn run(folder: &Path, command: FaultCommand, format: Format) -> Result<(), Failure> {
    let world = World::open(folder)?;
    let mut faults = asked(folder);
    let said = match command {
        FaultCommand::Kill { place } => {
            for name in places(&world, &place)? {
                *faults.kills.entry(name).or_default() += 1;
            }
            format!("{place} is killed, and started again after 3 s")
        }
        FaultCommand::Down { place } => {
            faults.down.extend(places(&world, &place)?);
            format!("{place} is down until `keyward dev fault heal`")
        }
        FaultCommand::Lose { place } => {
            for name in places(&world, &place)? {
                *faults.losses.entry(name.clone()).or_default() += 1;
                faults.down.insert(name);
            }
            format!("{place} has lost its disk, and is down until `keyward dev fault heal`")
        }
        FaultCommand::Restart { place } => {
            for name in places(&world, &place)? {
                *faults.restarts.entry(name).or_default() += 1;
            }
            format!("{place} is stopped in order, and started again after 3 s")
        }
        FaultCommand::Pause { place } => {
            faults.paused.extend(places(&world, &place)?);
            format!("{place} is frozen until `keyward dev fault heal`")
        }
        FaultCommand::Cut { from, to, one_way } => {
            link(&world, &from, &to)?;
            faults.direction(&from, &to).cut = true;
            if !one_way {
                faults.direction(&to, &from).cut = true;
            }
            let ways = if one_way { "one way" } else { "both ways" };
            format!(
                "{from} and {to} are cut off from each other, {ways}, until `keyward dev fault heal`"
            )
        }
        FaultCommand::Slow { from, to, ms } => {
            link(&world, &from, &to)?;
            faults.direction(&from, &to).delay_ms = ms;
            faults.direction(&to, &from).delay_ms = ms;
            format!("everything between {from} and {to} takes {ms} ms longer, each way")
        }
        FaultCommand::Fill { place } => {
            faults.full.extend(places(&world, &place)?);
            format!("the disk of {place} takes nothing more until `keyward dev fault heal`")
        }
        FaultCommand::Isolate { place } => {
            faults.isolated.extend(places(&world, &place)?);
            format!("{place} is cut off from the other nodes until `keyward dev fault heal`")
        }
        FaultCommand::RootAway { place } => {
            faults.rootless.extend(places(&world, &place)?);
            format!("the root of {place} is away until `keyward dev fault heal`")
        }
        FaultCommand::Skew { place, by } => {
            for name in places(&world, &place)? {
                faults.skewed.insert(name, by);
            }
            let seconds = by.unsigned_abs() / 1000;
            let way = if by < 0 { "behind" } else { "ahead" };
            format!("the clock of {place} is {seconds} s {way} until `keyward dev fault heal`")
        }
        FaultCommand::Heal { place: None } => {
            // What was counted has happened.
            let (kills, losses, restarts) = (faults.kills, faults.losses, faults.restarts);
            faults = Faults { kills, losses, restarts, ..Faults::default() };
            "all faults end".to_owned()
        }
        FaultCommand::Heal { place: Some(place) } => {
            for name in places(&world, &place)? {
                faults.down.remove(&name);
                faults.paused.remove(&name);
                faults.full.remove(&name);
                faults.isolated.remove(&name);
                faults.rootless.remove(&name);
                faults.skewed.remove(&name);
            }
            faults.links.retain(|link| link.from != place && link.to != place);
            format!("faults of {place} end")
        }
        FaultCommand::List => {
            let shown = serde_json::to_string_pretty(&faults).unwrap_or_default();
            crate::cli::output::say(&shown);
            return Ok(());
        }
    };
    // Whole, or not at all: the supervisor reads it at any time.
    let text = serde_json::to_string_pretty(&faults).map_err(|e| Failure::new(e.to_string()))?;
    let (to, beside) = (path(folder), folder.join("faults.json.new"));
    fs::write(&beside, text).map_err(io_failure("write", &beside))?;
    fs::rename(&beside, &to).map_err(io_failure("write", &to))?;
    done(format, &said);
    Ok(())
}
