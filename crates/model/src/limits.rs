//! Every limit, with its reason. Values without a source named are Keyward's own.

use std::time::Duration;

/// Plaintext of Encrypt, in bytes (AWS: 1 to 4096).
pub const PLAINTEXT_BYTES_MAX: usize = 4096;
/// A ciphertext blob, in bytes (AWS: 1 to 6144).
pub const CIPHERTEXT_BYTES_MAX: usize = 6144;
/// Bytes of a data key or of GenerateRandom (AWS: 1 to 1024).
pub const NUMBER_OF_BYTES_MAX: i32 = 1024;
/// The whole encryption context, encoded, in bytes (AWS promises 8192 bytes to external key stores).
pub const ENCRYPTION_CONTEXT_BYTES_MAX: usize = 8192;
/// Characters of a description (AWS: 0 to 8192).
pub const DESCRIPTION_CHARS_MAX: usize = 8192;
/// Characters of a `KeyId` parameter (AWS: 1 to 2048).
pub const KEY_ID_CHARS_MAX: usize = 2048;
/// Tags on one key (AWS: 50).
pub const TAGS_PER_KEY_MAX: usize = 50;
/// Characters of a tag key (AWS: 1 to 128).
pub const TAG_KEY_CHARS_MAX: usize = 128;
/// Characters of a tag value (AWS: 0 to 256).
pub const TAG_VALUE_CHARS_MAX: usize = 256;
/// Aliases on one key (AWS: 50).
pub const ALIASES_PER_KEY_MAX: u32 = 50;
/// Keys of an account in a Region (AWS: 100 000; adjustable there, and here a node's memory allows far
/// more, so the limit is ten times AWS's default).
pub const KEYS_PER_ACCOUNT_MAX: u32 = 1_000_000;
/// On-demand rotations in a key's life (AWS: 25).
pub const ON_DEMAND_ROTATIONS_MAX: u32 = 25;
/// Waiting period before deletion, in days (AWS: 7 to 30, default 30).
pub const PENDING_WINDOW_DAYS: std::ops::RangeInclusive<i32> = 7..=30;
/// The waiting period when none is named.
pub const PENDING_WINDOW_DAYS_DEFAULT: i32 = 30;
/// Rotation period, in days (AWS: 90 to 2560, default 365).
pub const ROTATION_PERIOD_DAYS: std::ops::RangeInclusive<i32> = 90..=2560;
/// The rotation period when none is named.
pub const ROTATION_PERIOD_DAYS_DEFAULT: i32 = 365;
/// An on-demand rotation is refused when an automatic one is due within this (AWS: 20 minutes).
pub const ROTATION_CONFLICT_WINDOW_MS: i64 = 20 * 60 * 1000;
/// Characters of a pagination marker (AWS: 1 to 1024).
pub const MARKER_CHARS_MAX: usize = 1024;
/// Principals of a Region: they live in every node's memory.
pub const PRINCIPALS_MAX: usize = 100_000;
/// Outside authorities that a Region trusts: each is tried in turn for a certificate that no Region issued.
pub const AUTHORITIES_MAX: usize = 32;
/// Bytes of an outside authority's certificate.
pub const AUTHORITY_BYTES_MAX: usize = 16 * 1024;
/// Quotas: one of each kind for every principal that may be.
pub const QUOTAS_MAX: usize = 200_000;
/// Certificates on record for one principal, revoked ones included.
pub const CERTIFICATES_PER_PRINCIPAL_MAX: usize = 100;
/// A certificate's validity, in days (397 is the longest that public authorities still issue).
pub const CERTIFICATE_DAYS: std::ops::RangeInclusive<u32> = 1..=397;
/// The validity when none is named.
pub const CERTIFICATE_DAYS_DEFAULT: u32 = 90;
/// How long the outcome of a command is kept, so that a retry gets the first outcome.
pub const OUTCOME_KEPT_MS: i64 = 10 * 60 * 1000;
/// How many outcomes are kept at most; the oldest go first. At 1,000 commands a second it covers ten
/// minutes' worth of retries that can still be under way (a call's deadline is at most 60 s).
pub const OUTCOMES_KEPT_MAX: usize = 100_000;
/// A call without a deadline gets this one.
pub const CALL_DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// No call waits longer, whatever its deadline says.
pub const CALL_DEADLINE_MAX: Duration = Duration::from_secs(60);
/// Calls under way on one node's door; more are refused at once.
pub const CALLS_IN_FLIGHT_MAX: usize = 4096;
/// Bytes of one request on the gRPC door: the largest legal request (a tag list of 50, a context of
/// 8 KiB, a description of 8192 four-byte characters) is well below.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// A page's default and largest size, by operation (AWS KMS API reference).
#[derive(Clone, Copy, Debug)]
pub struct PageSize {
    /// When `Limit` is absent.
    pub default: usize,
    /// The largest `Limit` taken.
    pub max: usize,
}

/// ListKeys and ListKeyRotations.
pub const PAGE_KEYS: PageSize = PageSize { default: 100, max: 1000 };
/// ListAliases.
pub const PAGE_ALIASES: PageSize = PageSize { default: 50, max: 100 };
/// ListResourceTags.
pub const PAGE_TAGS: PageSize = PageSize { default: 50, max: 50 };
/// ListPrincipals (Keyward's own).
pub const PAGE_PRINCIPALS: PageSize = PageSize { default: 100, max: 1000 };
