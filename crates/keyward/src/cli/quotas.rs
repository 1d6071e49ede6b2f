//! `keyward quota`: how many calls an account or a principal may make.

use clap::{Args, Subcommand};
use keyward_client::{Client, Repeat};
use keyward_proto::v1;
use serde_json::{Value, json};

use super::output::{Format, done, list, one};
use crate::error::Failure;

#[derive(Subcommand)]
pub enum QuotaCommand {
    /// Set a quota, in the place of the one for the same calls
    #[command(after_help = "Examples:
  keyward quota set --each-principal --limit 500/s
      500 calls a second for every principal without a quota of its own, and 500 at once after a quiet while
  keyward quota set --principal arn:aws:iam::111122223333:user/orders --covers symmetric-crypto \\
      --limit 2000/s --burst 4000 --limit 60000/m --limit 20000000/d
  keyward quota set --account 111122223333 --covers CreateKey --limit 5/s

All limits hold side by side, and a call counts against its principal's quotas and against its account's. Minutes
and days are the Region's (UTC).")]
    Set {
        #[command(flatten)]
        name: Name,
        /// Calls in a window: 500/s, 10000/m or 1000000/d; may be given once for each window
        #[arg(long = "limit", required = true, value_name = "CALLS/WINDOW", value_parser = parse_limit, allow_hyphen_values = true)]
        limits: Vec<Limit>,
        /// Calls at once after a quiet while, with a limit a second; what a second admits, if not given
        #[arg(long)]
        burst: Option<u64>,
    },
    /// Show one quota
    #[command(after_help = "Example:\n  keyward quota get --each-principal")]
    Get {
        #[command(flatten)]
        name: Name,
    },
    /// List all quotas
    List,
    /// Remove a quota
    #[command(
        after_help = "Example:\n  keyward quota delete --account 111122223333 --covers CreateKey"
    )]
    Delete {
        #[command(flatten)]
        name: Name,
    },
    /// Show what was counted, and which node holds how much of each quota
    Usage,
    /// Show what is left of each quota with one node or one Region less
    Plan,
    /// AWS's published quotas
    #[command(subcommand)]
    Profile(ProfileCommand),
}

#[derive(Subcommand)]
pub enum ProfileCommand {
    /// List the profiles
    List,
    /// Set one Region's quotas for each account, in the place of another profile's
    #[command(after_help = "Example:\n  keyward quota profile apply aws-us-east-1")]
    Apply {
        /// As `keyward quota profile list` shows it
        profile: String,
    },
}

/// Which quota.
#[derive(Args)]
pub struct Name {
    #[command(flatten)]
    scope: Scope,
    /// all, symmetric-crypto, or an operation that has a quota of its own, such as CreateKey
    #[arg(long, default_value = "all")]
    covers: String,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Scope {
    /// Every account without a quota of its own
    #[arg(long)]
    each_account: bool,
    /// One account
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// Every principal without a quota of its own
    #[arg(long)]
    each_principal: bool,
    /// One principal
    #[arg(long, value_name = "ARN")]
    principal: Option<String>,
}

/// A limit as typed.
#[derive(Clone, Debug)]
pub struct Limit {
    window: String,
    limit: u64,
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    let wrong =
        || format!("'{text}' is no limit: calls and a window, such as 500/s, 10000/m, 1000000/d");
    let (limit, window) = text.split_once('/').ok_or_else(wrong)?;
    let limit = limit.parse().map_err(|_| wrong())?;
    let window: keyward_quota::Window = window.parse()?;
    Ok(Limit { window: window.name().to_owned(), limit })
}

impl QuotaCommand {
    /// Which quota it sets, and to what; no limits where it takes one away.
    pub fn asked(&self) -> Option<(v1::QuotaName, Vec<v1::QuotaLimit>)> {
        match self {
            Self::Set { name, limits, burst } => Some((name.told(), with_burst(limits, *burst))),
            Self::Delete { name } => Some((name.told(), Vec::new())),
            _ => None,
        }
    }
}

fn with_burst(limits: &[Limit], burst: Option<u64>) -> Vec<v1::QuotaLimit> {
    let told = |limit: &Limit| v1::QuotaLimit {
        window: limit.window.clone(),
        limit: limit.limit,
        burst: burst.filter(|_| limit.window == "second"),
    };
    limits.iter().map(told).collect()
}

impl Name {
    fn told(&self) -> v1::QuotaName {
        let Scope { each_account, account, each_principal: _, principal } = &self.scope;
        let (scope, holder) = match (each_account, account, principal) {
            (true, ..) => ("each-account", None),
            (_, Some(id), _) => ("account", Some(id.clone())),
            (_, _, Some(arn)) => ("principal", Some(arn.clone())),
            _ => ("each-principal", None),
        };
        v1::QuotaName { scope: scope.to_owned(), holder, covers: self.covers.clone() }
    }
}

pub async fn quota(client: &Client, format: Format, command: QuotaCommand) -> Result<(), Failure> {
    match command {
        QuotaCommand::Set { name, limits, burst } => {
            let limits = with_burst(&limits, burst);
            if burst.is_some() && limits.iter().all(|limit| limit.burst.is_none()) {
                return Err(Failure::new("a burst goes with a limit a second")
                    .next("add --limit CALLS/s, or leave --burst out"));
            }
            let request = v1::SetQuotaRequest { name: Some(name.told()), limits };
            let set = client
                .quota(Repeat::IfUnsent, request, |mut c, r| async move { c.set_quota(r).await })
                .await?;
            show(format, &set.quota.unwrap_or_default());
        }
        QuotaCommand::Get { name } => {
            let name = name.told();
            let quotas = all(client).await?;
            let found = quotas.iter().find(|quota| quota.name.as_ref() == Some(&name));
            let found = found.ok_or_else(|| {
                Failure::new(format!("there is no such quota: {}", text(Some(&name))))
                    .next("`keyward quota list` shows them, `keyward quota set` makes one")
            })?;
            show(format, found);
        }
        QuotaCommand::List => {
            let rows: Vec<_> = all(client).await?.iter().map(row).collect();
            list(format, "Quotas", &["Scope", "Covers", "Limits", "Burst", "Profile"], &rows);
        }
        QuotaCommand::Delete { name } => {
            let request = v1::DeleteQuotaRequest { name: Some(name.told()) };
            client
                .quota(Repeat::IfUnsent, request, |mut c, r| async move { c.delete_quota(r).await })
                .await?;
            done(format, "deleted: nothing is counted against it any more");
        }
        QuotaCommand::Usage => usage(client, format).await?,
        QuotaCommand::Plan => plan(client, format).await?,
        QuotaCommand::Profile(ProfileCommand::List) => {
            let request = v1::ListQuotaProfilesRequest {};
            let listed =
                client
                    .quota(Repeat::Safe, request, |mut c, r| async move {
                        c.list_quota_profiles(r).await
                    })
                    .await?;
            let rows: Vec<_> = listed
                .profiles
                .into_iter()
                .map(|p| vec![json!(p.name), json!(p.symmetric_per_second), json!(p.as_of)])
                .collect();
            list(format, "Profiles", &["Name", "SymmetricPerSecond", "AsOf"], &rows);
        }
        QuotaCommand::Profile(ProfileCommand::Apply { profile }) => {
            let request = v1::ApplyQuotaProfileRequest { profile: profile.clone() };
            let applied = client
                .quota(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.apply_quota_profile(r).await
                })
                .await?;
            done(format, &format!("{} quotas of {profile} are in force", applied.quotas));
        }
    }
    Ok(())
}

