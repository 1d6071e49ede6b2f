//! From the texts of a request to identifiers, with AWS's refusals. ("Order of checks": shape, then
//! existence, then permission.)

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_hsm::CanonicalContext;
use keyward_model::limits::{
    DESCRIPTION_CHARS_MAX, KEY_ID_CHARS_MAX, MARKER_CHARS_MAX, NUMBER_OF_BYTES_MAX, PageSize,
    TAG_KEY_CHARS_MAX, TAG_VALUE_CHARS_MAX, TAGS_PER_KEY_MAX,
};
use keyward_model::{AccountId, AliasName, ErrorCode, KeyId, KmsError, Region, alias_arn, key_arn};
use keyward_state::{Key, State};

use crate::api::{Context, Tag};

/// Which forms of `KeyId` an operation takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Forms {
    /// Key id or key ARN.
    Key,
    /// Also alias name or alias ARN.
    KeyOrAlias,
}

/// The Region as seen by one caller.
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    pub(crate) region: &'a Region,
    pub(crate) account: AccountId,
}

enum Named {
    Key(AccountId, KeyId),
    Alias(AccountId, AliasName),
}

fn not_found(message: String) -> KmsError {
    KmsError::new(ErrorCode::NotFoundException, message)
}

impl View<'_> {
    pub(crate) fn arn(&self, key: &Key) -> String {
        key_arn(self.region, key.account, key.id)
    }

    /// The key that a `KeyId` parameter names.
    pub(crate) fn key(&self, text: &str, member: &str, forms: Forms) -> Result<Arc<Key>, KmsError> {
        if text.is_empty() {
            return Err(KmsError::constraint_on(
                member,
                text,
                "Member must have length greater than or equal to 1",
            ));
        }
        if text.len() > KEY_ID_CHARS_MAX && text.chars().count() > KEY_ID_CHARS_MAX {
            return Err(KmsError::constraint(
                member,
                &format!("Member must have length less than or equal to {KEY_ID_CHARS_MAX}"),
            ));
        }
        match self.parse(text, forms)? {
            Named::Key(account, id) => self.known_key(account, id),
            Named::Alias(account, name) => {
                let unknown =
                    || not_found(format!("Alias {} is not found.", self.alias_arn(account, &name)));
                let alias = self.state.alias(account, &name).ok_or_else(unknown)?;
                self.known_key(account, alias.target)
            }
        }
    }

    fn alias_arn(&self, account: AccountId, name: &AliasName) -> String {
        alias_arn(self.region, account, name)
    }

    fn known_key(&self, account: AccountId, id: KeyId) -> Result<Arc<Key>, KmsError> {
        let arn = || key_arn(self.region, account, id);
        if account != self.account {
            // Whether or not it exists: that is not the caller's business.
            return Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                format!(
                    "the key {} does not exist, or belongs to another account: use across accounts \
                     needs key policies, which this version does not offer",
                    arn()
                ),
            ));
        }
        match self.state.key(&id) {
            Some(key) if key.account == account => Ok(Arc::clone(key)),
            _ => Err(not_found(format!("Key '{}' does not exist", arn()))),
        }
    }

    fn parse(&self, text: &str, forms: Forms) -> Result<Named, KmsError> {
        if let Some(rest) = text.strip_prefix("arn:") {
            return self.parse_arn(text, rest, forms);
        }
        if text.starts_with("alias/") {
            let invalid = || not_found(format!("Invalid keyId '{text}'"));
            if forms == Forms::Key {
                return Err(invalid());
            }
            let name = text.parse().map_err(|_| invalid())?;
            return Ok(Named::Alias(self.account, name));
        }
        let id = text.parse().map_err(|_| not_found(format!("Invalid keyId '{text}'")))?;
        Ok(Named::Key(self.account, id))
    }

    fn parse_arn(&self, text: &str, rest: &str, forms: Forms) -> Result<Named, KmsError> {
        let invalid = |why: &str| {
            KmsError::new(
                ErrorCode::InvalidArnException,
                format!(
                    "{text} is not a valid key ARN ({why}): expected \
                     arn:aws:kms:<region>:<account>:key/<id> or :alias/<name>"
                ),
            )
        };
        let mut parts = rest.splitn(5, ':');
        let mut part = || parts.next().ok_or_else(|| invalid("it has too few parts"));
        let [partition, service, region, account, resource] =
            [part()?, part()?, part()?, part()?, part()?];
        if partition != keyward_model::PARTITION || service != "kms" {
            return Err(invalid("it is not of the kms service"));
        }
        if region != self.region.as_str() {
            return Err(not_found(format!("Invalid arn {region}")));
        }
        let account: AccountId = account.parse().map_err(|_| invalid("the account"))?;
        if let Some(id) = resource.strip_prefix("key/") {
            let id = id.parse().map_err(|_| not_found(format!("Invalid keyId '{id}'")))?;
            return Ok(Named::Key(account, id));
        }
        if resource.starts_with("alias/") {
            if forms == Forms::Key {
                return Err(KmsError::new(
                    ErrorCode::InvalidArnException,
                    "Key Aliases are not supported for this operation.",
                ));
            }
            let name = resource.parse().map_err(|_| invalid("the alias name"))?;
            return Ok(Named::Alias(account, name));
        }
        Err(invalid("it names neither a key nor an alias"))
    }
}

