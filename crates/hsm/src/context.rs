//! The encryption context in the one form that is authenticated.

use std::borrow::Cow;

use keyward_model::limits::ENCRYPTION_CONTEXT_BYTES_MAX;

use crate::error::ContextError;

/// Bytes of a length or of the number of pairs in the encoding.
const LENGTH_BYTES: usize = 2;

/// An encryption context, sorted and encoded so that equal contexts, and no others, are equal bytes. Not
/// secret: it may be logged, and is.
///
/// Encoding: the number of pairs, then for each pair, in ascending order of the key's bytes, key and value,
/// each after its length. Numbers are 16 bits, big-endian. The empty context is two zero bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalContext(Cow<'static, [u8]>);

impl CanonicalContext {
    /// Sorts and encodes.
    ///
    /// # Errors
    /// [`ContextError::TooLong`] when the encoding is longer than
    /// [`ENCRYPTION_CONTEXT_BYTES_MAX`]; [`ContextError::DuplicateKey`] when a key occurs twice.
    pub fn new<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ContextError> {
        const TOO_LONG: ContextError =
            ContextError::TooLong { bytes_max: ENCRYPTION_CONTEXT_BYTES_MAX };
        let mut sorted = Vec::new();
        let mut bytes = LENGTH_BYTES;
        for (key, value) in pairs {
            bytes = bytes.saturating_add(2 * LENGTH_BYTES + key.len() + value.len());
            if bytes > ENCRYPTION_CONTEXT_BYTES_MAX {
                return Err(TOO_LONG);
            }
            sorted.push((key, value));
        }
        if sorted.is_empty() {
            return Ok(Self::empty());
        }
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(ContextError::DuplicateKey);
        }
        let mut encoded = Vec::with_capacity(bytes);
        // The limit on the whole keeps every length below 2^16.
        let length = |len: usize| u16::try_from(len).map(u16::to_be_bytes).map_err(|_| TOO_LONG);
        encoded.extend_from_slice(&length(sorted.len())?);
        for text in sorted.iter().flat_map(|(key, value)| [key, value]) {
            encoded.extend_from_slice(&length(text.len())?);
            encoded.extend_from_slice(text.as_bytes());
        }
        Ok(Self(encoded.into()))
    }

    /// The context without pairs, which is also what no context at all means.
    #[must_use]
    pub fn empty() -> Self {
        Self(Cow::Borrowed(&[0; LENGTH_BYTES]))
    }

    /// The encoding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn context(pairs: &[(&str, &str)]) -> CanonicalContext {
        CanonicalContext::new(pairs.iter().copied()).unwrap()
    }

    #[test]
    fn order_does_not_matter_and_everything_else_does() {
        assert_eq!(context(&[("a", "1"), ("b", "2")]), context(&[("b", "2"), ("a", "1")]));
        let all = [
            context(&[]),
            context(&[("a", "")]),
            context(&[("", "a")]),
            context(&[("a", "bc")]),
            context(&[("ab", "c")]),
            context(&[("a", "b"), ("c", "")]),
            context(&[("a", ""), ("b", "c")]),
            context(&[("A", "bc")]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{i}");
        }
        assert_eq!(context(&[]), CanonicalContext::empty());
    }

    #[test]
    fn the_encoding_stays_as_it_is_written_down() {
        assert_eq!(
            context(&[("Purpose", "x"), ("A", "")]).as_bytes(),
            b"\x00\x02\x00\x01A\x00\x00\x00\x07Purpose\x00\x01x"
        );
    }

    #[test]
    fn the_limit_counts_the_encoding_to_the_byte() {
        let fits = "v".repeat(ENCRYPTION_CONTEXT_BYTES_MAX - LENGTH_BYTES * 3 - 1);
        assert_eq!(context(&[("k", &fits)]).as_bytes().len(), ENCRYPTION_CONTEXT_BYTES_MAX);
        let longer = format!("{fits}v");
        let refused = CanonicalContext::new([("k", longer.as_str())]);
        assert_eq!(refused, Err(ContextError::TooLong { bytes_max: ENCRYPTION_CONTEXT_BYTES_MAX }));
        let endless = std::iter::repeat(("k", "v"));
        assert!(matches!(CanonicalContext::new(endless), Err(ContextError::TooLong { .. })));
    }

    #[test]
    fn a_key_named_twice_is_refused() {
        let refused = CanonicalContext::new([("k", "1"), ("a", ""), ("k", "1")]);
        assert_eq!(refused, Err(ContextError::DuplicateKey));
    }

    type Pairs = BTreeMap<String, String>;

    fn encode(pairs: &Pairs) -> CanonicalContext {
        CanonicalContext::new(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap()
    }

    proptest! {
        #[test]
        fn equal_encodings_mean_equal_contexts(
            a in proptest::collection::btree_map("[ab]{0,2}", "[ab]{0,2}", 0..4),
            b in proptest::collection::btree_map("[ab]{0,2}", "[ab]{0,2}", 0..4),
        ) {
            prop_assert_eq!(encode(&a) == encode(&b), a == b);
        }
    }
}
