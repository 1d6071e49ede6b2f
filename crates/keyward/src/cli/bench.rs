//! `keyward bench`: what a deployment does under load, whatever it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use keyward_client::{CallError, Client, ClientConfig};
use keyward_env::{Env, RealEnv};
use keyward_load::{
    Goal, Heading, IN_FLIGHT_MAX, Lane, Measured, Mix, Operation, Pace, Plan, Probe, Report,
    Schedule, Search, Sizes, Spacing, Stop, Target, duration, observe, percentile, prepare, run,
};
use keyward_proto::v1;

use self::live::Live;
use self::made::{Made, WHO_MAY, account_of, make_keys, make_principals};
use super::connect::ConnectArgs;
use super::output::{Format, sayln};
use crate::error::Failure;

mod live;
mod made;
mod shown;

const KEYS_MAX: usize = 10_000_000;
const PRINCIPALS_MAX: usize = 1000;
const CONNECTIONS_MAX: usize = 10_000;
/// A search begins here.
const SEARCH_FROM: f64 = 500.0;

/// How arrivals lie under a rate.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ArrivalsArg {
    /// As callers who know nothing of each other make them
    Poisson,
    /// Evenly
    Uniform,
}

/// Measure a deployment under load
#[derive(Args)]
#[command(after_help = "Examples:
  keyward bench                                        64 callers, each waiting for its answer, for 10 s
  keyward bench --rate 2000 --duration 30s             an open loop: calls begin when they should, come what may
  keyward bench --rate 500..5000:1m,5000:30s           a ramp, and then a steady rate
  keyward bench --search 'p99<5ms'                     the highest rate at which 99 % of the calls end within 5 ms
  keyward bench --mix encrypt=6,decrypt=3,generate-data-key=1 --size 32=9,4096=1 --keys 1000
  keyward bench --principals 20 --rate 20000 --save report.html --save report.json

An open loop measures latency from when a call was meant to begin, so a stall shows in all calls that it held up. With
an operator's certificate (--operator-cert) the report holds the CPU of the nodes, and what was admitted beside what
the quotas promise. Keys that the bench makes are scheduled for deletion at its end, principals disabled.")]
pub struct BenchCommand {
    /// Calls a second, in an open loop: 2000, 1000..5000 for a ramp, and 2000:30s,4000:30s for stages
    #[arg(long, value_name = "RATES", conflicts_with = "in_flight", allow_hyphen_values = true)]
    rate: Option<String>,
    /// Callers in a closed loop, each waiting for its answer [default: 64]
    #[arg(long, value_name = "CALLERS")]
    in_flight: Option<usize>,
    /// Look for the highest rate within a goal, such as 'p99<5ms'; begins at --rate; --duration is each try's [default: 5s]
    #[arg(long, value_name = "GOAL", conflicts_with = "in_flight")]
    search: Option<String>,
    /// How long it counts [default: 10s]
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Calls before anything counts
    #[arg(long, value_name = "TIME", default_value = "1s")]
    warm_up: String,
    /// Operations by weight: encrypt, decrypt, re-encrypt, generate-data-key, generate-data-key-without-plaintext,
    /// generate-random, describe-key, update-key-description, create-key
    #[arg(long, value_name = "MIX", default_value = "encrypt")]
    mix: String,
    /// Bytes of a plaintext, by weight: 32 or 32=9,4096=1
    #[arg(long, value_name = "SIZES", default_value = "32")]
    size: String,
    /// A key to use, by id, ARN or alias; may be given several times
    #[arg(long, value_name = "KEY", conflicts_with = "keys")]
    key_id: Vec<String>,
    /// Make so many keys to use
    #[arg(long, default_value_t = 1)]
    keys: usize,
    /// Leave the keys that were made as they are
    #[arg(long)]
    keep_keys: bool,
    /// Call as so many principals, user/keyward-bench-1 and so on, which an operator makes [default: as --cert]
    #[arg(long, value_name = "COUNT")]
    principals: Option<usize>,
    /// Connections in all; they begin at the endpoints in turn
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    connections: usize,
    /// Put each connection's calls on one stream (DataPlane.Stream)
    #[arg(long)]
    streams: bool,
    /// How arrivals lie under a rate
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Poisson)]
    arrivals: ArrivalsArg,
    /// Calls under way in an open loop, at most
    #[arg(long, value_name = "CALLS", default_value_t = 20_000)]
    in_flight_max: usize,
    /// The same seed draws the same calls
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the report is called
    #[arg(long, default_value = "keyward bench")]
    title: String,
    /// Write the report to a file: .html, .json, or .csv (second by second); may be given several times
    #[arg(long, value_name = "FILE")]
    save: Vec<PathBuf>,
}