/// An `AliasName` parameter.
pub(crate) fn alias_name(text: &str) -> Result<AliasName, KmsError> {
    if text.is_empty() || text.chars().count() > 256 {
        return Err(KmsError::constraint("aliasName", "Member must have length between 1 and 256"));
    }
    if !text.starts_with("alias/") {
        return Err(KmsError::validation(
            "Alias must start with the prefix \"alias/\". Example: alias/my-key",
        ));
    }
    text.parse().map_err(|e| {
        KmsError::new(ErrorCode::InvalidAliasNameException, format!("alias name '{text}' is {e}"))
    })
}

/// A description.
pub(crate) fn description(text: &str) -> Result<(), KmsError> {
    if text.chars().count() > DESCRIPTION_CHARS_MAX {
        return Err(KmsError::constraint(
            "description",
            &format!("Member must have length less than or equal to {DESCRIPTION_CHARS_MAX}"),
        ));
    }
    Ok(())
}

/// Tags of CreateKey and TagResource.
pub(crate) fn tags(tags: &[Tag]) -> Result<BTreeMap<String, String>, KmsError> {
    let refuse = |message: &'static str| KmsError::new(ErrorCode::TagException, message);
    let mut map = BTreeMap::new();
    let count = tags.len();
    for (position, Tag { key, value }) in tags.iter().enumerate() {
        tag_key(key, &format!("tags.{}.member.tagKey", position + 1))?;
        if value.chars().count() > TAG_VALUE_CHARS_MAX {
            return Err(KmsError::constraint(
                &format!("tags.{}.member.tagValue", position + 1),
                &format!("Member must have length less than or equal to {TAG_VALUE_CHARS_MAX}"),
            ));
        }
        map.insert(key.clone(), value.clone());
    }
    if map.len() < count {
        return Err(refuse("Duplicate tag keys"));
    }
    if count > TAGS_PER_KEY_MAX {
        return Err(refuse("Too many tags"));
    }
    Ok(map)
}

/// One tag key.
pub(crate) fn tag_key(key: &str, member: &str) -> Result<(), KmsError> {
    let chars = key.chars().count();
    if !(1..=TAG_KEY_CHARS_MAX).contains(&chars) {
        return Err(KmsError::constraint(
            member,
            &format!("Member must have length between 1 and {TAG_KEY_CHARS_MAX}"),
        ));
    }
    if key.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("aws:")) {
        return Err(KmsError::new(
            ErrorCode::TagException,
            "Tags beginning with aws: are reserved",
        ));
    }
    Ok(())
}

/// An encryption context, canonical.
pub(crate) fn context(context: &Context) -> Result<CanonicalContext, KmsError> {
    CanonicalContext::new(context.iter().map(|(k, v)| (k.as_str(), v.as_str())))
        .map_err(|error| KmsError::validation(error.to_string()))
}

/// `EncryptionAlgorithm`: only SYMMETRIC_DEFAULT fits the keys that there are.
pub(crate) fn algorithm(text: Option<&str>, member: &str) -> Result<(), KmsError> {
    match text {
        None | Some("SYMMETRIC_DEFAULT") => Ok(()),
        Some(other @ ("RSAES_OAEP_SHA_1" | "RSAES_OAEP_SHA_256" | "SM2PKE")) => Err(KmsError::new(
            ErrorCode::InvalidKeyUsageException,
            format!("Algorithm {other} is incompatible with key spec SYMMETRIC_DEFAULT."),
        )),
        Some(other) => Err(KmsError::constraint_on(
            member,
            other,
            "Member must satisfy enum value set: [SYMMETRIC_DEFAULT, RSAES_OAEP_SHA_1, \
             RSAES_OAEP_SHA_256, SM2PKE]",
        )),
    }
}

