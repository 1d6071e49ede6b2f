//! Identifiers: key ids, key-material ids, accounts, Regions, principals and their ARNs.
//!
//! Everything is parsed once, at a door, and trusted inside. Forms follow the AWS KMS developer guide
//! ("Key identifiers (KeyId)") and the API model's shapes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The only partition Keyward speaks of.
pub const PARTITION: &str = "aws";

/// The id of a KMS key: a lower-case UUID, or `mrk-` and 32 hexadecimal digits for a multi-Region key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId {
    multi_region: bool,
    bytes: [u8; 16],
}

impl KeyId {
    /// Builds a single-Region id from 16 random bytes; version and variant bits of a random UUID
    /// (RFC 9562, section 5.4) are set here.
    #[must_use]
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self { multi_region: false, bytes }
    }

    /// Builds an id from its stored parts. Any 16 bytes are a possible id.
    #[must_use]
    pub const fn from_parts(multi_region: bool, bytes: [u8; 16]) -> Self {
        Self { multi_region, bytes }
    }

    /// True for `mrk-` ids.
    #[must_use]
    pub const fn is_multi_region(&self) -> bool {
        self.multi_region
    }

    /// The 16 bytes behind the text.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.bytes
    }
}

/// Hexadecimal digits in a place of the caller's: a call shows several ids. `place` has two bytes for each of `bytes`.
fn hex_digits<'a>(bytes: &[u8], place: &'a mut [u8]) -> &'a str {
    let encoded = hex::encode_to_slice(bytes, place).is_ok();
    assert!(encoded, "the place has another length");
    std::str::from_utf8(place).unwrap_or_default()
}

/// Where the digits of each byte stand in a UUID (RFC 9562, section 4).
const UUID_AT: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
const UUID_CHARS: usize = 36;

impl KeyId {
    /// The text.
    fn text(&self) -> [u8; UUID_CHARS] {
        let mut place = [b'-'; UUID_CHARS];
        if self.multi_region {
            place[..4].copy_from_slice(b"mrk-");
            hex_digits(&self.bytes, &mut place[4..]);
        } else {
            for (at, byte) in UUID_AT.into_iter().zip(&self.bytes) {
                hex_digits(std::slice::from_ref(byte), &mut place[at..at + 2]);
            }
        }
        place
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ascii(&self.text()))
    }
}

fn ascii(text: &[u8]) -> &str {
    std::str::from_utf8(text).unwrap_or_default()
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text was not of the form that its type asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseIdError {
    /// What was expected, as a noun: "key id", "account id".
    pub what: &'static str,
    /// The form that would be right.
    pub form: &'static str,
}

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid {}: expected {}", self.what, self.form)
    }
}

impl std::error::Error for ParseIdError {}

/// What a lower-case hexadecimal digit stands for.
fn lower_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl FromStr for KeyId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const ERR: ParseIdError = ParseIdError {
            what: "key id",
            form: "a lower-case UUID, or mrk- and 32 hexadecimal digits",
        };
        let text = text.as_bytes();
        if text.len() != UUID_CHARS {
            return Err(ERR);
        }
        let mut bytes = [0; 16];
        let multi_region = text.starts_with(b"mrk-");
        let mut well_formed = multi_region || [8, 13, 18, 23].iter().all(|at| text[*at] == b'-');
        for (number, byte) in bytes.iter_mut().enumerate() {
            let at = if multi_region { 4 + 2 * number } else { UUID_AT[number] };
            match (lower_hex(text[at]), lower_hex(text[at + 1])) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => well_formed = false,
            }
        }
        if well_formed { Ok(Self { multi_region, bytes }) } else { Err(ERR) }
    }
}

/// The id of one key material of a key: 64 hexadecimal digits. One KMS key has one per rotation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyMaterialId([u8; 32]);

impl KeyMaterialId {
    /// Wraps the 32 bytes behind the text.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes behind the text.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyMaterialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(hex_digits(&self.0, &mut [0; 64]))
    }
}

impl fmt::Debug for KeyMaterialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of a domain key: 16 pseudorandom bytes derived from the key, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DomainKeyId([u8; 16]);

impl DomainKeyId {
    /// Wraps 16 bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes behind the text.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DomainKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for DomainKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An account: 12 decimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountId(u64);

impl AccountId {
    /// The `arn:aws:iam::<account>:root` principal that stands for the whole account.
    #[must_use]
    pub fn root_arn(&self) -> String {
        format!("arn:{PARTITION}:iam::{self}:root")
    }

    /// The text.
    fn text(self) -> [u8; 12] {
        let mut digits = [b'0'; 12];
        let mut rest = self.0;
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789"[(rest % 10) as usize];
            rest /= 10;
        }
        digits
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ascii(&self.text()))
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AccountId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const ERR: ParseIdError = ParseIdError { what: "account id", form: "12 decimal digits" };
        if text.len() != 12 || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ERR);
        }
        text.parse().map(Self).map_err(|_| ERR)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $form:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(ParseIdError { what: $what, form: $form })
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// A Region's name, as AWS writes them: `eu-west-1`. 1 to 32 characters, `^([a-z]+-){2,3}\d+$`.
    Region,
    "Region",
    "two or three lower-case words and a number, as in eu-west-1 (at most 32 characters)",
    |text| {
        let parts: Vec<&str> = text.split('-').collect();
        let Some((number, words)) = parts.split_last() else { return false };
        text.len() <= 32
            && (2..=3).contains(&words.len())
            && words.iter().all(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase()))
            && !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
    }
);

