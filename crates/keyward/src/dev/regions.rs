//! `keyward dev up --regions`: several Regions on this machine, linked through proxies of the supervisor's own, so that
//! links can be cut and slowed without being root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_model::{AccountId, Region};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::fault::{self, Faults};
use super::proxy::{self, Condition};
use super::{Fleet, Home, LOOK_AGAIN, Plan, READY_PATIENCE, RESTART_AFTER, io_failure, tell};
use crate::cli::regions;
use crate::error::Failure;
use crate::server;

/// Regions on one machine at most.
pub const REGIONS_MAX: usize = 5;
/// Ports of one Region's nodes.
const PORTS_PER_REGION: u16 = 20;
/// Proxies between Regions are this far above the first port.
const PROXY_OFFSET: u16 = 200;
/// Ports of one link's proxies.
const PORTS_PER_LINK: u16 = 10;
/// Between looks at which faults are asked for.
const FAULT_ROUND: Duration = Duration::from_millis(100);

/// Several development Regions; kept in `regions.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct World {
    pub regions: Vec<String>,
    pub account: String,
    pub nodes: u16,
    pub port_base: u16,
    /// They seem as far away from each other as AWS's.
    #[serde(default)]
    pub aws_like_delays: bool,
    /// Nodes use keys for so long after their roots have gone.
    #[serde(default)]
    pub root_grace_seconds: Option<u64>,
    /// All founded and linked.
    pub ready: bool,
}

impl World {
    fn path(folder: &Path) -> PathBuf {
        folder.join("regions.json")
    }

    /// Whether a folder holds several Regions.
    pub fn is_in(folder: &Path) -> bool {
        Self::path(folder).exists()
    }

    /// Reads it.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let path = Self::path(folder);
        let text = fs::read_to_string(&path).map_err(|_| {
            Failure::new(format!("{} holds no development Regions", folder.display())).next(
                format!(
                    "keyward dev up --regions eu-west-1,us-east-1 --nodes 3 --data {}",
                    folder.display()
                ),
            )
        })?;
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
    }

    fn save(&self, folder: &Path) -> Result<(), Failure> {
        let path = Self::path(folder);
        let text = serde_json::to_string_pretty(self).map_err(|e| Failure::new(e.to_string()))?;
        fs::write(&path, text).map_err(io_failure("write", &path))
    }

    /// The folder of one Region.
    pub fn home(&self, folder: &Path, region: &str) -> Result<Home, Failure> {
        if self.regions.iter().all(|known| known != region) {
            return Err(Failure::new(format!(
                "{} has no Region {region}: it has {}",
                folder.display(),
                self.regions.join(", ")
            )));
        }
        Home::open(&folder.join(region))
    }

    fn plan(&self, at: usize) -> Result<Plan, Failure> {
        let parse = |e: keyward_model::ParseIdError| Failure::new(e.to_string());
        Ok(Plan {
            region: self.regions[at].parse().map_err(parse)?,
            account: self.account.parse().map_err(parse)?,
            nodes: self.nodes,
            port_base: self.port_base + PORTS_PER_REGION * u16::try_from(at).unwrap_or(0),
            aws_like_delays: self.aws_like_delays,
            root_grace_seconds: self.root_grace_seconds,
            ready: false,
        })
    }

    /// Where nodes of Region `to` are reached from Region `from`.
    fn proxies(&self, from: usize, to: usize) -> Vec<u16> {
        let link = u16::try_from(from * REGIONS_MAX + to).unwrap_or(0);
        let first = self.port_base + PROXY_OFFSET + PORTS_PER_LINK * link;
        (1..=self.nodes).map(|node| first + node).collect()
    }
}

