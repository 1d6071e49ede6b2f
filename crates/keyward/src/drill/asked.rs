//! What a step asked for, as far as later calls can tell whether it is in force.

use std::collections::BTreeMap;

use clap::Parser;
use keyward_check::End;
use keyward_check::key::OfKey;
use keyward_quota::{Limit, Window};

use super::history::Event;
use super::text::words;
use crate::cli::keys::KeyCommand;
use crate::cli::principals::PrincipalCommand;
use crate::cli::quotas::QuotaCommand;
use crate::cli::{Cli, Command};
use crate::dev::DevCommand;

/// Whose calls a quota counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Those of one principal, or of one account.
    One(String),
    EachPrincipal,
    EachAccount,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Something of a key: in the step's Region, or in all.
    Key { id: String, of: OfKey, everywhere: bool },
    /// A principal is let in, or not.
    Principal { arn: String, let_in: bool, everywhere: bool },
    /// A limit a second for calls that use keys; none where it is taken away.
    Quota { holder: Holder, limit: Option<Limit> },
    /// Time goes on: keys whose date has come go.
    Clock,
    /// A Region goes on with what is left: acknowledged changes may be lost.
    GoesOn { region: Option<String> },
    /// Nothing of that.
    Other,
}

/// What an event asked for.
pub fn asked(event: &Event) -> Asked {
    let Some(command) = event.command.strip_prefix("keyward ") else { return Asked::Other };
    // Snapshots are known by their words.
    if command.starts_with("snapshot restore") {
        return Asked::GoesOn { region: Some(event.region.clone()) };
    }
    let words = std::iter::once("keyward".to_owned()).chain(words(command));
    let Ok(cli) = Cli::try_parse_from(words) else { return Asked::Other };
    match cli.command {
        Command::Key(command) => of_key(command),
        Command::Principal(PrincipalCommand::Disable { arn, following }) => {
            Asked::Principal { arn, let_in: false, everywhere: following.everywhere() }
        }
        Command::Principal(PrincipalCommand::Enable { arn, following }) => {
            Asked::Principal { arn, let_in: true, everywhere: following.everywhere() }
        }
        Command::Quota(command) => of_quota(&command),
        Command::Dev(DevCommand::Clock(_)) => Asked::Clock,
        Command::Cluster(crate::cli::cluster::ClusterCommand::Recover(_)) => {
            Asked::GoesOn { region: Some(event.region.clone()) }
        }
        Command::Region(crate::cli::regions::RegionCommand::Promote { .. }) => {
            Asked::GoesOn { region: None }
        }
        _ => Asked::Other,
    }
}

fn of_key(command: KeyCommand) -> Asked {
    let (id, of, everywhere) = match command {
        KeyCommand::Enable { key_id, all_regions } => (key_id, OfKey::Enable, all_regions),
        KeyCommand::Disable { key_id, all_regions } => (key_id, OfKey::Disable, all_regions),
        KeyCommand::ScheduleDeletion { key_id, .. } => (key_id, OfKey::Schedule, false),
        KeyCommand::CancelDeletion { key_id } => (key_id, OfKey::Cancel, false),
        KeyCommand::Rotate { key_id } => (key_id, OfKey::Rotate, false),
        KeyCommand::SetDescription { key_id, .. } => (key_id, OfKey::Describe, false),
        _ => return Asked::Other,
    };
    Asked::Key { id, of, everywhere }
}

fn of_quota(command: &QuotaCommand) -> Asked {
    let Some((name, limits)) = command.asked() else { return Asked::Other };
    if !matches!(name.covers.as_str(), "all" | "symmetric-crypto") {
        return Asked::Other;
    }
    let holder = match (name.scope.as_str(), name.holder) {
        (_, Some(one)) => Holder::One(one),
        ("each-account", None) => Holder::EachAccount,
        _ => Holder::EachPrincipal,
    };
    let limit = limits.iter().find(|limit| limit.window == "second").map(|limit| Limit {
        window: Window::Second,
        limit: limit.limit,
        burst: limit.burst.unwrap_or(limit.limit),
    });
    Asked::Quota { holder, limit }
}

/// How it ended, for whoever asked: a step that failed may have taken effect.
pub fn end(event: &Event) -> End {
    match (event.done, &event.refused) {
        (true, None) => End::Acknowledged(event.ended_us),
        (true, Some(_)) => End::Void,
        (false, _) => End::Unknown,
    }
}

/// Names of keys by their ids, and of principals by their ARNs.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub keys: BTreeMap<String, String>,
    pub principals: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str) -> Asked {
        asked(&Event {
            began_us: 1,
            ended_us: 2,
            name: None,
            region: "us-east-1".to_owned(),
            command: command.to_owned(),
            done: true,
            refused: None,
            said: String::new(),
        })
    }

    #[test]
    fn commands_are_understood_as_they_were_run() {
        let key = |of, everywhere| Asked::Key { id: "k".to_owned(), of, everywhere };
        assert_eq!(of("keyward key disable k --all-regions"), key(OfKey::Disable, true));
        assert_eq!(of("keyward key schedule-deletion k --days 7"), key(OfKey::Schedule, false));
        assert_eq!(of("keyward dev clock advance 8d"), Asked::Clock);
        let arn = "arn:aws:iam::111122223333:user/a".to_owned();
        let told = of(&format!("keyward principal disable {arn}"));
        assert_eq!(told, Asked::Principal { arn: arn.clone(), let_in: false, everywhere: false });
        let told = of(&format!("keyward quota set --principal {arn} --limit 50/s --burst 70"));
        let limit = Limit { window: Window::Second, limit: 50, burst: 70 };
        assert_eq!(told, Asked::Quota { holder: Holder::One(arn), limit: Some(limit) });
        let told = of("keyward quota delete --each-principal");
        assert_eq!(told, Asked::Quota { holder: Holder::EachPrincipal, limit: None });
        assert_eq!(of("keyward region promote us-east-1"), Asked::GoesOn { region: None });
        assert_eq!(of("pull-plug: ssh x"), Asked::Other);
        assert_eq!(of("keyward key list"), Asked::Other);
    }
}
