//! The file beside a passphrase root: salt, Argon2id parameters and a check value, as `name = value` lines.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::str::FromStr;

use crate::error::RootError;

/// Bytes of the salt (RFC 9106, section 3.1: 16 are recommended).
pub(super) const SALT_BYTES: usize = 16;
/// Bytes of the check value.
pub(super) const CHECK_BYTES: usize = 16;
/// The longest parameter file that is read.
pub(super) const FILE_BYTES_MAX: usize = 4096;

const FORMAT_VERSION: u32 = 1;
const PREAMBLE: &str = "\
# Keyward passphrase root: what the passphrase is turned into the root key with.
# Not secret, and not replaceable: without this file the passphrase opens nothing. Back it up.
";

/// Cost parameters of Argon2id (RFC 9106). They are stored with the root, so a later default changes
/// nothing for a root that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgonParams {
    /// Memory, in KiB: 19,456 (19 MiB) to 4,194,304 (4 GiB).
    pub memory_kib: u32,
    /// Passes over the memory: 2 to 64.
    pub passes: u32,
    /// Lanes: 1 to 16. They are computed one after the other.
    pub lanes: u32,
}

impl Default for ArgonParams {
    /// 64 MiB, three passes, one lane: RFC 9106's second recommended option (section 4) with one lane
    /// instead of four, since lanes are not computed in parallel here.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 1 }
    }
}

impl ArgonParams {
    /// Below the lower bounds guessing is cheap; above the upper ones a damaged file would tie up the
    /// machine.
    pub(super) fn check(self) -> Result<(), RootError> {
        if !(19_456..=4 << 20).contains(&self.memory_kib) {
            return Err(RootError::ParamsRange("memory is 19456 to 4194304 KiB"));
        }
        if !(2..=64).contains(&self.passes) {
            return Err(RootError::ParamsRange("passes are 2 to 64"));
        }
        if !(1..=16).contains(&self.lanes) {
            return Err(RootError::ParamsRange("lanes are 1 to 16"));
        }
        Ok(())
    }
}

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParamsFile {
    pub argon: ArgonParams,
    pub salt: [u8; SALT_BYTES],
    pub check: [u8; CHECK_BYTES],
}

impl ParamsFile {
    pub(super) fn to_text(&self) -> String {
        let mut text = PREAMBLE.to_owned();
        for (name, value) in [
            ("version", FORMAT_VERSION.to_string()),
            ("kdf", "argon2id".to_owned()),
            ("memory_kib", self.argon.memory_kib.to_string()),
            ("passes", self.argon.passes.to_string()),
            ("lanes", self.argon.lanes.to_string()),
            ("salt", hex::encode(self.salt)),
            ("check", hex::encode(self.check)),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }

    /// Reads the text back. Every line must be known, and be there once. The error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut values = values(text)?;
        let mut take = |name| values.remove(name).ok_or_else(|| format!("`{name}` is missing"));
        if take("version")? != FORMAT_VERSION.to_string() {
            return Err(format!("only version {FORMAT_VERSION} is known here"));
        }
        if take("kdf")? != "argon2id" {
            return Err("only argon2id is known here".to_owned());
        }
        let argon = ArgonParams {
            memory_kib: number("memory_kib", take("memory_kib")?)?,
            passes: number("passes", take("passes")?)?,
            lanes: number("lanes", take("lanes")?)?,
        };
        let parsed = Self {
            argon,
            salt: digits("salt", take("salt")?)?,
            check: digits("check", take("check")?)?,
        };
        match values.keys().next() {
            Some(name) => Err(format!("`{name}` is not known here")),
            None => Ok(parsed),
        }
    }
}

/// The `name = value` lines of a file. Empty lines and those that begin with `#` are passed over.
pub(super) fn values(text: &str) -> Result<BTreeMap<&str, &str>, String> {
    let mut values = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| "a line is not of the form name = value".to_owned())?;
        if values.insert(name.trim(), value.trim()).is_some() {
            return Err(format!("`{}` occurs twice", name.trim()));
        }
    }
    Ok(values)
}

pub(super) fn number<N: FromStr>(name: &str, value: &str) -> Result<N, String> {
    value.parse().map_err(|_| format!("`{name}` is not a number"))
}

pub(super) fn digits<const N: usize>(name: &str, value: &str) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    match hex::decode_to_slice(value, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(format!("`{name}` is not {} hexadecimal digits", 2 * N)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ParamsFile {
        ParamsFile { argon: ArgonParams::default(), salt: [0xab; 16], check: [0xcd; 16] }
    }

    #[test]
    fn the_file_survives_a_round_trip() {
        assert_eq!(ParamsFile::parse(&sample().to_text()), Ok(sample()));
        assert!(sample().to_text().len() < FILE_BYTES_MAX);
    }

    #[test]
    fn lines_that_are_missing_doubled_unknown_or_wrong_are_named() {
        let text = sample().to_text();
        for name in ["version", "kdf", "memory_kib", "passes", "lanes", "salt", "check"] {
            let without: String =
                text.lines().filter(|l| !l.starts_with(name)).map(|l| format!("{l}\n")).collect();
            assert_eq!(ParamsFile::parse(&without), Err(format!("`{name}` is missing")));
        }
        for (from, to, expected) in [
            ("version = 1", "version = 2", "only version 1"),
            ("argon2id", "argon2d", "only argon2id"),
            ("passes = 3", "passes = x", "`passes` is not a number"),
            ("salt = ab", "salt = a", "`salt` is not 32"),
            ("lanes = 1", "lanes = 1\nlanes = 1", "`lanes` occurs twice"),
            ("lanes = 1", "lanes = 1\ncolour = 1", "`colour` is not known"),
            ("lanes = 1", "lanes", "name = value"),
        ] {
            let error = ParamsFile::parse(&text.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn parameters_are_held_to_their_range() {
        let good = ArgonParams::default();
        good.check().unwrap();
        ArgonParams { memory_kib: 19_456, passes: 2, lanes: 16 }.check().unwrap();
        for bad in [
            ArgonParams { memory_kib: 19_455, ..good },
            ArgonParams { memory_kib: (4 << 20) + 1, ..good },
            ArgonParams { passes: 1, ..good },
            ArgonParams { passes: 65, ..good },
            ArgonParams { lanes: 0, ..good },
            ArgonParams { lanes: 17, ..good },
        ] {
            assert!(matches!(bad.check(), Err(RootError::ParamsRange(_))), "{bad:?}");
        }
    }
}
