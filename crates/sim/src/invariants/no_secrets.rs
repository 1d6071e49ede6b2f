//! **No plaintext where it has no place** (DESIGN section 10, 9): neither what callers encrypted, nor what nodes drew for
//! keys, is in the rows of a node's databases, in its audit records, or in an error's text; raw, in hexadecimal digits,
//! or in base64.
//!
//! (What nodes draw for keys are 32 bytes at once. One machine of a run is looked at, by the seed: that is cheap.)

use std::collections::{BTreeMap, BTreeSet};

use crate::book::Book;

/// Bytes that are compared first.
const WINDOW: usize = 8;
/// Places of the filter: a power of two.
const PLACES: usize = 1 << 20;

/// Secrets that are looked for.
pub struct Secrets {
    /// A bit for each window that a secret begins with.
    filter: Vec<u64>,
    /// By their first bytes: what follows these, and what it is.
    needles: BTreeMap<[u8; WINDOW], Vec<(Vec<u8>, What)>>,
}

/// What a secret is, and in which form it is looked for.
type What = (&'static str, &'static str);

fn place(window: [u8; WINDOW]) -> usize {
    let mixed = u64::from_le_bytes(window).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(mixed >> 44).unwrap_or(0) % PLACES
}

fn hexadecimal(bytes: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let pair = |byte: &u8| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]];
    bytes.iter().flat_map(pair).collect()
}

/// As far as it does not depend on what follows.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut digits = Vec::with_capacity(bytes.len() * 8 / 6);
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 6 {
            bits -= 6;
            digits.push(DIGITS[usize::try_from(held >> bits & 63).unwrap_or(0)]);
        }
    }
    digits
}

impl Default for Secrets {
    fn default() -> Self {
        Self { filter: vec![0; PLACES / 64], needles: BTreeMap::new() }
    }
}

impl Secrets {
    /// One more secret, of 8 bytes at least.
    pub fn add(&mut self, what: &'static str, secret: &[u8]) {
        self.add_one((what, "raw"), secret);
        self.add_one((what, "in digits"), &hexadecimal(secret, b"0123456789abcdef"));
        self.add_one((what, "in digits"), &hexadecimal(secret, b"0123456789ABCDEF"));
        self.add_one((what, "in base64"), &base64(secret));
    }

    fn add_one(&mut self, what: What, bytes: &[u8]) {
        let Some((first, rest)) = bytes.split_first_chunk::<WINDOW>() else { return };
        let at = place(*first);
        self.filter[at / 64] |= 1 << (at % 64);
        self.needles.entry(*first).or_default().push((rest.to_vec(), what));
    }

    /// What is in these bytes that has no place there.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<String> {
        for at in 0..bytes.len().saturating_sub(WINDOW - 1) {
            let Some((first, rest)) = bytes[at..].split_first_chunk::<WINDOW>() else { break };
            let place = place(*first);
            if self.filter[place / 64] >> (place % 64) & 1 == 0 {
                continue;
            }
            let Some(needles) = self.needles.get(first) else { continue };
            if let Some((_, (what, form))) =
                needles.iter().find(|(rest_of, _)| rest.starts_with(rest_of))
            {
                return Some(format!("{what}, {form}"));
            }
        }
        None
    }
}

/// What callers encrypted, and what errors said.
#[derive(Debug, Default)]
pub struct Texts {
    /// Plaintexts.
    pub plaintexts: Vec<Vec<u8>>,
    /// Texts of errors.
    pub errors: BTreeSet<String>,
}

/// Looks at rows and records, with their places, and at what errors said. `drawn`: what nodes drew for keys.
pub fn look<'a>(
    drawn: impl Iterator<Item = &'a [u8]>,
    places: &[(String, Vec<u8>)],
    book: &mut Book,
) {
    let mut secrets = Secrets::default();
    drawn.for_each(|bytes| secrets.add("what a node drew for a key", bytes));
    for plaintext in &book.texts.plaintexts {
        secrets.add("what a caller encrypted", plaintext);
    }
    let mut broken = Vec::new();
    for (name, bytes) in places {
        broken.extend(secrets.find(bytes).map(|what| format!("A SECRET in {name}: {what}")));
    }
    for text in &book.texts.errors {
        let found = secrets.find(text.as_bytes());
        broken.extend(found.map(|what| format!("A SECRET in an error: {what}: {text}")));
    }
    broken.into_iter().for_each(|what| book.violate(what));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 9] = [0x4d, 0xab, 7, 200, 0, 31, 99, 5, 0xfe];

    #[test]
    fn secrets_are_found_in_every_form() {
        let mut secrets = Secrets::default();
        secrets.add("it", &SECRET);
        assert_eq!(base64(b"light work"), b"bGlnaHQgd29ya");
        let forms = [
            SECRET.to_vec(),
            b"4dab07c8001f6305fe".to_vec(),
            b"4DAB07C8001F6305FE".to_vec(),
            base64(&SECRET),
        ];
        for form in forms {
            assert!(secrets.find(&form).is_some());
            assert!(secrets.find(&[b"text".as_slice(), &form, b"text"].concat()).is_some());
            assert!(secrets.find(&form[..form.len() - 1]).is_none());
            assert!(secrets.find(&form[1..]).is_none());
        }
        assert!(secrets.find(b"").is_none());
    }

    #[test]
    fn rows_records_and_errors_are_looked_at() {
        let mut book = Book::default();
        book.texts.plaintexts.push(SECRET.to_vec());
        let clean = ("a table".to_owned(), vec![0; 100]);
        look(std::iter::empty(), std::slice::from_ref(&clean), &mut book);
        assert!(book.violations.is_empty());
        book.texts.errors.insert("cannot encrypt 4dab07c8001f6305fe".to_owned());
        let drawn = [9; 32];
        let places = [clean, ("a log".to_owned(), [[1; 50].as_slice(), &drawn].concat())];
        look(std::iter::once(drawn.as_slice()), &places, &mut book);
        assert_eq!(book.violations.len(), 2, "{:?}", book.violations);
    }
}