impl From<keyward_load::PlanError> for Failure {
    fn from(error: keyward_load::PlanError) -> Self {
        Self::new(error.to_string()).next("`keyward bench --help` has examples")
    }
}

/// What was asked for, understood.
struct Asked {
    plan: Plan,
    goal: Option<Goal>,
    from: f64,
    mix: Mix,
    sizes: Sizes,
}

impl BenchCommand {
    fn understand(&self, patience: Duration) -> Result<Asked, Failure> {
        let mix = Mix::parse(&self.mix)?;
        let sizes = Sizes::parse(&self.size)?;
        let default = if self.search.is_some() { "5s" } else { "10s" };
        let lasts = duration(self.duration.as_deref().unwrap_or(default))?;
        let goal = self.search.as_deref().map(Goal::parse).transpose()?;
        let spacing = match self.arrivals {
            ArrivalsArg::Poisson => Spacing::Poisson,
            ArrivalsArg::Uniform => Spacing::Uniform,
        };
        let in_flight_max = self.in_flight_max;
        let open = |schedule| Pace::Open { schedule, spacing, in_flight_max };
        let mut from = SEARCH_FROM;
        let pace = match (&self.rate, &goal) {
            (Some(rate), Some(_)) => {
                from =
                    rate.parse().ok().filter(|rate: &f64| (1.0..1e7).contains(rate)).ok_or_else(
                        || {
                            Failure::new(format!(
                                "a search begins at one rate, such as 1000, and not at '{rate}'"
                            ))
                        },
                    )?;
                open(Schedule::steady(from, lasts))
            }
            (Some(rate), None) => open(Schedule::parse(rate, lasts)?),
            (None, Some(_)) => open(Schedule::steady(from, lasts)),
            (None, None) => Pace::Closed { in_flight: self.in_flight.unwrap_or(64), lasts },
        };
        let plan = Plan { pace, warm_up: duration(&self.warm_up)?, seed: self.seed, patience };
        plan.check()?;
        self.check(&mix)?;
        Ok(Asked { plan, goal, from, mix, sizes })
    }

    /// Finds what does not go together, before anything is done.
    fn check(&self, mix: &Mix) -> Result<(), Failure> {
        let within = |name: &str, value: usize, most: usize| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(Failure::new(format!("--{name} {value} is out of range: 1 to {most}"))),
        };
        within("keys", self.keys, KEYS_MAX)?;
        within("connections", self.connections, CONNECTIONS_MAX)?;
        within("principals", self.principals.unwrap_or(1), PRINCIPALS_MAX)?;
        within("in-flight-max", self.in_flight_max, IN_FLIGHT_MAX)?;
        if let Some(off) = mix.operations().find(|operation| self.streams && !operation.streams()) {
            return Err(Failure::new(format!(
                "an impossible mix: {} cannot go on a stream",
                off.name()
            ))
            .next("leave it out of --mix, or leave out --streams"));
        }
        let changing = |operation: &Operation| *operation == Operation::UpdateKeyDescription;
        if !self.key_id.is_empty() && mix.operations().any(|operation| changing(&operation)) {
            return Err(Failure::new(
                "an impossible mix: update-key-description would change the keys of --key-id",
            )
            .next("leave out --key-id: the bench then makes keys of its own"));
        }
        for path in &self.save {
            format_of(path)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) {
                return Err(Failure::new(format!(
                    "{} cannot be written: there is no such folder",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

/// How a report is written, by the file's name.
fn format_of(path: &Path) -> Result<fn(&Report) -> String, Failure> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => Ok(Report::html),
        Some("csv") => Ok(Report::csv),
        Some("json") => Ok(shown::json),
        _ => Err(Failure::new(format!(
            "what should {} be? A report is .html, .json or .csv",
            path.display()
        ))),
    }
}

pub async fn bench(
    connect: &ConnectArgs,
    format: Format,
    command: BenchCommand,
) -> Result<(), Failure> {
    let asked = command.understand(Duration::from_secs(connect.timeout))?;
    let config = connect.config()?;
    let mut warnings = reach(&config).await?;
    let operator = Arc::new(connect.operator()?);
    let operator = match observe(&operator).await {
        Ok(_) => Some(operator),
        Err(error) => {
            warnings.push(format!(
                "the Region was not asked for its CPU and its quotas, since that needs an operator's certificate (--operator-cert, --operator-key): {error}"
            ));
            None
        }
    };
    let stop = Stop::default();
    stop_when_told(stop.clone());
    let mut made = Made::default();
    let done =
        measure(&command, asked, &config, operator.as_ref(), warnings, &stop, &mut made).await;
    let cleaned = made.clean_up(&config, operator.as_deref(), command.keep_keys).await;
    let report = done?;
    match format {
        Format::Json => sayln!("{}", shown::json(&report)),
        Format::Table => shown::table(&report),
    }
    for path in &command.save {
        std::fs::write(path, format_of(path)?(&report))
            .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))?;
    }
    cleaned?;
    match (report.answered, report.refusals.first()) {
        (0, Some(most)) => Err(Failure::new(format!("no call was answered: {}", most.reason))),
        (0, None) => Err(Failure::new("no call was answered")),
        _ => Ok(()),
    }
}

/// Ends the load at the first Ctrl-C, and the program at the second.
fn stop_when_told(stop: Stop) {
    RealEnv.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            eprintln!("\nstopping: the report is about what was measured so far");
            stop.tell();
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        }
    });
}

