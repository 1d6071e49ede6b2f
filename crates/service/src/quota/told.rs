//! What a refusal for a quota says: written down once for all that say the same.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use keyward_model::{ErrorCode, KmsError, Text, Throttle};
use keyward_quota::{BucketId, Limit, Quota, QuotaName, Scope};

/// What a refusal says, written down once for all of them.
pub(super) struct Told {
    name: QuotaName,
    quota: Text,
    scope: Text,
    message: Text,
    /// What the latest one said.
    latest: ArcSwapOption<Throttle>,
}

impl Told {
    pub(super) fn new(id: &BucketId, quota: &Quota, limit: &Limit) -> Arc<Self> {
        let (name, scope) = (quota.name.clone(), id.holder.to_string());
        let message = match name.scope {
            // Its name says whose it is.
            Scope::Account(_) | Scope::Principal(_) => {
                format!("Rate exceeded: {limit} (quota '{name}')")
            }
            _ => format!("Rate exceeded: {limit} for {scope} (quota '{name}')"),
        };
        Arc::new(Self {
            quota: name.to_string().into(),
            name,
            scope: scope.into(),
            message: message.into(),
            latest: ArcSwapOption::empty(),
        })
    }

    /// The quota's name.
    pub(super) fn name(&self) -> &QuotaName {
        &self.name
    }

    /// A refusal of a call that may try again after `wait`.
    pub(super) fn refusal(&self, limit: &Limit, wait: Duration) -> KmsError {
        KmsError {
            throttle: Some(self.throttle(limit, retry_after_ms(wait))),
            ..KmsError::new(ErrorCode::ThrottlingException, self.message.clone())
        }
    }

    fn throttle(&self, limit: &Limit, retry_after_ms: u64) -> Arc<Throttle> {
        if let Some(latest) = &*self.latest.load()
            && latest.retry_after_ms == retry_after_ms
        {
            return Arc::clone(latest);
        }
        let throttle = Arc::new(Throttle {
            quota: self.quota.clone(),
            scope: self.scope.clone(),
            limit: limit.limit,
            window_seconds: limit.window.seconds(),
            retry_after_ms,
        });
        self.latest.store(Some(Arc::clone(&throttle)));
        throttle
    }
}

/// When to try again, in milliseconds: rounded up to 1, 2 or 5, tens of these, and from 100 on to two digits.
/// So refusals that follow one another say the same, and a door writes it down once.
fn retry_after_ms(wait: Duration) -> u64 {
    let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    if let Some(step) = [1, 2, 5, 10, 20, 50, 100].into_iter().find(|step| *step >= ms) {
        return step;
    }
    let unit = 10u64.pow(ms.ilog10() - 1);
    ms.div_ceil(unit).saturating_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_try_again_is_rounded_up() {
        let told = |nanos| retry_after_ms(Duration::from_nanos(nanos));
        assert_eq!([told(0), told(1), told(1_000_001), told(21_000_000)], [1, 1, 2, 50]);
        assert_eq!([told(100_000_000), told(101_000_000), told(999_000_000)], [100, 110, 1000]);
        assert_eq!([told(47_100_000_000), told(86_400_000_000_000)], [48_000, 87_000_000]);
        assert_eq!(retry_after_ms(Duration::MAX), u64::MAX);
        for ms in 1..100_000 {
            let told = retry_after_ms(Duration::from_millis(ms));
            assert!((ms..=ms * 5 / 2).contains(&told), "{ms} ms: {told}");
        }
    }
}
