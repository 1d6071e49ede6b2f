//! A node's record of its roots, on its disk, in the steps in which `crates/keyward/src/roots.rs` writes it:
//! the new record takes the place of the old one, then the folder is synced. The process may die between any
//! two of them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use keyward_env::Env;
use keyward_hsm::{Hsm, RootId, RootProvider, SecretVec};
use keyward_raft::BoxFuture;
use keyward_service::{KeptRoot, RootKeeper};
use keyward_state::{Batch, MemStore, Store, Table, codec};
use parking_lot::Mutex;

use super::Cabinet;
use crate::env::SimEnv;

/// The record, in the machine's folder.
const RECORD: &[u8] = b"roots";
/// Between tries to open a root that is away; shorter than in the server, as runs are.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// A root on record: its id, and its device's name.
type Entry = (RootId, String);

/// Ends the node's process, if its turn has come.
pub type MayDie = Arc<dyn Fn() -> bool + Send + Sync>;

/// The roots of one boot of a node.
pub struct SimRoots {
    env: SimEnv,
    folder: MemStore,
    cabinet: Arc<Cabinet>,
    may_die: MayDie,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    entries: Mutex<Vec<Entry>>,
}

fn read(folder: &MemStore) -> Result<Option<Vec<Entry>>, String> {
    let row = folder.get(Table::Meta, RECORD).map_err(|e| e.to_string())?;
    row.map(|row| codec::decode(&row)).transpose().map_err(|e| e.to_string())
}

/// The roots that a folder's record names, with their devices.
#[must_use]
pub fn recorded(folder: &MemStore) -> Vec<(RootId, String)> {
    read(folder).ok().flatten().unwrap_or_default()
}

impl SimRoots {
    /// Opens the roots on record; at the first start, the device `first`. One that opens is enough.
    pub async fn open(
        env: SimEnv,
        (folder, cabinet): (MemStore, Arc<Cabinet>),
        first: &str,
        may_die: MayDie,
    ) -> Result<(Arc<Self>, Vec<Arc<dyn RootProvider>>), String> {
        let recorded = read(&folder)?;
        let (changing, entries) = (tokio::sync::Mutex::new(()), Mutex::default());
        let roots = Self { env, folder, cabinet, may_die, changing, entries };
        let mut open = Vec::new();
        match recorded {
            None => {
                // One that is away is made by a later start.
                let Ok(root) = roots.cabinet.open(first, roots.env.entropy()) else {
                    return Ok((Arc::new(roots), open));
                };
                roots.save(vec![(root.identity().clone(), first.to_owned())]).await?;
                open.push(root);
            }
            Some(entries) => {
                open.extend(entries.iter().filter_map(|entry| roots.open_entry(entry)));
                *roots.entries.lock() = entries;
            }
        }
        Ok((Arc::new(roots), open))
    }

    fn open_entry(&self, (id, name): &Entry) -> Option<Arc<dyn RootProvider>> {
        let root = self.cabinet.open(name, self.env.entropy()).ok()?;
        (root.identity() == id).then_some(root)
    }

    /// Between two steps: the process may die here.
    async fn step(&self) {
        if (self.may_die)() {
            std::future::pending::<()>().await;
        }
    }

    async fn save(&self, entries: Vec<Entry>) -> Result<(), String> {
        self.step().await;
        let (folder, row) = (self.folder.clone(), codec::encode(&entries));
        let mut batch = Batch::default();
        batch.put(Table::Meta, RECORD, row);
        let renamed = self.env.blocking(move || folder.write(batch, false)).await;
        renamed.map_err(|e| e.to_string())?;
        self.step().await;
        let folder = self.folder.clone();
        let synced = self.env.blocking(move || folder.write(Batch::default(), true)).await;
        synced.map_err(|e| e.to_string())?;
        self.step().await;
        *self.entries.lock() = entries;
        Ok(())
    }

    /// Tries those roots again that could not be opened, for as long as the node runs.
    pub async fn retry(self: Arc<Self>, hsm: Weak<Hsm>) {
        loop {
            crate::sleep(TRY_AGAIN).await;
            let Some(hsm) = hsm.upgrade() else { return };
            let open: Vec<RootId> = hsm.roots().into_iter().map(|status| status.id).collect();
            let entries = self.entries.lock().clone();
            for entry in entries.iter().filter(|(id, _)| !open.contains(id)) {
                if let Some(root) = self.open_entry(entry) {
                    // It may have been added meanwhile.
                    let _ = hsm.add_root(root);
                }
            }
        }
    }
}

impl RootKeeper for SimRoots {
    fn kept(&self) -> Vec<KeptRoot> {
        let entries = self.entries.lock();
        entries.iter().map(|(id, name)| KeptRoot { id: id.clone(), place: name.clone() }).collect()
    }

    /// `spec` is the device's name.
    fn add(&self, spec: String) -> BoxFuture<'_, Result<Arc<dyn RootProvider>, String>> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            let root = self.cabinet.open(&spec, self.env.entropy())?;
            let id = root.identity().clone();
            let mut entries = self.entries.lock().clone();
            if entries.iter().any(|(known, _)| *known == id) {
                return Err(format!("this node has root {id} already"));
            }
            entries.push((id, spec));
            self.save(entries).await?;
            Ok(root)
        })
    }

    fn forget(&self, id: RootId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            let mut entries = self.entries.lock().clone();
            entries.retain(|(known, _)| *known != id);
            self.save(entries).await
        })
    }

    fn offer(&self, _: RootId, _: SecretVec) -> BoxFuture<'_, Result<(u8, u8), String>> {
        Box::pin(std::future::ready(Err("no root here is in shares".to_owned())))
    }

    fn next_share(&self, _: RootId) -> BoxFuture<'_, Result<(u8, String, u8), String>> {
        Box::pin(std::future::ready(Err("no root here is in shares".to_owned())))
    }
}
