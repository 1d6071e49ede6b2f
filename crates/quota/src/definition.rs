//! What a quota is.

use std::fmt;
use std::str::FromStr;

use keyward_model::{AccountId, PrincipalArn};
use serde::{Deserialize, Serialize};

use crate::pool::Pool;

/// The most that a limit can be, in calls a window.
const LIMIT_MAX: u64 = 1_000_000_000_000;
/// The most in a second, and of a burst: a node serves some 100,000 calls a second.
const PER_SECOND_MAX: u64 = 10_000_000;
/// Limits of a second from here on are split among nodes; smaller ones cannot be, in whole tokens.
const SHARED_FROM: u64 = 30;

/// Whose calls are counted together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Scope {
    /// Each account that has no quota of its own.
    EachAccount,
    /// One account: all its principals together. The caller's, whoever owns the key.
    Account(AccountId),
    /// Each principal that has no quota of its own.
    EachPrincipal,
    /// One principal.
    Principal(PrincipalArn),
}

impl Scope {
    /// `each-account`, `account`, `each-principal` or `principal`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::EachAccount => "each-account",
            Self::Account(_) => "account",
            Self::EachPrincipal => "each-principal",
            Self::Principal(_) => "principal",
        }
    }

    /// The account's id or the principal's ARN.
    #[must_use]
    pub fn holder(&self) -> Option<String> {
        match self {
            Self::EachAccount | Self::EachPrincipal => None,
            Self::Account(account) => Some(account.to_string()),
            Self::Principal(arn) => Some(arn.to_string()),
        }
    }

    /// Reads what [`Self::kind`] and [`Self::holder`] tell.
    pub fn parse(kind: &str, holder: Option<&str>) -> Result<Self, String> {
        match (kind, holder) {
            ("each-account", None) => Ok(Self::EachAccount),
            ("each-principal", None) => Ok(Self::EachPrincipal),
            ("account", Some(id)) => {
                id.parse().map(Self::Account).map_err(|e| format!("the account is {e}"))
            }
            ("principal", Some(arn)) => {
                arn.parse().map(Self::Principal).map_err(|e| format!("the principal is {e}"))
            }
            ("each-account" | "each-principal", Some(_)) => {
                Err(format!("{kind} is about nobody in particular: name no holder"))
            }
            ("account" | "principal", None) => Err(format!("name the {kind}")),
            _ => Err(format!(
                "'{kind}' is no scope: each-account, account, each-principal or principal"
            )),
        }
    }
}

/// Which calls are counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Covers {
    /// Every call.
    All,
    /// Those that draw on a pool.
    Pool(Pool),
}

impl fmt::Display for Covers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Covers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            pool => pool.parse().map(Self::Pool).map_err(|why| format!("{why}; or all")),
        }
    }
}

impl Covers {
    /// `all`, or the pool's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Pool(pool) => pool.name(),
        }
    }
}

/// Over how long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Window {
    /// A rate: a token bucket that is refilled all the time.
    Second,
    /// From one full minute of Region time to the next.
    Minute,
    /// From one midnight (UTC) of Region time to the next.
    Day,
}

impl Window {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Day];

    /// Its length in seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Day => 86_400,
        }
    }

    /// `second`, `minute` or `day`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Day => "day",
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "s" | "second" => Ok(Self::Second),
            "m" | "minute" => Ok(Self::Minute),
            "d" | "day" => Ok(Self::Day),
            _ => Err(format!("'{text}' is no window: s, m or d (second, minute, day)")),
        }
    }
}

/// How many calls in one window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limit {
    /// Over how long.
    pub window: Window,
    /// Calls.
    pub limit: u64,
    /// Calls at once, after a quiet while. With limits of a second only; 0 elsewhere.
    pub burst: u64,
}

impl Limit {
    /// A limit; with those of a second a burst of what a second admits, unless another one is named.
    #[must_use]
    pub fn new(window: Window, limit: u64, burst: Option<u64>) -> Self {
        let usual = if window == Window::Second { limit } else { 0 };
        Self { window, limit, burst: burst.unwrap_or(usual) }
    }

    /// Too small to be split among nodes, or of a long window: the leader counts it, and nodes prepay.
    #[must_use]
    pub fn is_prepaid(&self) -> bool {
        self.window != Window::Second || self.limit < SHARED_FROM || self.burst < SHARED_FROM
    }

    /// The most that it admits in that many seconds.
    fn most_in(&self, seconds: u64) -> u64 {
        (self.limit * (seconds / self.window.seconds())).saturating_add(self.burst)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls a {}", self.limit, self.window)
    }
}

