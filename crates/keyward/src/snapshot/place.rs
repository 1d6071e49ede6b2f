//! Files of a node that is being made: gone again, and those that were moved away back in their places, if the way is not
//! gone to its end.

use std::fs;
use std::path::{Path, PathBuf};

use super::refusal::{Refusal, cannot};
use crate::config::{Config, RootSection};

/// Where stores are filled, in the data folder.
const DRAFT: &str = ".restoring";

/// A node's files on the way.
#[derive(Default)]
pub struct Placing {
    made: Vec<PathBuf>,
    /// From where to where.
    moved: Vec<(PathBuf, PathBuf)>,
    kept: bool,
}

impl Placing {
    /// Takes the data folder, which must hold nothing of a node, and makes one for drafts in it.
    pub fn begin(config: &Config) -> Result<(Self, PathBuf), Refusal> {
        let data = &config.node.data;
        let mut placing = Self::default();
        if data.exists() {
            let holds = what_it_holds(config)?;
            if !holds.is_empty() {
                let folder = data.display().to_string();
                return Err(Refusal::NotEmpty { folder, holds: holds.join(", ") });
            }
        } else {
            fs::create_dir_all(data).map_err(cannot("make", data))?;
            placing.made.push(data.clone());
        }
        let draft = data.join(DRAFT);
        if draft.exists() {
            // Of a restore that was cut off: it counts for nothing.
            fs::remove_dir_all(&draft).map_err(cannot("remove", &draft))?;
        }
        fs::create_dir(&draft).map_err(cannot("make", &draft))?;
        placing.made.push(draft.clone());
        Ok((placing, draft))
    }

    /// A path that something else makes.
    pub fn expect(&mut self, path: &Path) {
        if !path.exists() {
            self.made.push(path.to_owned());
        }
    }

    /// A root that is made on the way.
    pub fn expect_root(&mut self, root: &RootSection) {
        match root {
            RootSection::File { path } | RootSection::Passphrase { params: path, .. } => {
                self.expect(path);
            }
            RootSection::Shamir { .. } | RootSection::Pkcs11(_) => {}
        }
    }

    /// Moves a file of the lost node aside, if it is there. Says to where.
    pub fn move_aside(&mut self, path: &Path) -> Result<Option<PathBuf>, Refusal> {
        if !path.exists() {
            return Ok(None);
        }
        let aside = (1..).map(|number| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".lost-{number}"));
            PathBuf::from(name)
        });
        let Some(aside) = aside.take(1000).find(|aside| !aside.exists()) else {
            let what = format!("{} is in the way", path.display());
            return Err(Refusal::Place {
                what,
                why: "so are a thousand others of its kind".into(),
            });
        };
        fs::rename(path, &aside).map_err(cannot("move away", path))?;
        self.moved.push((path.to_owned(), aside.clone()));
        Ok(Some(aside))
    }

    /// Puts the stores in their places: the log first, since a node with a log and no state says so and ends.
    pub fn finish(mut self, config: &Config, draft: &Path) -> Result<(), Refusal> {
        let data = &config.node.data;
        for name in ["log", "state"] {
            let place = data.join(name);
            fs::rename(draft.join(name), &place).map_err(cannot("write", &place))?;
            self.made.push(place);
        }
        fs::remove_dir_all(draft).map_err(cannot("remove", draft))?;
        let synced = fs::File::open(data).and_then(|folder| folder.sync_all());
        synced.map_err(cannot("sync", data))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for path in self.made.iter().rev() {
            if path.is_dir() {
                drop(fs::remove_dir_all(path));
            } else {
                drop(fs::remove_file(path));
            }
        }
        for (place, aside) in self.moved.iter().rev() {
            drop(fs::rename(aside, place));
        }
    }
}

/// What is in the data folder but for what the configuration puts there, and an earlier draft.
fn what_it_holds(config: &Config) -> Result<Vec<String>, Refusal> {
    let data = &config.node.data;
    let mut root = config.root.clone();
    let mut own: Vec<PathBuf> = root.paths().into_iter().map(|path| path.clone()).collect();
    own.extend([
        config.tls.certificate.clone(),
        config.tls.private_key.clone(),
        config.tls.authority.clone(),
        data.join(DRAFT),
    ]);
    let mut holds = Vec::new();
    for entry in fs::read_dir(data).map_err(cannot("read", data))? {
        let entry = entry.map_err(cannot("read", data))?;
        if !own.contains(&entry.path()) {
            holds.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    holds.sort();
    Ok(holds)
}