/// What `dev up --regions` was asked for.
pub fn world(
    regions: &[Region],
    account: AccountId,
    nodes: u16,
    port_base: u16,
) -> Result<World, Failure> {
    let names: BTreeSet<&Region> = regions.iter().collect();
    if names.len() < regions.len() {
        return Err(Failure::new(
            "--regions names a Region twice: two of one name cannot be linked",
        ));
    }
    if !(1..=REGIONS_MAX).contains(&regions.len()) {
        return Err(Failure::new(format!(
            "--regions names {} Regions: 1 to {REGIONS_MAX} go on one machine",
            regions.len()
        )));
    }
    Ok(World {
        regions: regions.iter().map(ToString::to_string).collect(),
        account: account.to_string(),
        nodes,
        port_base,
        aws_like_delays: false,
        root_grace_seconds: None,
        ready: false,
    })
}

struct Up {
    folder: PathBuf,
    world: World,
    homes: Vec<Home>,
    fleets: Vec<Fleet>,
    conditions: Arc<RwLock<BTreeMap<(usize, usize), Condition>>>,
}

/// Brings them up and keeps them up until told to stop.
pub async fn up(asked: World, folder: &Path) -> Result<(), Failure> {
    let began = RealEnv.boot_now();
    let world = if World::is_in(folder) {
        let world = World::open(folder)?;
        if world.regions != asked.regions || world.nodes != asked.nodes {
            tell(&format!(
                "{} holds {} with {} node(s) each: that is what comes up",
                folder.display(),
                world.regions.join(", "),
                world.nodes
            ));
        }
        world
    } else if folder.join("dev.json").exists() {
        return Err(Failure::new(format!("{} holds one development Region", folder.display()))
            .next("name another folder with --data"));
    } else {
        asked
    };
    for at in 0..world.regions.len() {
        world.plan(at)?.check_ports()?;
    }
    fs::create_dir_all(folder).map_err(io_failure("make", folder))?;
    let folder = folder.canonicalize().map_err(io_failure("find", folder))?;
    if !world.ready && World::is_in(&folder) {
        return Err(Failure::new(format!(
            "setting {} up was interrupted before it was done",
            folder.display()
        ))
        .next(format!("rm -r {} and start again", folder.display())));
    }
    world.save(&folder)?;
    let (mut homes, mut authorities) = (Vec::new(), Vec::new());
    for (at, region) in world.regions.iter().enumerate() {
        let place = folder.join(region);
        if world.ready {
            homes.push(Home::open(&place)?);
            authorities.push(None);
        } else {
            let (home, authority) = Home::create(&place, world.plan(at)?)?;
            homes.push(home);
            authorities.push(Some(authority));
        }
    }
    homes.iter().for_each(Home::forget_faults);
    let fleets = homes.iter().map(Fleet::new).collect::<Result<Vec<_>, _>>()?;
    let mut up = Up { folder, world, homes, fleets, conditions: Arc::default() };
    let result = tokio::select! {
        () = server::until_told_to_stop() => Ok(()),
        result = async {
            up.listen().await?;
            up.start(authorities).await?;
            up.link().await?;
            up.say_ready(began);
            Err(up.keep_up().await)
        } => result,
    };
    tell("stopping");
    fault::clear(&up.folder);
    up.homes.iter().for_each(Home::forget_faults);
    for (fleet, node) in
        up.fleets.iter().flat_map(|fleet| (1..=up.world.nodes).map(move |node| (fleet, node)))
    {
        fleet.let_files_grow(node, true);
    }
    for fleet in &mut up.fleets {
        fleet.tell_all(rustix::process::Signal::CONT);
    }
    for fleet in &mut up.fleets {
        fleet.stop_all().await;
    }
    result
}