/// Names a quota: there is one for each scope and pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct QuotaName {
    /// Whose calls.
    pub scope: Scope,
    /// Which.
    pub covers: Covers,
}

impl fmt::Display for QuotaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scope.kind())?;
        if let Some(holder) = self.scope.holder() {
            write!(f, " {holder}")?;
        }
        write!(f, ": {}", self.covers)
    }
}

/// A quota: its limits hold side by side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quota {
    /// Its name.
    pub name: QuotaName,
    /// One a window at most, by window.
    pub limits: Vec<Limit>,
    /// The profile that it came from.
    pub profile: Option<String>,
    /// Rises with each change: shares of an older one are scaled down.
    pub revision: u64,
}

/// What is wrong with a quota.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuotaError {
    /// No limits.
    #[error("a quota needs at least one limit, such as 500 a second")]
    Empty,
    /// A limit of nothing.
    #[error(
        "a limit of 0 a {0} would refuse every call: disable the principal instead (`keyward principal disable`), \
         or name a limit of at least 1"
    )]
    Zero(Window),
    /// Beyond reason.
    #[error("a limit of {limit} a {window} is beyond what can be counted: at most {most}")]
    Absurd {
        /// What was asked for.
        limit: u64,
        /// In which window.
        window: Window,
        /// The most that goes.
        most: u64,
    },
    /// Two limits for one window.
    #[error("two limits a {0}: name one")]
    Twice(Window),
    /// A burst where none goes.
    #[error("a burst goes with a limit a second, not with one a {0}")]
    Burst(Window),
    /// A burst that cannot be counted across nodes.
    #[error(
        "a burst of {burst} is too small for {limit}: calls come in at several nodes, so at least {least}"
    )]
    Burstless {
        /// The burst.
        burst: u64,
        /// Its limit.
        limit: Limit,
        /// The least that goes: what 50 ms admit.
        least: u64,
    },
    /// A limit that another one makes meaningless.
    #[error("{long} can never be reached: {short} (burst {burst}) lets through {reach} a {window} at most", window = long.window)]
    NeverReached {
        /// The longer one.
        long: Limit,
        /// The shorter one.
        short: Limit,
        /// Its burst.
        burst: u64,
        /// What it admits in the longer window.
        reach: u64,
    },
    /// A shorter window with a larger limit.
    #[error(
        "{short} is more than {long} in all: make the longer one larger, or leave the shorter one out"
    )]
    Conflict {
        /// The shorter one.
        short: Limit,
        /// The longer one.
        long: Limit,
    },
}

impl Quota {
    /// A quota with these limits, in order, if they make sense together.
    pub fn new(name: QuotaName, limits: Vec<Limit>) -> Result<Self, QuotaError> {
        let mut limits = limits;
        limits.sort_by_key(|limit| limit.window);
        if limits.is_empty() {
            return Err(QuotaError::Empty);
        }
        for limit in &limits {
            let window = limit.window;
            let most = if window == Window::Second { PER_SECOND_MAX } else { LIMIT_MAX };
            if limit.limit == 0 || (window == Window::Second && limit.burst == 0) {
                return Err(QuotaError::Zero(window));
            }
            for number in [limit.limit, limit.burst] {
                if number > most {
                    return Err(QuotaError::Absurd { limit: number, window, most });
                }
            }
            let least = limit.limit.div_ceil(20);
            if window == Window::Second && limit.burst < least {
                return Err(QuotaError::Burstless { burst: limit.burst, limit: *limit, least });
            }
            if window != Window::Second && limit.burst != 0 {
                return Err(QuotaError::Burst(window));
            }
        }
        for pair in limits.windows(2) {
            let [short, long] = [pair[0], pair[1]];
            if short.window == long.window {
                return Err(QuotaError::Twice(short.window));
            }
            if short.limit > long.limit {
                return Err(QuotaError::Conflict { short, long });
            }
            let reach = short.most_in(long.window.seconds());
            if long.limit > reach {
                let burst = short.burst;
                return Err(QuotaError::NeverReached { long, short, burst, reach });
            }
        }
        Ok(Self { name, limits, profile: None, revision: 0 })
    }

    /// Whether its limits make sense together: one that came from elsewhere need not have passed [`Self::new`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), QuotaError> {
        Self::new(self.name.clone(), self.limits.clone()).map(drop)
    }
}

/// Whose bucket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Holder {
    /// An account's.
    Account(AccountId),
    /// A principal's.
    Principal(PrincipalArn),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(account) => write!(f, "account {account}"),
            Self::Principal(arn) => write!(f, "principal {arn}"),
        }
    }
}