text_id!(
    /// A principal's ARN: `arn:aws:iam::<account>:user/<path/name>`, `:role/<path/name>`.
    PrincipalArn,
    "principal ARN",
    "arn:aws:iam::<12 digits>:user/<name> or :role/<name>, at most 256 characters",
    |text| {
        let Some(rest) = text.strip_prefix("arn:aws:iam::") else { return false };
        let Some((account, resource)) = rest.split_once(':') else { return false };
        let Some((kind, name)) = resource.split_once('/') else { return false };
        text.len() <= 256
            && account.parse::<AccountId>().is_ok()
            && matches!(kind, "user" | "role")
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_/-".contains(&b))
    }
);

impl PrincipalArn {
    /// The account that the principal belongs to.
    #[must_use]
    pub fn account(&self) -> AccountId {
        // The form was checked when the value was made: the account is at a fixed place.
        self.0["arn:aws:iam::".len()..][..12].parse().unwrap_or(AccountId(0))
    }
}

text_id!(
    /// An alias name with its prefix: `alias/<name>`. 1 to 256 characters, `^alias/[a-zA-Z0-9/_-]+$`.
    AliasName,
    "alias name",
    "alias/ followed by letters, digits, and any of / _ - (at most 256 characters in all)",
    |text| {
        let Some(name) = text.strip_prefix("alias/") else { return false };
        text.len() <= 256
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-".contains(&b))
    }
);

impl AliasName {
    /// True for names that AWS keeps for itself: `alias/aws/...`.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with("alias/aws/")
    }
}

/// The ARN of a key, for whoever only shows it: its text needs no memory of its own.
#[derive(Clone, Copy)]
pub struct KeyArn {
    text: [u8; KEY_ARN_CHARS_MAX],
    chars: usize,
}

/// `arn:aws:kms:<region>:<account>:key/<id>` with the longest Region's name.
const KEY_ARN_CHARS_MAX: usize = 98;

impl KeyArn {
    /// The ARN of that key.
    #[must_use]
    pub fn new(region: &Region, account: AccountId, key: KeyId) -> Self {
        // Each call shows one: written by hand, this takes a third of the time that `format!` does.
        let mut arn = Self { text: [0; KEY_ARN_CHARS_MAX], chars: 0 };
        for part in ["arn:", PARTITION, ":kms:", region.as_str(), ":"] {
            arn.push(part.as_bytes());
        }
        arn.push(&account.text());
        arn.push(b":key/");
        arn.push(&key.text());
        arn
    }

    fn push(&mut self, part: &[u8]) {
        self.text[self.chars..self.chars + part.len()].copy_from_slice(part);
        self.chars += part.len();
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        ascii(&self.text[..self.chars])
    }
}

/// The ARN of a key.
#[must_use]
pub fn key_arn(region: &Region, account: AccountId, key: KeyId) -> String {
    KeyArn::new(region, account, key).as_str().to_owned()
}

/// The ARN of an alias.
#[must_use]
pub fn alias_arn(region: &Region, account: AccountId, alias: &AliasName) -> String {
    format!("arn:{PARTITION}:kms:{region}:{account}:{alias}")
}

/// A point in Region time, in milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Milliseconds in a day.
    pub const DAY_MS: i64 = 86_400_000;

    /// This point and a number of whole days later.
    #[must_use]
    pub const fn plus_days(self, days: u32) -> Self {
        Self(self.0 + days as i64 * Self::DAY_MS)
    }
}

/// A node of a Region's Raft cluster. Unique for ever: a node that comes back with another disk gets a
/// new one.
pub type NodeId = u64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn key_ids_survive_a_round_trip_through_text(multi in any::<bool>(), bytes in any::<[u8; 16]>()) {
            let id = KeyId::from_parts(multi, bytes);
            prop_assert_eq!(id.to_string().parse::<KeyId>(), Ok(id));
        }
    }

    #[test]
    fn key_ids_of_a_wrong_form_are_refused() {
        for text in [
            "",
            "mrk-",
            "1234",
            "0000000-0000-4000-8000-000000000000",
            "0000000G-0000-4000-8000-000000000000",
            "0000000A-0000-4000-8000-000000000000",
            "mrk-00000000000040008000000000000000f",
        ] {
            assert!(text.parse::<KeyId>().is_err(), "{text}");
        }
    }

    #[test]
    fn regions_and_principals_are_checked_and_taken_apart() {
        assert!("eu-west-1".parse::<Region>().is_ok());
        assert!("us-gov-west-1".parse::<Region>().is_ok());
        for text in ["", "eu", "eu-1", "EU-west-1", "eu-west-", "a-b-c-d-1"] {
            assert!(text.parse::<Region>().is_err(), "{text}");
        }
        let arn: PrincipalArn = "arn:aws:iam::111122223333:user/team/alice".parse().unwrap();
        assert_eq!(arn.account().to_string(), "111122223333");
        for text in [
            "alice",
            "arn:aws:iam::1:user/a",
            "arn:aws:iam::111122223333:group/a",
            "arn:aws:iam::111122223333:user/",
            "arn:aws:iam::111122223333:user/a b",
        ] {
            assert!(text.parse::<PrincipalArn>().is_err(), "{text}");
        }
    }
}
