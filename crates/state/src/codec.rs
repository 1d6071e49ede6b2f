//! How rows and commands become bytes: one schema version byte, then postcard. What a node does not
//! know it refuses rather than guess.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The schema that this build writes.
pub const SCHEMA: u8 = 1;

/// Bytes that are not a row or command of a schema that this build knows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// Nothing there.
    #[error("an empty record")]
    Empty,
    /// Written by a later version of Keyward.
    #[error("a record of schema {0}; this build knows schema {SCHEMA} only: start a newer keyward")]
    Schema(u8),
    /// Damaged.
    #[error("a damaged record: {0}")]
    Damaged(String),
}

/// Encodes a value. Types given here always encode: they hold no maps with unencodable keys and no
/// unsized sequences.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    match postcard::to_extend(value, vec![SCHEMA]) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a type that cannot be encoded: {error}"),
    }
}

/// Decodes what [`encode`] made; trailing bytes are damage.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&schema, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if schema != SCHEMA {
        return Err(CodecError::Schema(schema));
    }
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|e| CodecError::Damaged(e.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(CodecError::Damaged("trailing bytes".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_and_damage_are_refused() {
        let mut bytes = encode(&(7u64, "x"));
        assert_eq!(decode::<(u64, String)>(&bytes), Ok((7, "x".to_owned())));
        bytes[0] = SCHEMA + 1;
        assert_eq!(decode::<(u64, String)>(&bytes), Err(CodecError::Schema(SCHEMA + 1)));
        bytes[0] = SCHEMA;
        bytes.push(0);
        assert!(matches!(decode::<(u64, String)>(&bytes), Err(CodecError::Damaged(_))));
        assert_eq!(decode::<u8>(&[]), Err(CodecError::Empty));
    }
}
