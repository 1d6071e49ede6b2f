//! The processes of a Region's nodes.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use tokio::process::{Child, Command};

use super::{Home, LOOK_AGAIN, READY_PATIENCE, RESTART_AFTER, io_failure, suffer, tell};
use crate::error::Failure;

/// Node processes.
pub struct Fleet {
    home: Home,
    program: PathBuf,
    children: Vec<Option<Child>>,
}

impl Fleet {
    /// A fleet with no process running.
    pub fn new(home: &Home) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|e| Failure::new(format!("cannot find this program: {e}")))?;
        let children = (0..home.plan.nodes).map(|_| None).collect();
        Ok(Self { home: home.clone(), program, children })
    }

    /// Starts a node; its log goes to `node.log` in its folder.
    pub fn start(&mut self, node: u16) -> Result<(), Failure> {
        let path = self.home.node_folder(node).join("node.log");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io_failure("write", &path))?;
        let child = Command::new(&self.program)
            .env(suffer::SKEW_FILE, self.home.skew_file(node))
            .env(suffer::ISOLATED_FILE, self.home.isolated_file())
            .args(["server", "--with-parent", "--config"])
            .arg(self.home.config_path(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C reaches the supervisor alone, which stops the nodes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Failure::new(format!("node {node} cannot be started: {e}")))?;
        self.children[usize::from(node) - 1] = Some(child);
        Ok(())
    }

    /// Starts every node and waits until each door takes connections.
    pub async fn start_all(&mut self) -> Result<(), Failure> {
        let end = RealEnv.boot_now() + READY_PATIENCE;
        for node in 1..=self.home.plan.nodes {
            self.start(node)?;
        }
        for node in 1..=self.home.plan.nodes {
            self.wait_door(node, end).await?;
        }
        Ok(())
    }

    /// Waits until a node's door takes connections; a node that ends instead is told with its last words.
    pub async fn wait_door(&mut self, node: u16, end: Duration) -> Result<(), Failure> {
        let endpoint = self.home.endpoint(node);
        while tokio::net::TcpStream::connect(&endpoint).await.is_err() {
            if let Some(child) = &mut self.children[usize::from(node) - 1]
                && let Ok(Some(status)) = child.try_wait()
            {
                return Err(self.last_words(node, status));
            }
            if RealEnv.boot_now() >= end {
                return Err(Failure::new(format!("node {node} did not open its door in time")));
            }
            RealEnv.sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn last_words(&self, node: u16, status: std::process::ExitStatus) -> Failure {
        let path = self.home.node_folder(node).join("node.log");
        let log = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let start = lines.iter().rposition(|line| line.starts_with("error:"));
        let last = &lines[start.unwrap_or(lines.len().saturating_sub(3))..];
        Failure::new(format!("node {node} ended ({status}): {}", last.join("\n  ")))
            .next(format!("its log is {}", path.display()))
    }

    /// Kills a node without a word, as a power cut would.
    pub async fn kill(&mut self, node: u16) -> Result<(), Failure> {
        if let Some(mut child) = self.children[usize::from(node) - 1].take() {
            child
                .kill()
                .await
                .map_err(|e| Failure::new(format!("cannot kill node {node}: {e}")))?;
        }
        Ok(())
    }

    /// Sends a node a signal, if it runs.
    pub fn signal(&self, node: u16, signal: rustix::process::Signal) {
        let child = self.children[usize::from(node) - 1].as_ref();
        if let Some(pid) = child
            .and_then(Child::id)
            .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
        {
            // One that has ended hears nothing.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Sends every node a signal.
    pub fn tell_all(&self, signal: rustix::process::Signal) {
        (1..=self.home.plan.nodes).for_each(|node| self.signal(node, signal));
    }

    /// Lets a node's files grow, or not: then every write fails.
    pub fn let_files_grow(&self, node: u16, grow: bool) {
        let child = self.children[usize::from(node) - 1].as_ref();
        let pid = child.and_then(Child::id);
        if let Some(pid) = pid.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let current = if grow { None } else { Some(0) };
            let limit = rustix::process::Rlimit { current, maximum: None };
            let fsize = rustix::process::Resource::Fsize;
            match rustix::process::prlimit(Some(pid), fsize, limit) {
                // One that has ended writes nothing.
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(why) => {
                    tell(&format!("node {node} cannot be given a limit for its files: {why}"))
                }
            }
        }
    }

    /// How a node has ended, if it has.
    pub fn has_ended(&mut self, node: u16) -> Option<std::process::ExitStatus> {
        let child = self.children[usize::from(node) - 1].as_mut();
        child.and_then(|child| child.try_wait().ok().flatten())
    }

    /// Tells every node to stop, and waits.
    pub async fn stop_all(&mut self) {
        for child in self.children.iter().flatten() {
            if let Some(pid) =
                child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
            {
                // A node that has ended already needs no telling.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        for slot in &mut self.children {
            if let Some(mut child) = slot.take()
                && RealEnv.timeout(Duration::from_secs(8), child.wait()).await.is_none()
            {
                drop(child.kill().await);
            }
        }
    }

    /// Starts nodes again that ended by themselves, for ever.
    pub(super) async fn keep_up(&mut self) -> Failure {
        loop {
            for node in 1..=self.home.plan.nodes {
                let ended = self.children[usize::from(node) - 1]
                    .as_mut()
                    .and_then(|child| child.try_wait().ok().flatten());
                if let Some(status) = ended {
                    tell(&format!("node {node} ended ({status}); it is started again"));
                    RealEnv.sleep(RESTART_AFTER).await;
                    if let Err(failure) = self.start(node) {
                        return failure;
                    }
                }
            }
            RealEnv.sleep(LOOK_AGAIN * 8).await;
        }
    }
}
