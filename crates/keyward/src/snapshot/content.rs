//! What is in a snapshot: read once from end to end, opened, tried, and put into a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use keyward_hsm::{FileOpener, Hsm, SealedToken};
use keyward_model::{KeyId, KeyMaterialId};
use keyward_raft::{Standing, standing_of};
use keyward_snapshot::{Go, Header, Reader, SnapshotError, Trailer, Unread};
use keyward_state::{Batch, MemStore, State, Store, Table};
use tokio::runtime::Handle;

use super::hand::Hand;
use super::refusal::{Refusal, cannot};
use crate::cli::file::progress;

/// Rows in one batch.
const BATCH_ROWS: usize = 2000;

/// Bytes that are read, shown to whoever waits.
pub struct Shown<R> {
    inner: R,
    bytes: u64,
    show: Box<dyn FnMut(u64) + Send>,
}

impl<R: Read> Read for Shown<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        (self.show)(self.bytes);
        Ok(read)
    }
}

pub type FileReader = Reader<Shown<BufReader<File>>>;

/// Opens a file and reads its header.
pub fn open(path: &Path, what: &'static str) -> Result<FileReader, Refusal> {
    let file = File::open(path).map_err(cannot("read", path))?;
    let length = file.metadata().map_err(cannot("read", path))?.len();
    let show = Box::new(progress(Some(length), what));
    let inner = BufReader::with_capacity(256 * 1024, file);
    Ok(Reader::open(Shown { inner, bytes: 0, show })?)
}

/// What a snapshot says before its keys: who opens what, what is gone, who the nodes and other Regions are.
pub struct Before {
    pub state: State,
    pub standing: Standing,
}

/// Reads so far.
pub fn before_keys(reader: FileReader, opener: FileOpener) -> Result<Before, Refusal> {
    let store = MemStore::default();
    let mut batch = Batch::default();
    let read = reader.rows::<Refusal>(opener, &mut |table, key, value| {
        if matches!(table, Table::Keys | Table::Tokens) {
            return Ok(Go::NoFurther);
        }
        batch.put(table, key, value.to_vec());
        Ok(Go::On)
    });
    read?;
    store.write(batch, true).map_err(SnapshotError::Io)?;
    let state = State::load(&store).map_err(rows)?;
    let standing = standing_of(&store).map_err(rows)?;
    Ok(Before { state, standing })
}

fn rows(error: std::io::Error) -> SnapshotError {
    SnapshotError::Rows(error.to_string())
}

/// All of a snapshot, every sealed token tried.
pub struct Content {
    pub state: State,
    pub standing: Standing,
    pub tokens: u64,
    pub trailer: Trailer,
}

/// Puts rows into a store as they come.
pub struct Intake<'a> {
    pub hsm: &'a Arc<Hsm>,
    pub store: &'a dyn Store,
    /// Tokens are put there too. Otherwise they are only tried.
    pub keep_tokens: bool,
    /// Of these keys no token is put anywhere.
    pub doomed: &'a BTreeSet<KeyId>,
    /// Opens domain keys.
    pub runtime: Handle,
}

/// Tokens that are still to come: whose they are.
type Awaited = BTreeMap<KeyMaterialId, KeyId>;

impl Intake<'_> {
    /// Reads to the end. Blocks.
    pub fn take(&self, reader: FileReader, opener: FileOpener) -> Result<Content, Refusal> {
        let header = reader.header().clone();
        let mut batch = Batch::default();
        let mut loaded: Option<(State, Awaited)> = None;
        let mut tokens = 0;
        let read = reader.rows::<Refusal>(opener, &mut |table, key, value| {
            if batch.changes.len() >= BATCH_ROWS || (table == Table::Tokens && loaded.is_none()) {
                self.put(std::mem::take(&mut batch), false)?;
            }
            if table != Table::Tokens {
                batch.put(table, key, value.to_vec());
                return Ok(Go::On);
            }
            if loaded.is_none() {
                loaded = Some(self.load()?);
            }
            let awaited = loaded.iter_mut().map(|(_, awaited)| awaited).next();
            let owner = self.try_token(awaited, key, value)?;
            tokens += 1;
            if self.keep_tokens && !self.doomed.contains(&owner) {
                batch.put(table, key, value.to_vec());
            }
            Ok(Go::On)
        })?;
        let Unread::Nothing(trailer) = read else {
            return Err(SnapshotError::Rows("they were not read to the end".into()).into());
        };
        self.put(batch, true)?;
        let (state, awaited) = match loaded {
            Some(loaded) => loaded,
            // No token at all.
            None => self.load()?,
        };
        if let Some((material, key)) = awaited.first_key_value() {
            let what = format!("the sealed token of material {material} of key {key} is missing");
            return Err(SnapshotError::Rows(what).into());
        }
        let standing = standing_of(self.store).map_err(rows)?;
        let content = Content { state, standing, tokens, trailer };
        content.check(&header, self.hsm)?;
        Ok(content)
    }

    fn put(&self, batch: Batch, sync: bool) -> Result<(), SnapshotError> {
        Ok(self.store.write(batch, sync)?)
    }

    /// All but tokens is there: what they need is opened.
    fn load(&self) -> Result<(State, Awaited), Refusal> {
        let state = State::load(self.store).map_err(rows)?;
        self.runtime.block_on(Hand::open_domain_keys(self.hsm, &state))?;
        let of = |key: &KeyId, materials: Vec<KeyMaterialId>| {
            let key = *key;
            materials.into_iter().map(move |material| (material, key))
        };
        let awaited = state.keys().flat_map(|key| {
            of(&key.id, key.materials.iter().map(|material| material.id).collect())
        });
        let awaited = awaited.collect();
        Ok((state, awaited))
    }

    fn try_token(
        &self,
        awaited: Option<&mut Awaited>,
        row: &[u8],
        value: &[u8],
    ) -> Result<KeyId, SnapshotError> {
        let material = <[u8; 32]>::try_from(row).map(KeyMaterialId::new);
        let material =
            material.map_err(|_| SnapshotError::Rows("a token of an odd material".into()))?;
        let key = awaited.and_then(|awaited| awaited.remove(&material)).ok_or_else(|| {
            SnapshotError::Rows(format!(
                "there is a token of material {material}, and no key that has it"
            ))
        })?;
        let token = SealedToken::from_bytes(value.to_vec());
        self.hsm.try_token(key, material, &token).map_err(|error| {
            SnapshotError::Rows(format!("the sealed token of key {key} does not open: {error}"))
        })?;
        Ok(key)
    }
}

impl Content {
    /// What the header says, and what can never be.
    fn check(&self, header: &Header, hsm: &Hsm) -> Result<(), SnapshotError> {
        let state = &self.state;
        let wrong = |what: String| Err(SnapshotError::Rows(what));
        let Some(facts) = &state.region else { return wrong("they are of no Region".into()) };
        let said = (header.region.as_str(), header.region_id()?, header.applied, header.keys);
        let found = (
            facts.region.as_str(),
            facts.region_id,
            self.standing.applied,
            state.key_count() as u64,
        );
        if said != found {
            return wrong(
                "the header speaks of another Region, another moment or other keys".into(),
            );
        }
        if let Some(key) = state.key_that_is_gone() {
            return wrong(format!("key {key} is there although its tombstone is"));
        }
        if let Some(key) = &state.region_key {
            hsm.try_transfer_key(&key.private_key)?;
        }
        keyward_service::open_authority(hsm, facts)
            .map(drop)
            .or_else(|error| wrong(format!("the Region's authority does not open: {error}")))
    }
}