async fn all(client: &Client) -> Result<Vec<v1::Quota>, Failure> {
    let request = v1::ListQuotasRequest {};
    let listed = client
        .quota(Repeat::Safe, request, |mut c, r| async move { c.list_quotas(r).await })
        .await?;
    Ok(listed.quotas)
}

async fn figures(client: &Client) -> Result<v1::GetQuotaUsageResponse, Failure> {
    let request = v1::GetQuotaUsageRequest {};
    let usage = client
        .quota(Repeat::Safe, request, |mut c, r| async move { c.get_quota_usage(r).await })
        .await?;
    for node in &usage.missing_nodes {
        eprintln!("node {node} did not answer: what it counts is missing here");
    }
    Ok(usage)
}

async fn usage(client: &Client, format: Format) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for bucket in figures(client).await?.buckets {
        for node in &bucket.nodes {
            rows.push(vec![
                json!(bucket.holder),
                covers(bucket.quota.as_ref()),
                json!(bucket.limit.as_ref().map(limit_text)),
                json!(bucket.used),
                json!(node.node_id),
                json!(node.share),
                json!(node.tokens),
                json!(node.admitted),
                json!(node.refused),
            ]);
        }
    }
    let columns =
        ["Holder", "Covers", "Limit", "Used", "Node", "Share", "Tokens", "Admitted", "Refused"];
    list(format, "Usage", &columns, &rows);
    Ok(())
}

/// Quotas do not cross Regions: without this one, nothing of its quotas is left.
async fn plan(client: &Client, format: Format) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for bucket in figures(client).await?.buckets {
        let limit = json!(bucket.limit.as_ref().map(limit_text));
        let mut row = |lost: Value, at_once: u64, later: u64| {
            rows.push(vec![
                json!(bucket.holder),
                covers(bucket.quota.as_ref()),
                limit.clone(),
                lost,
                json!(at_once),
                json!(later),
            ]);
        };
        for line in &bucket.without {
            row(json!(format!("node {}", line.node_id)), line.at_once, line.later);
        }
        row(json!("this Region"), 0, 0);
    }
    list(format, "Plan", &["Holder", "Covers", "Limit", "Without", "AtOnce", "AfterLease"], &rows);
    Ok(())
}

fn limit_text(limit: &v1::QuotaLimit) -> String {
    format!("{} a {}", limit.limit, limit.window)
}

fn text(name: Option<&v1::QuotaName>) -> String {
    name.map_or_else(String::new, |name| match &name.holder {
        Some(holder) => format!("{} {holder}", name.scope),
        None => name.scope.clone(),
    })
}

fn covers(name: Option<&v1::QuotaName>) -> Value {
    json!(name.map(|name| &name.covers))
}

fn burst(quota: &v1::Quota) -> Value {
    json!(quota.limits.iter().find_map(|limit| limit.burst))
}

fn limits(quota: &v1::Quota) -> Value {
    json!(quota.limits.iter().map(limit_text).collect::<Vec<_>>())
}

fn row(quota: &v1::Quota) -> Vec<Value> {
    let name = quota.name.as_ref();
    vec![json!(text(name)), covers(name), limits(quota), burst(quota), json!(quota.profile)]
}

fn show(format: Format, quota: &v1::Quota) {
    let name = quota.name.as_ref();
    one(
        format,
        &[
            ("Scope", json!(text(name))),
            ("Covers", covers(name)),
            ("Limits", limits(quota)),
            ("Burst", burst(quota)),
            ("Profile", json!(quota.profile)),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_typed_as_calls_and_a_window() {
        let limit = parse_limit("500/s").expect("fine");
        assert_eq!((limit.limit, limit.window.as_str()), (500, "second"));
        for wrong in ["500", "500/y", "-5/s", "x/s", "/s"] {
            assert!(parse_limit(wrong).unwrap_err().contains('s'), "{wrong}");
        }
    }
}
