//! What was deleted after the backup, as far as anything that is left tells.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use keyward_env::{Env, RealEnv};
use keyward_model::{KeyId, KeyState};
use keyward_raft::left_behind;
use keyward_snapshot::{Go, SnapshotError};
use keyward_state::{Essentials, Key, State, Table, Tombstone, codec};

use super::content::open;
use super::hand::Hand;
use super::refusal::Refusal;

/// What sources tell.
#[derive(Debug, Default)]
pub struct Later {
    /// Keys that are gone.
    pub gone: BTreeMap<KeyId, Tombstone>,
    /// Keys whose deletion is in a log, acknowledged or not.
    pub in_log: BTreeSet<KeyId>,
    /// Keys that waited for their deletion.
    pub waiting: BTreeSet<KeyId>,
}

fn row<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    codec::decode(bytes).map_err(io::Error::other)
}

impl Later {
    /// Looks into lost data folders and later snapshots of the Region of that id.
    pub async fn look(
        hand: &Hand,
        sources: &[PathBuf],
        region_id: [u8; 16],
    ) -> Result<Self, Refusal> {
        let mut later = Self::default();
        for source in sources {
            later = if source.is_dir() {
                let folder = source.clone();
                RealEnv.blocking(move || later.folder(&folder, region_id)).await?
            } else {
                later.snapshot(hand, source, region_id).await?
            };
        }
        Ok(later)
    }

    fn folder(mut self, folder: &Path, region_id: [u8; 16]) -> Result<Self, Refusal> {
        // The data folder, or one that it is in.
        let inner = folder.join("data");
        let folder = if inner.join("state").is_dir() { inner } else { folder.to_owned() };
        let refuse = |why: String| {
            let source_of_deletions = folder.display().to_string();
            Refusal::Later { source_of_deletions, why }
        };
        let looked = left_behind::<RealEnv>(&folder, &mut |rows, in_log| {
            let found = Essentials::read(rows)?.map(|essentials| essentials.region.region_id);
            if found != Some(region_id) {
                return Err(io::Error::other("it is of another Region"));
            }
            rows.scan(Table::Tombstones, &mut |_, bytes| self.buried(row(bytes)?))?;
            rows.scan(Table::Keys, &mut |_, bytes| self.key(&row(bytes)?))?;
            self.in_log.extend(in_log);
            Ok(())
        });
        looked.map_err(|error| {
            refuse(format!("{error} (expected: a lost node's data folder, its node stopped, or a later snapshot)"))
        })?;
        Ok(self)
    }

    async fn snapshot(
        mut self,
        hand: &Hand,
        path: &Path,
        region_id: [u8; 16],
    ) -> Result<Self, Refusal> {
        let reader = open(path, "looking for tombstones")?;
        if reader.header().region_id()? != region_id {
            let source_of_deletions = path.display().to_string();
            return Err(Refusal::Later {
                source_of_deletions,
                why: "it is of another Region".into(),
            });
        }
        let opener = hand.opener(reader.header()).await?;
        let read = move || {
            reader.rows::<SnapshotError>(opener, &mut |table, _, bytes| {
                match table {
                    Table::Tombstones => self.buried(row(bytes)?)?,
                    Table::Keys => self.key(&row(bytes)?)?,
                    Table::Tokens => return Ok(Go::NoFurther),
                    _ => {}
                }
                Ok(Go::On)
            })?;
            Ok(self)
        };
        RealEnv.blocking(read).await
    }

    #[expect(clippy::unnecessary_wraps, reason = "the end of a visit that fails")]
    fn buried(&mut self, tombstone: Tombstone) -> io::Result<()> {
        self.gone.insert(tombstone.key, tombstone);
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the end of a visit that fails")]
    fn key(&mut self, key: &Key) -> io::Result<()> {
        if key.state == KeyState::PendingDeletion {
            self.waiting.insert(key.id);
        }
        Ok(())
    }

    /// Leaves out what the backup knows, too. A replica that was made anew and deleted again is later.
    pub fn forget_known(&mut self, backup: &State) {
        self.gone.retain(|key, later| {
            backup.tombstone(key).is_none_or(|known| known.number < later.number)
        });
    }

    /// Whether a key was deleted later.
    pub fn has(&self, key: &KeyId) -> bool {
        self.gone.contains_key(key) || self.in_log.contains(key)
    }

    /// Keys that are not to come back.
    pub fn doomed(&self, resurrected: &[KeyId]) -> BTreeSet<KeyId> {
        let all = self.gone.keys().chain(&self.in_log);
        all.filter(|key| !resurrected.contains(key)).copied().collect()
    }

    /// What stays of them. A deletion that is in a log only is known by its key alone.
    pub fn tombstones(&self, doomed: &BTreeSet<KeyId>, backup: &State) -> Vec<Tombstone> {
        let made = |id: &KeyId| {
            let key = backup.key(id)?;
            Some(Tombstone {
                key: *id,
                account: key.account,
                due: key.deletion_date.unwrap_or(backup.time),
                deleted: backup.time,
                number: 0,
                materials: Vec::new(),
            })
        };
        doomed.iter().filter_map(|id| self.gone.get(id).cloned().or_else(|| made(id))).collect()
    }
}
