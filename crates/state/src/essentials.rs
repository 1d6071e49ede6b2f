//! What a Region is, read from the rows of one moment without loading all of its state.

use std::io;

use keyward_hsm::SealedDomainKey;
use keyward_model::Timestamp;

use crate::codec;
use crate::multi_region::HistoryId;
use crate::rows::{DomainKey, RegionFacts, Root};
use crate::state::{META_HISTORY, META_REGION, META_TIME};
use crate::store::{Moment, Table};

/// The few rows that say which Region this is, and who opens it.
#[derive(Clone, Debug)]
pub struct Essentials {
    /// The facts that its founding fixed.
    pub region: RegionFacts,
    /// Names this line of the Region's life.
    pub history: HistoryId,
    /// Region time: the largest stamp applied.
    pub time: Timestamp,
    /// The domain key that new tokens are sealed under.
    pub domain_key: SealedDomainKey,
    /// Registered roots.
    pub roots: Vec<Root>,
    /// Keys that there are.
    pub keys: u64,
    /// Keys that are gone.
    pub gone: u64,
}

fn row<T: serde::de::DeserializeOwned>(table: Table, bytes: &[u8]) -> io::Result<T> {
    codec::decode(bytes).map_err(|e| io::Error::other(format!("table {}: {e}", table.name())))
}

fn count(rows: &dyn Moment, table: Table) -> io::Result<u64> {
    let mut rows_found = 0;
    rows.scan(table, &mut |_, _| {
        rows_found += 1;
        Ok(())
    })?;
    Ok(rows_found)
}

impl Essentials {
    /// Reads them. `None` before the founding.
    ///
    /// # Errors
    /// A row that cannot be read, or a domain key that is missing.
    pub fn read(rows: &dyn Moment) -> io::Result<Option<Self>> {
        let meta = |key: &[u8]| rows.get(Table::Meta, key);
        let Some(facts) = meta(META_REGION)? else { return Ok(None) };
        let region: RegionFacts = row(Table::Meta, &facts)?;
        let history: Option<HistoryId> =
            meta(META_HISTORY)?.map(|bytes| row(Table::Meta, &bytes)).transpose()?;
        let time = meta(META_TIME)?.map(|bytes| row(Table::Meta, &bytes)).transpose()?;
        let active = region.active_domain_key;
        let domain_key = rows.get(Table::DomainKeys, active.bytes())?.ok_or_else(|| {
            io::Error::other(format!("the active domain key {active} is not in the state"))
        })?;
        let domain_key: DomainKey = row(Table::DomainKeys, &domain_key)?;
        let mut roots = Vec::new();
        rows.scan(Table::Roots, &mut |_, bytes| {
            roots.push(row(Table::Roots, bytes)?);
            Ok(())
        })?;
        Ok(Some(Self {
            history: history.unwrap_or(region.region_id),
            region,
            time: time.unwrap_or_default(),
            domain_key: domain_key.sealed,
            roots,
            keys: count(rows, Table::Keys)?,
            gone: count(rows, Table::Tombstones)?,
        }))
    }
}