/// One limit of one quota, for one account or principal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct BucketId {
    /// Whose.
    pub holder: Holder,
    /// Which calls.
    pub covers: Covers,
    /// Which limit.
    pub window: Window,
}

impl BucketId {
    /// The quotas that may define it, the more special one first.
    #[must_use]
    pub fn names(&self) -> [QuotaName; 2] {
        let [special, general] = match &self.holder {
            Holder::Account(account) => [Scope::Account(*account), Scope::EachAccount],
            Holder::Principal(arn) => [Scope::Principal(arn.clone()), Scope::EachPrincipal],
        };
        let covers = self.covers;
        [QuotaName { scope: special, covers }, QuotaName { scope: general, covers }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> QuotaName {
        QuotaName { scope: Scope::EachPrincipal, covers: Covers::All }
    }

    fn limit(window: Window, limit: u64, burst: u64) -> Limit {
        Limit { window, limit, burst }
    }

    #[test]
    fn sensible_limits_stand_side_by_side_in_order() {
        let limits = vec![
            limit(Window::Day, 1_000_000, 0),
            limit(Window::Second, 100, 200),
            limit(Window::Minute, 5000, 0),
        ];
        let quota = Quota::new(name(), limits).expect("sensible");
        let windows: Vec<Window> = quota.limits.iter().map(|limit| limit.window).collect();
        assert_eq!(windows, Window::ALL);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        use Window::{Day, Minute, Second};
        let wrong = |limits: &[Limit]| Quota::new(name(), limits.to_vec()).unwrap_err();
        assert_eq!(wrong(&[]), QuotaError::Empty);
        assert_eq!(wrong(&[limit(Second, 0, 1)]), QuotaError::Zero(Second));
        assert_eq!(wrong(&[limit(Second, 5, 0)]), QuotaError::Zero(Second));
        assert_eq!(wrong(&[limit(Day, 0, 0)]), QuotaError::Zero(Day));
        assert!(matches!(wrong(&[limit(Second, u64::MAX, 1)]), QuotaError::Absurd { .. }));
        assert!(matches!(wrong(&[limit(Second, 5, u64::MAX)]), QuotaError::Absurd { .. }));
        assert!(matches!(wrong(&[limit(Day, LIMIT_MAX + 1, 0)]), QuotaError::Absurd { .. }));
        assert_eq!(wrong(&[limit(Minute, 5, 1)]), QuotaError::Burst(Minute));
        let burstless = wrong(&[limit(Second, 100, 4)]);
        assert!(burstless.to_string().contains("at least 5"), "{burstless}");
        assert_eq!(wrong(&[limit(Day, 5, 0), limit(Day, 6, 0)]), QuotaError::Twice(Day));
        let conflict = wrong(&[limit(Second, 100, 100), limit(Minute, 50, 0)]);
        assert!(matches!(conflict, QuotaError::Conflict { .. }));
        let idle = wrong(&[limit(Second, 100, 100), limit(Minute, 6101, 0)]);
        assert!(idle.to_string().contains("6100 a minute"), "{idle}");
        assert!(Quota::new(name(), vec![limit(Second, 100, 100), limit(Minute, 6100, 0)]).is_ok());
    }

    #[test]
    fn scopes_read_back_and_nonsense_is_refused() {
        let principal = "arn:aws:iam::111122223333:user/a";
        for (kind, holder) in [
            ("each-account", None),
            ("each-principal", None),
            ("account", Some("111122223333")),
            ("principal", Some(principal)),
        ] {
            let scope = Scope::parse(kind, holder).expect("fine");
            assert_eq!((scope.kind(), scope.holder().as_deref()), (kind, holder));
        }
        assert!(Scope::parse("each-account", Some("x")).unwrap_err().contains("no holder"));
        assert!(Scope::parse("account", None).unwrap_err().contains("name the account"));
        assert!(Scope::parse("account", Some("12")).unwrap_err().contains("12 decimal digits"));
        assert!(Scope::parse("planet", None).unwrap_err().contains("each-principal"));
        assert!("everything".parse::<Covers>().unwrap_err().contains("or all"));
    }

    #[test]
    fn small_and_long_ones_are_prepaid() {
        assert!(limit(Window::Second, 29, 100).is_prepaid());
        assert!(limit(Window::Second, 100, 29).is_prepaid());
        assert!(!limit(Window::Second, 30, 30).is_prepaid());
        assert!(limit(Window::Minute, 1_000_000, 0).is_prepaid());
    }
}