impl Up {
    /// Opens the proxies between Regions.
    async fn listen(&self) -> Result<(), Failure> {
        let many = self.world.regions.len();
        for (from, to) in (0..many).flat_map(|from| (0..many).map(move |to| (from, to))) {
            if from == to {
                continue;
            }
            for (node, port) in (1..).zip(self.world.proxies(from, to)) {
                let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
                    Failure::new(format!("port {port} cannot be used: {error}"))
                        .next("stop what uses it, or choose others with --port-base")
                })?;
                let target = self.homes[to].endpoint(node);
                let conditions = Arc::clone(&self.conditions);
                let way =
                    move |from, to| conditions.read().get(&(from, to)).copied().unwrap_or_default();
                let there = {
                    let way = way.clone();
                    move || way(from, to)
                };
                let back = move || way(to, from);
                RealEnv.spawn(proxy::serve(listener, target, there, back));
            }
        }
        Ok(())
    }

    async fn start(
        &mut self,
        authorities: Vec<Option<keyward_service::Authority>>,
    ) -> Result<(), Failure> {
        let end = RealEnv.boot_now() + READY_PATIENCE;
        for fleet in &mut self.fleets {
            for node in 1..=self.world.nodes {
                fleet.start(node)?;
            }
        }
        for fleet in &mut self.fleets {
            for node in 1..=self.world.nodes {
                fleet.wait_door(node, end).await?;
            }
        }
        let founding =
            self.homes.iter_mut().zip(&authorities).map(
                async |(home, authority)| match authority {
                    Some(authority) => home.found(authority).await,
                    None => Ok(()),
                },
            );
        for result in futures_util::future::join_all(founding).await {
            result?;
        }
        for home in &self.homes {
            home.wait_ready(end).await?;
        }
        Ok(())
    }

    /// Has every Region approve every other one.
    async fn link(&mut self) -> Result<(), Failure> {
        if self.world.ready {
            return Ok(());
        }
        let patience = Duration::from_secs(20);
        let mut clients = Vec::new();
        let mut cards = Vec::new();
        for home in &self.homes {
            let client = home.client("operator", &[], patience)?;
            cards.push(regions::card(&client).await?.card.unwrap_or_default());
            clients.push(client);
        }
        for (from, client) in clients.iter().enumerate() {
            for (to, card) in cards.iter().enumerate().filter(|(to, _)| *to != from) {
                let mut card = card.clone();
                card.endpoints = self
                    .world
                    .proxies(from, to)
                    .into_iter()
                    .map(|port| format!("127.0.0.1:{port}"))
                    .collect();
                regions::add(client, card).await?;
            }
        }
        self.world.ready = true;
        self.world.save(&self.folder)
    }

    fn say_ready(&self, began: Duration) {
        let took = (RealEnv.boot_now() - began).as_secs_f64();
        let data = self.folder.display();
        let first = &self.world.regions[0];
        let mut text = format!(
            "{} Regions are up and linked: {} node(s) each, ready in {took:.1} s\n",
            self.world.regions.len(),
            self.world.nodes
        );
        for home in &self.homes {
            text.push_str(&format!("  {:16} {}\n", home.plan.region, home.endpoints().join(" ")));
        }
        text.push_str(&format!(
            "\nIn another terminal:\n  eval \"$(keyward dev env --data {data} --region {first})\"\n  keyward key create \
             --multi-region\n  keyward key replicate KEY_ID {}\n  keyward dev fault --help       \
             cut and slow links, stop nodes and Regions\n\nCtrl-C stops them; the data is kept.",
            self.world.regions.last().map_or("", String::as_str)
        ));
        tell(&text);
    }

    /// Starts nodes again that ended by themselves, and makes the faults that are asked for, for ever.
    async fn keep_up(&mut self) -> Failure {
        let mut in_force = Faults::default();
        let mut ended_at: BTreeMap<(usize, u16), Duration> = BTreeMap::new();
        loop {
            let asked = fault::asked(&self.folder);
            if asked != in_force {
                self.put_in_force(&in_force, &asked).await;
                in_force = asked;
            }
            for (at, fleet) in self.fleets.iter_mut().enumerate() {
                for node in 1..=self.world.nodes {
                    let name = fault::Place::node(&self.world.regions[at], node);
                    if in_force.is_down(&name) {
                        continue;
                    }
                    // Each time anew: a node that was started again has no limit yet.
                    if in_force.is_full(&name) {
                        fleet.let_files_grow(node, false);
                    }
                    let now = RealEnv.boot_now();
                    match (fleet.has_ended(node), ended_at.get(&(at, node))) {
                        (Some(why), None) => {
                            tell(&format!("{name} ended ({why}); it is started again"));
                            ended_at.insert((at, node), now);
                        }
                        (Some(_), Some(since)) if now - *since >= RESTART_AFTER => {
                            ended_at.remove(&(at, node));
                            if let Err(failure) = fleet.start(node) {
                                return failure;
                            }
                        }
                        (Some(_), Some(_)) => {}
                        (None, _) => drop(ended_at.remove(&(at, node))),
                    }
                }
            }
            RealEnv.sleep(FAULT_ROUND.max(LOOK_AGAIN)).await;
        }
    }

    async fn put_in_force(&mut self, before: &Faults, asked: &Faults) {
        let at = |name: &str| self.world.regions.iter().position(|region| region == name);
        let mut conditions = BTreeMap::new();
        for link in &asked.links {
            if let (Some(from), Some(to)) = (at(&link.from), at(&link.to)) {
                conditions.insert(
                    (from, to),
                    Condition { cut: link.cut, delay: Duration::from_millis(link.delay_ms) },
                );
            }
        }
        *self.conditions.write() = conditions;
        for (number, fleet) in self.fleets.iter_mut().enumerate() {
            let home = &self.homes[number];
            let isolated = |faults: &Faults| -> Vec<u16> {
                let place = |node| fault::Place::node(&self.world.regions[number], node);
                (1..=self.world.nodes).filter(|node| faults.is_isolated(&place(*node))).collect()
            };
            if isolated(before) != isolated(asked)
                && let Err(failure) = home.isolate(&isolated(asked))
            {
                tell(&failure.to_string());
            }
            for node in 1..=self.world.nodes {
                let name = fault::Place::node(&self.world.regions[number], node);
                let (was_paused, paused) = (before.is_paused(&name), asked.is_paused(&name));
                if was_paused != paused {
                    fleet.signal(
                        node,
                        if paused {
                            rustix::process::Signal::STOP
                        } else {
                            rustix::process::Signal::CONT
                        },
                    );
                }
                if before.is_full(&name) && !asked.is_full(&name) {
                    fleet.let_files_grow(node, true);
                }
                if before.is_rootless(&name) != asked.is_rootless(&name)
                    && let Err(failure) = home.take_root(node, asked.is_rootless(&name))
                {
                    tell(&failure.to_string());
                }
                if before.skew_of(&name) != asked.skew_of(&name) {
                    let file = self.homes[number].skew_file(node);
                    let text = asked.skew_of(&name).to_string();
                    if let Err(failure) = fs::write(&file, text).map_err(io_failure("write", &file))
                    {
                        tell(&failure.to_string());
                    }
                }
                let killed = asked.kills_of(&name) > before.kills_of(&name);
                let (was_down, down) = (before.is_down(&name), asked.is_down(&name));
                let result = match (was_down, down) {
                    (false, true) => fleet.kill(node).await,
                    (true, false) => fleet.start(node),
                    _ if asked.restarts_of(&name) > before.restarts_of(&name) => {
                        fleet.signal(node, rustix::process::Signal::TERM);
                        Ok(())
                    }
                    // It is started again as any node that ends by itself.
                    _ if killed => {
                        fleet.signal(node, rustix::process::Signal::KILL);
                        Ok(())
                    }
                    _ => Ok(()),
                };
                let result = match asked.losses_of(&name) > before.losses_of(&name) {
                    true => result.and_then(|()| home.lose_disk(node)),
                    false => result,
                };
                if let Err(failure) = result {
                    tell(&failure.to_string());
                }
            }
        }
    }
}
