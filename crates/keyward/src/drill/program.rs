//! A load that is a program of its own: it prints a line of JSON for each of its operations.
//!
//! `{"operation":"store","took_us":1234,"ended":"answered"}`: what it did, how long that took, and `answered`, AWS's error
//! name or a few words of its own. Lines that do not begin with a brace are the program's own business.

use std::borrow::Cow;
use std::process::Stdio;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::caller::{Records, since_us};
use super::definition::LoadSpec;
use super::history::CallRecord;
use super::stage::Stage;
use crate::error::Failure;

/// Names the key that the program is to use.
const KEY_ID: &str = "KEYWARD_KEY_ID";
/// A program that is told to stop ends within this.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// Operations of one program that are recorded at most.
const LINES_MAX: usize = 1_000_000;
/// Characters of what it tells that are kept.
const TOLD_MAX: usize = 100;

#[derive(Deserialize)]
struct Line {
    operation: String,
    took_us: u64,
    ended: String,
}

/// A program, running.
pub struct Program {
    source: usize,
    child: Child,
}

impl Program {
    /// Starts it, pointed at its Region and key. A program beside `keyward` is found first.
    pub fn start(
        source: usize,
        spec: &LoadSpec,
        command: &[String],
        stage: &Stage,
    ) -> Result<Self, Failure> {
        let (name, arguments) = command.split_first().ok_or_else(|| Failure::new("no program"))?;
        let beside = stage.program.with_file_name(name);
        let program = if !name.contains('/') && beside.exists() { beside } else { name.into() };
        let who = stage.identity(spec.principal.as_ref().map(|who| who.get_ref().as_str()));
        let child = Command::new(&program)
            .args(arguments)
            .envs(stage.place(spec.region.get_ref())?.environment(who))
            .env(KEY_ID, stage.key(spec.key.get_ref()))
            .current_dir(&stage.work)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let child = child.map_err(|error| {
            Failure::new(format!("load {}: {name} cannot be started: {error}", spec.name.get_ref()))
                .next("put the program beside keyward, or on the PATH, or name it by its path")
        })?;
        Ok(Self { source, child })
    }

    /// Records what it tells, until the drill's end; then stops it.
    pub async fn listen(mut self, began: Duration, lasts: Duration, records: Records) {
        let Some(out) = self.child.stdout.take() else { return };
        let mut lines = BufReader::new(out).lines();
        let listening = async {
            let mut told = 0;
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with('{') && told < LINES_MAX {
                    told += 1;
                    records.lock().push(record(self.source, &line, since_us(began)));
                }
            }
        };
        let left = (began + lasts).saturating_sub(RealEnv.boot_now());
        if RealEnv.timeout(left, listening).await.is_some() {
            let why = match self.child.wait().await {
                Ok(status) => format!("the program ended: {status}"),
                Err(error) => format!("the program ended: {error}"),
            };
            let ended = since_us(began);
            records.lock().push(call(self.source, "(program)".to_owned(), ended, 0, why));
            return;
        }
        let pid = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // One that has ended needs no telling.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        drop(RealEnv.timeout(STOP_PATIENCE, self.child.wait()).await);
    }
}

fn record(source: usize, line: &str, now_us: u64) -> CallRecord {
    let short = |text: String| text.chars().take(TOLD_MAX).collect::<String>();
    match serde_json::from_str::<Line>(line) {
        Ok(line) => call(source, short(line.operation), now_us, line.took_us, short(line.ended)),
        Err(error) => {
            call(source, "(line)".to_owned(), now_us, 0, short(format!("not understood: {error}")))
        }
    }
}

fn call(
    source: usize,
    operation: String,
    ended_us: u64,
    took_us: u64,
    ended: String,
) -> CallRecord {
    let began_us = ended_us.saturating_sub(took_us);
    CallRecord {
        source,
        operation: Cow::Owned(operation),
        began_us,
        sent_us: began_us,
        took_us: ended_us - began_us,
        subject: 0,
        value: 0,
        ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_operation_and_one_that_is_none_is_told() {
        let told = record(2, r#"{"operation":"store","took_us":1500,"ended":"answered"}"#, 10_000);
        assert_eq!((told.began_us, told.took_us, told.ended_us()), (8500, 1500, 10_000));
        assert!(told.answered() && told.operation == "store" && told.source == 2);
        let told = record(0, r#"{"operation":"store"}"#, 10_000);
        assert!(told.ended.starts_with("not understood: missing field"), "{}", told.ended);
    }
}