/// Asks every endpoint whether somebody is there; some may be away.
async fn reach(config: &ClientConfig) -> Result<Vec<String>, Failure> {
    let (mut away, mut last) = (Vec::new(), None);
    for endpoint in &config.endpoints {
        let config = ClientConfig { endpoints: vec![endpoint.clone()], ..config.clone() };
        let client = Client::new(&config)?;
        let request = v1::ListKeysRequest { limit: Some(1), ..v1::ListKeysRequest::default() };
        let call = client.key_once(request, |mut c, r| async move { c.list_keys(r).await });
        // A refusal is an answer.
        match call.await {
            Err(error) if error.code.is_none() => {
                away.push(format!("an endpoint is away: {error}"));
                last = Some(error);
            }
            _ => {}
        }
    }
    match last {
        Some(error) if away.len() == config.endpoints.len() => Err(error.into()),
        _ => Ok(away),
    }
}

async fn measure(
    command: &BenchCommand,
    asked: Asked,
    config: &ClientConfig,
    operator: Option<&Arc<Client>>,
    warnings: Vec<String>,
    stop: &Stop,
    made: &mut Made,
) -> Result<Report, Failure> {
    let own = Client::new(config)?;
    let keys = if command.key_id.is_empty() {
        let live = Live::count("making keys", command.keys);
        make_keys(config, command.keys, &mut made.keys, &live, stop).await?;
        made.keys.clone()
    } else {
        command.key_id.clone()
    };
    let configs = match command.principals {
        None => vec![config.clone()],
        Some(count) => {
            let operator = operator.ok_or_else(|| {
                Failure::new("--principals needs an operator, who makes them")
                    .next("give --operator-cert and --operator-key")
            })?;
            let account = account_of(&own, &keys[0]).await?;
            let changes = asked.mix.operations().any(Operation::changes);
            let live = Live::count("making principals", count);
            let whose = (account.as_str(), changes);
            make_principals(operator, config, whose, count, &mut made.principals, &live).await?
        }
    };
    let lanes = lanes(&configs, command.connections, command.streams)?;
    let live = Live::count("encrypting what will be decrypted", keys.len());
    let (mix, sizes) = (asked.mix.clone(), asked.sizes.clone());
    let target = prepare(lanes, keys, mix, sizes, |so_far| live.at(so_far.done)).await;
    drop(live);
    let target = target.map_err(|error| {
        let refused = error.code.as_deref() == Some("AccessDeniedException");
        let failure = Failure::from(error);
        if refused { failure.next(WHO_MAY) } else { failure }
    })?;
    first_calls(&target, &asked.mix).await?;
    let date = rfc3339();
    let offered = offer(&asked, &target, operator, stop).await;
    made.keys.extend(target.created());
    let (plan, measured, search) = offered?;
    let heading = Heading {
        title: command.title.clone(),
        date,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: shown::again(),
        asked: shown::asked(command, &plan, config),
        warnings,
        cores: shown::cores(),
    };
    let mut report = Report::new(heading, &plan, &measured);
    if let Some((search, goal)) = search.zip(asked.goal) {
        shown::searched(&mut report, search, &goal);
    }
    Ok(report)
}