/// A number of bytes, 1 to 1024.
pub(crate) fn number_of_bytes(number: i32) -> Result<usize, KmsError> {
    let refuse = |constraint: &str| {
        KmsError::constraint_on("numberOfBytes", &number.to_string(), constraint)
    };
    if number < 1 {
        return Err(refuse("Member must have value greater than or equal to 1"));
    }
    if number > NUMBER_OF_BYTES_MAX {
        return Err(refuse("Member must have value less than or equal to 1024"));
    }
    Ok(number.unsigned_abs() as usize)
}

/// The length of a data key: exactly one of the two ways to say it.
pub(crate) fn data_key_length(
    key_spec: Option<&str>,
    bytes: Option<i32>,
) -> Result<usize, KmsError> {
    match (key_spec, bytes) {
        (Some("AES_128"), None) => Ok(16),
        (Some("AES_256"), None) => Ok(32),
        (Some(other), None) => Err(KmsError::constraint_on(
            "keySpec",
            other,
            "Member must satisfy enum value set: [AES_256, AES_128]",
        )),
        (None, Some(bytes)) => number_of_bytes(bytes),
        _ => Err(KmsError::validation("Please specify either number of bytes or key spec.")),
    }
}

/// `Limit`: above the documented maximum it is capped.
pub(crate) fn limit(limit: Option<i32>, page: PageSize) -> Result<usize, KmsError> {
    match limit {
        None => Ok(page.default),
        Some(limit @ 1..=1000) => Ok((limit.unsigned_abs() as usize).min(page.max)),
        Some(limit) => Err(KmsError::constraint_on(
            "limit",
            &limit.to_string(),
            "Member must have value between 1 and 1000",
        )),
    }
}

/// Markers are opaque to callers: hexadecimal digits of what the last page ended with.
pub(crate) fn marker_of(kind: char, last: &str) -> String {
    format!("{kind}{}", hex::encode(last))
}

/// What a marker says, if it is one that was handed out for this kind of listing.
pub(crate) fn marker<T: std::str::FromStr>(
    kind: char,
    marker: Option<&str>,
) -> Result<Option<T>, KmsError> {
    let Some(marker) = marker else { return Ok(None) };
    let invalid = || {
        KmsError::new(
            ErrorCode::InvalidMarkerException,
            "the marker is not one that this listing handed out: begin again without a marker",
        )
    };
    if marker.is_empty() || marker.chars().count() > MARKER_CHARS_MAX {
        return Err(KmsError::constraint("marker", "Member must have length between 1 and 1024"));
    }
    let digits = marker.strip_prefix(kind).ok_or_else(invalid)?;
    let bytes = hex::decode(digits).map_err(|_| invalid())?;
    let text = String::from_utf8(bytes).map_err(|_| invalid())?;
    text.parse().map(Some).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_survive_a_round_trip_and_others_are_refused() {
        let name: AliasName = "alias/a".parse().unwrap();
        let text = marker_of('a', name.as_str());
        assert_eq!(marker::<AliasName>('a', Some(&text)).unwrap(), Some(name));
        for bad in ["", "zz", "a0", "b616c696173", "a616c6961732f"] {
            assert!(marker::<AliasName>('a', Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_capped_or_refused() {
        let page = PageSize { default: 50, max: 100 };
        assert_eq!(limit(None, page).unwrap(), 50);
        assert_eq!(limit(Some(1000), page).unwrap(), 100);
        assert!(limit(Some(0), page).is_err());
        assert!(limit(Some(1001), page).is_err());
    }

    #[test]
    fn a_data_key_has_exactly_one_length() {
        assert_eq!(data_key_length(Some("AES_128"), None).unwrap(), 16);
        assert_eq!(data_key_length(None, Some(1024)).unwrap(), 1024);
        for (spec, bytes) in [
            (None, None),
            (Some("AES_256"), Some(1)),
            (Some("X"), None),
            (None, Some(0)),
            (None, Some(1025)),
        ] {
            assert!(data_key_length(spec, bytes).is_err(), "{spec:?} {bytes:?}");
        }
    }

    #[test]
    fn tags_are_checked() {
        let tag = |k: &str, v: &str| Tag { key: k.into(), value: v.into() };
        assert!(tags(&[tag("a", "1"), tag("b", "")]).is_ok());
        let code = |list: Vec<Tag>| tags(&list).unwrap_err().code;
        assert_eq!(code(vec![tag("a", "1"), tag("a", "2")]), ErrorCode::TagException);
        assert_eq!(code(vec![tag("AWS:x", "")]), ErrorCode::TagException);
        assert_eq!(code(vec![tag("", "")]), ErrorCode::ValidationException);
        assert_eq!(code(vec![tag("a", &"v".repeat(257))]), ErrorCode::ValidationException);
        let many = (0..51).map(|i| tag(&i.to_string(), "")).collect();
        assert_eq!(code(many), ErrorCode::TagException);
    }
}
