//! Steps: each does one thing that there is, at a time within the drill.

use clap::{CommandFactory, Parser};

use super::Check;
use crate::cli::{Cli, Command};
use crate::dev::{DevCommand, fault};
use crate::drill::definition::{Attach, StepSpec, Text};
use crate::drill::text::{fill, words};
use crate::drill::wrong::nearest;

/// Commands of `keyward` that a step may be, by their first words.
const STEPS: [&str; 12] = [
    "key",
    "alias",
    "file",
    "principal",
    "quota",
    "cluster",
    "region",
    "root",
    "audit",
    "snapshot",
    "dev fault",
    "dev clock",
];

/// Whether a command begins with these words.
pub fn begins(words: &[String], with: &str) -> bool {
    let with: Vec<&str> = with.split_whitespace().collect();
    words.len() >= with.len() && with.iter().zip(words).all(|(with, word)| with == word)
}

impl Check<'_> {
    pub(super) fn step(&mut self, step: &StepSpec) {
        self.at(&step.at);
        if let Some(region) = &step.region {
            self.region(region);
        }
        if let Some(within) = &step.within {
            self.long(within);
        }
        if let Some(same) = &step.same
            && same.get_ref().len() != 2
        {
            self.fault(same, "two files are compared", None);
        }
        if let (Some(_), Some(fails)) = (&step.refused_with, &step.fails_with) {
            self.fault(fails, "a step is refused_with an error's name, or fails_with a text", None);
        }
        if let Some(save) = &step.save
            && (save.get_ref().contains('/') || save.get_ref().starts_with('.'))
        {
            self.fault(save, "a file is in the folder of steps: a plain name", None);
        }
        match (&step.run, &step.r#do, &step.metric) {
            (Some(run), None, None) => self.run(run),
            (None, Some(name), None) => self.own(name),
            (None, None, Some(metric)) if self.drill.attach.is_some() => {
                let hint = "name a command of your own that looks at it".to_owned();
                self.fault(
                    metric,
                    "where metrics are is not known of an attached deployment",
                    Some(hint),
                );
            }
            (None, None, Some(_)) => {}
            _ => {
                let hint = "run, do or metric".to_owned();
                self.fault(&step.at, "a step does one thing", Some(hint));
            }
        }
    }

    fn run(&mut self, run: &Text) {
        // Anything that may stand in a brace, so that what is left is looked at as a command.
        let (keys, principals) = (self.keys.clone(), self.principals.clone());
        let filled = fill(run.get_ref(), |name| match name {
            "leader" => Some("1".to_owned()),
            name if name.starts_with("config:") => Some("keyward.toml".to_owned()),
            name if keys.iter().any(|key| key == name) => {
                Some("mrk-00000000000000000000000000000000".to_owned())
            }
            name if principals.iter().any(|one| one == name) => {
                Some("arn:aws:iam::111122223333:user/x".to_owned())
            }
            _ => None,
        });
        let filled = match filled {
            Ok(filled) => filled,
            Err(name) => {
                let hint = nearest(&name, &[keys, principals].concat()).map_or_else(
                    || {
                        "{leader} is the Region's leading node, {NAME} a key's id or a principal's ARN, \
                         {config:REGION/NODE} a node's configuration"
                            .to_owned()
                    },
                    |near| format!("did you mean {{{near}}}?"),
                );
                return self.fault(run, format!("{{{name}}} is nothing known"), Some(hint));
            }
        };
        let words = words(&filled);
        match Cli::try_parse_from(
            std::iter::once("keyward").chain(words.iter().map(String::as_str)),
        ) {
            Err(error) => {
                let said = error.render().to_string();
                let first = said.lines().next().unwrap_or("no command of keyward").trim();
                let tip = said.lines().find(|line| line.contains("tip:"));
                let what = first.trim_start_matches("error: ").to_owned();
                self.fault(run, what, tip.map(|line| line.trim().to_owned()));
            }
            Ok(cli) => self.command(run, &words, &cli.command),
        }
    }

    fn command(&mut self, run: &Text, words: &[String], command: &Command) {
        if !STEPS.iter().any(|step| begins(words, step)) {
            let hint = STEPS.join(", ");
            return self.fault(run, "this is no step of a drill", Some(hint));
        }
        if let Some(attach) = &self.drill.attach {
            return self.allowed(run, words, attach);
        }
        if let (Command::Dev(DevCommand::Fault { command, .. }), Some(topology)) =
            (command, &self.drill.topology)
            && let Err(why) = fault::check(&self.regions, *topology.nodes.get_ref(), command)
        {
            self.fault(run, why.to_string(), None);
        }
    }

    /// An attached deployment is its owner's.
    fn allowed(&mut self, run: &Text, words: &[String], attach: &Attach) {
        if begins(words, "dev fault") {
            let hint = "name a command of your own in [[attach.command]], and do = it".to_owned();
            return self.fault(
                run,
                "faults of an attached deployment are its owner's own commands",
                Some(hint),
            );
        }
        if attach.allow.iter().all(|allowed| !begins(words, allowed.get_ref())) {
            let asked = words.iter().take(2).cloned().collect::<Vec<_>>().join(" ");
            let hint = format!("if it may be done: add \"{asked}\" to allow in [attach]");
            self.fault(run, format!("this deployment does not allow '{asked}'"), Some(hint));
        }
    }

    fn own(&mut self, name: &Text) {
        let Some(attach) = &self.drill.attach else {
            let hint = "run = a command of keyward, dev fault among them".to_owned();
            return self.fault(
                name,
                "commands of one's own are for an attached deployment",
                Some(hint),
            );
        };
        let own: Vec<String> =
            attach.command.iter().map(|own| own.name.get_ref().clone()).collect();
        self.known("command", name, &own);
        if own.contains(name.get_ref())
            && attach.allow.iter().all(|one| one.get_ref() != name.get_ref())
        {
            let hint =
                format!("if it may be done: add \"{}\" to allow in [attach]", name.get_ref());
            self.fault(
                name,
                format!("this deployment does not allow '{}'", name.get_ref()),
                Some(hint),
            );
        }
    }

    /// An entry of `allow`: a command of the owner's, or the first words of one of `keyward`.
    pub(super) fn allow(&mut self, entry: &Text, attach: &Attach) {
        if attach.command.iter().any(|own| own.name.get_ref() == entry.get_ref()) {
            return;
        }
        let own = attach.command.iter().map(|own| own.name.get_ref().clone());
        let (mut command, mut walked) = (Cli::command(), Vec::new());
        for word in entry.get_ref().split_whitespace() {
            let Some(next) = command.find_subcommand(word).cloned() else {
                let with = |name: &str| [&walked[..], &[name.to_owned()]].concat().join(" ");
                let names = command.get_subcommands().map(|sub| with(sub.get_name()));
                let names: Vec<String> = names.chain(own).collect();
                let hint =
                    nearest(entry.get_ref(), &names).map(|near| format!("did you mean {near}?"));
                let what = format!(
                    "'{}' is no command of keyward, and none of [[attach.command]]",
                    entry.get_ref()
                );
                return self.fault(entry, what, hint);
            };
            walked.push(word.to_owned());
            command = next;
        }
        if walked.is_empty() {
            self.fault(entry, "an empty entry would allow everything", None);
        }
    }
}