/// One call of each kind, so that what is refused anyway is told before the load, and not a million times.
async fn first_calls(target: &Arc<Target>, mix: &Mix) -> Result<(), Failure> {
    for operation in mix.operations().filter(|operation| *operation != Operation::CreateKey) {
        let error = match target.try_once(operation).await {
            Err(error) if error.throttle.is_none() => error,
            _ => continue,
        };
        let denied = error.code.as_deref() == Some("AccessDeniedException");
        let message = format!("{} is refused: {}", operation.aws_name(), error.message);
        let failure = Failure::from(CallError { message, ..error });
        return Err(if denied { failure.next(WHO_MAY) } else { failure });
    }
    Ok(())
}

/// The load, or as many as a search needs: the last plan, what came of it, and the search.
async fn offer(
    asked: &Asked,
    target: &Arc<Target>,
    operator: Option<&Arc<Client>>,
    stop: &Stop,
) -> Result<(Plan, Measured, Option<Search>), Failure> {
    let Some(goal) = &asked.goal else {
        let mut live = Live::load(asked.plan.lasts(), None);
        let told = |second: &_| live.second(second);
        let measured =
            run(Arc::clone(target), &asked.plan, operator.cloned(), stop.clone(), told).await?;
        return Ok((asked.plan.clone(), measured, None));
    };
    let mut search = Search::from(asked.from);
    let mut best: Option<(Plan, Measured)> = None;
    let mut last = None;
    while let Some(rate) = search.next_rate().filter(|_| !stop.is_told()) {
        let mut plan = asked.plan.clone();
        if let Pace::Open { schedule, .. } = &mut plan.pace {
            *schedule = Schedule::steady(rate, schedule.lasts());
        }
        let mut live = Live::load(plan.lasts(), Some(rate));
        let told = |second: &_| live.second(second);
        let measured =
            run(Arc::clone(target), &plan, operator.cloned(), stop.clone(), told).await?;
        drop(live);
        if measured.cut_short {
            last = last.or(Some((plan, measured)));
            break;
        }
        let probe = probed(rate, &plan, &measured, goal);
        shown::tried(&probe);
        let higher = best.as_ref().is_none_or(|(plan, _)| plan_rate(plan) < rate);
        let held = probe.held;
        search.tell(probe);
        if held && higher {
            best = Some((plan, measured));
        } else {
            last = Some((plan, measured));
        }
    }
    let (plan, measured) = best
        .or(last)
        .ok_or_else(|| Failure::new("the search was stopped before its first try ended"))?;
    Ok((plan, measured, Some(search)))
}

fn plan_rate(plan: &Plan) -> f64 {
    match &plan.pace {
        Pace::Open { schedule, .. } => schedule.offers() / schedule.lasts().as_secs_f64(),
        Pace::Closed { .. } => 0.0,
    }
}

fn probed(rate: f64, plan: &Plan, measured: &Measured, goal: &Goal) -> Probe {
    let heading = Heading { cores: shown::cores(), ..Heading::default() };
    let report = Report::new(heading, plan, measured);
    let bad = report.throttled + report.refused + report.failed + report.held_back;
    let mut probe = Probe {
        rate,
        // Arrivals are drawn: what was meant to begin is not exactly the rate.
        goodput: rate * report.answered as f64 / report.meant.max(1) as f64,
        latency_ms: percentile(measured, goal.quantile),
        bad_per_mille: 1000.0 * bad as f64 / report.meant.max(1) as f64,
        client_is_limit: report.client.is_limit,
        held: false,
    };
    probe.judge(goal);
    probe
}

/// Connections: each begins at another endpoint, and goes to the next where one is away.
fn lanes(
    configs: &[ClientConfig],
    connections: usize,
    streams: bool,
) -> Result<Vec<Lane>, Failure> {
    let lane = |number: usize| {
        let mut config = configs[number % configs.len()].clone();
        let first = number / configs.len() % config.endpoints.len();
        config.endpoints.rotate_left(first);
        Ok(Lane::new(Arc::new(Client::new(&config)?), streams))
    };
    (0..connections.max(configs.len())).map(lane).collect()
}

/// The date and time.
fn rfc3339() -> String {
    let now_ms = RealEnv.wall_now_ms();
    let at = prost_types::Timestamp { seconds: now_ms / 1000, nanos: 0 };
    super::output::date(Some(&at))
}
