//! Old segments are removed, whole and oldest first, where the configuration says so. That they will be is
//! on record, and on disk, before they are: a removal that nobody sees would look like a theft.

use std::io;
use std::sync::Arc;

use keyward_env::Env;
use keyward_model::Timestamp;

use crate::config::Keep;
use crate::error::AuditError;
use crate::json::{self, Value};
use crate::record::Record;
use crate::segment;
use crate::trail::Shared;
use crate::walk::{Step, Walk};

/// The event that records a removal.
pub const REMOVAL_EVENT: &str = "RemoveAuditSegments";

/// Segments to be removed: the oldest ones.
#[derive(Debug, PartialEq, Eq)]
struct Removal {
    firsts: Vec<u64>,
    /// The number of the last record in them.
    last: u64,
    bytes: u64,
}

/// A segment as retention sees it.
#[derive(Clone, Debug)]
struct Held {
    first: u64,
    bytes: u64,
    /// When its first record was written, if it has one: as records write it, in which form the order of
    /// texts is that of times.
    begins: Option<String>,
}

/// Which segments go: a pure function. The last one never does.
fn decide(held: &[Held], keep: Keep, now: Timestamp) -> Option<Removal> {
    let total: u64 = held.iter().map(|segment| segment.bytes).sum();
    let oldest_kept = keep.days.map(|days| {
        let kept_ms = i64::from(days) * Timestamp::DAY_MS;
        json::iso_8601_text(Timestamp(now.0.saturating_sub(kept_ms)))
    });
    let mut bytes = 0;
    let mut firsts = Vec::new();
    let mut last = 0;
    for pair in held.windows(2) {
        let too_many = keep.bytes.is_some_and(|most| total - bytes > most);
        // All records of a segment are older than the first of the next one.
        let too_old = oldest_kept
            .as_ref()
            .is_some_and(|kept| pair[1].begins.as_ref().is_some_and(|begins| begins < kept));
        if !too_many && !too_old {
            break;
        }
        firsts.push(pair[0].first);
        bytes += pair[0].bytes;
        last = pair[1].first - 1;
    }
    (!firsts.is_empty()).then_some(Removal { firsts, last, bytes })
}

/// Removes what is too old or too much.
pub(crate) async fn apply<E: Env>(env: &E, shared: &Arc<Shared>) {
    if shared.config.keep == Keep::default() {
        return;
    }
    let looking = Arc::clone(shared);
    let planned = env.blocking(move || plan(&looking)).await;
    let removed = match planned {
        Ok(None) => return,
        Ok(Some(removal)) => remove(env, shared, removal).await,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        // Nothing is lost: it is tried again at the next roll, or in an hour.
        tracing::warn!(%error, "old audit segments were not removed");
    }
}

async fn remove<E: Env>(env: &E, shared: &Arc<Shared>, removal: Removal) -> Result<(), AuditError> {
    let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
    let details = [
        ("firstSequence", number(removal.firsts[0])),
        ("lastSequence", number(removal.last)),
        ("segments", number(removal.firsts.len() as u64)),
        ("bytes", number(removal.bytes)),
    ];
    let region = &shared.config.region;
    let record = Record::service_event(REMOVAL_EVENT, shared.now(), region, &details);
    let ticket = shared.append(&record)?;
    let number = ticket.sequence();
    ticket.await?;
    let shared = Arc::clone(shared);
    env.blocking(move || {
        shared.write_and_sync();
        if !shared.is_synced(number) {
            return Ok(());
        }
        let folder = &shared.config.folder;
        for first in removal.firsts {
            let path = segment::path(folder, first);
            match shared.files.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(AuditError::file("remove", path)(error));
                }
                _ => {}
            }
        }
        shared.files.sync_folder(folder).map_err(AuditError::file("sync", folder.clone()))
    })
    .await
}

fn plan(shared: &Shared) -> Result<Option<Removal>, AuditError> {
    let folder = &shared.config.folder;
    let names = shared.files.list(folder).map_err(AuditError::file("list", folder.clone()))?;
    let firsts = segment::firsts(&names);
    let held: Result<Vec<Held>, AuditError> =
        firsts.into_iter().map(|first| look(shared, first)).collect();
    Ok(decide(&held?, shared.config.keep, shared.now()))
}

fn look(shared: &Shared, first: u64) -> Result<Held, AuditError> {
    let path = segment::path(&shared.config.folder, first);
    let read = || -> io::Result<Held> {
        let file = shared.files.open(&path, false)?;
        let bytes = file.length()?;
        let mut walk = Walk::new(path.clone(), file, first, None);
        let begins = match walk.step(true)? {
            Step::Record(_) => crate::read::time_of(walk.line()),
            Step::Damage(_) | Step::End => None,
        };
        Ok(Held { first, bytes, begins })
    };
    read().map_err(AuditError::file("read", path.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = Timestamp::DAY_MS;

    fn held() -> Vec<Held> {
        (0..4u8)
            .map(|n| Held {
                first: 1 + 10 * u64::from(n),
                bytes: 100,
                begins: Some(json::iso_8601_text(Timestamp(i64::from(n) * DAY))),
            })
            .collect()
    }

    #[test]
    fn nothing_goes_unless_asked() {
        assert_eq!(decide(&held(), Keep::default(), Timestamp(i64::MAX)), None);
    }

    #[test]
    fn the_oldest_go_until_the_rest_fits_and_the_last_one_stays() {
        let keep = |bytes| Keep { bytes: Some(bytes), days: None };
        assert_eq!(decide(&held(), keep(400), Timestamp(0)), None);
        let removal = decide(&held(), keep(250), Timestamp(0)).unwrap();
        assert_eq!(removal, Removal { firsts: vec![1, 11], last: 20, bytes: 200 });
        assert_eq!(decide(&held(), keep(0), Timestamp(0)).unwrap().firsts, [1, 11, 21]);
        assert_eq!(decide(&held()[..1], keep(0), Timestamp(0)), None);
    }

    #[test]
    fn a_segment_goes_only_when_its_last_record_is_too_old() {
        let keep = Keep { bytes: None, days: Some(5) };
        // The second begins on day 1, so the first may hold records of up to then.
        assert_eq!(decide(&held(), keep, Timestamp(6 * DAY)), None);
        assert_eq!(decide(&held(), keep, Timestamp(6 * DAY + 1)).unwrap().firsts, [1]);
        let mut empty = held();
        empty[3].begins = None;
        let all_old = Timestamp(100 * DAY);
        assert_eq!(decide(&empty, keep, all_old).unwrap().firsts, [1, 11], "of unknown age: kept");
    }
}
