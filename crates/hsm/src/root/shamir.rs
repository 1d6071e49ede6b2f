//! A root key that no one person has: Shamir's secret sharing (A. Shamir, "How to Share a Secret", 1979),
//! byte by byte over GF(256), through `vsss-rs`.
//!
//! A share is 60 bytes, written as 96 characters of Crockford's base32 in 24 groups of four. Small and
//! capital letters, blanks and hyphens make no difference, and `I`, `L` and `O` are read as 1, 1 and 0.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 16 | the digits of the root's id |
//! | 17 | 1 | shares that open the root |
//! | 18 | 1 | shares in all |
//! | 19 | 1 | number of this share, from 1 |
//! | 20 | 32 | its value |
//! | 52 | 8 | checksum: the beginning of SHA-256 over a label and all of the above |

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_env::Entropy;
use parking_lot::RwLock;
use vsss_rs::Gf256;
use zeroize::{Zeroize, Zeroizing};

use super::core::{RootCore, root_arena, root_id};
use super::file::write_new;
use super::params::{CHECK_BYTES, digits, number, values};
use super::passphrase::read_text;
use super::{RootFuture, RootId, RootKind, RootProvider};
use crate::arena::{Arena, Secret};
use crate::error::RootError;
use crate::kdf::counter_hmac_sha256;
use crate::provider::{AES_256_KEY_BYTES, CryptoProvider, RingProvider, scrub_stack};
use crate::reseal::Rng;
use crate::secret_vec::SecretVec;

/// The most shares that a root can have.
pub const SHARES_MAX: u8 = 16;
const NEEDED_MIN: u8 = 2;

const VERSION: u8 = 1;
const COUNTS_AT: usize = 17;
const VALUE_AT: usize = 20;
const CHECKSUM_AT: usize = VALUE_AT + AES_256_KEY_BYTES;
const SHARE_BYTES: usize = 60;
/// Characters of a share's text, without what separates them.
pub(crate) const SHARE_CHARS: usize = SHARE_BYTES * 8 / 5;
const GROUP_CHARS: usize = 4;
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

const CHECK_LABEL: &[u8] = b"keyward shamir check v1";
const CHECKSUM_LABEL: &[u8] = b"keyward share checksum v1";

const FORMAT_VERSION: u32 = 1;
const PREAMBLE: &str = "\
# Keyward Shamir root: which root this node waits for. Not secret.
# The shares themselves are with their keepers.
";

/// What is known of a root without any share.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ShareFile {
    /// The digits of the root's id.
    digest: [u8; 16],
    needed: u8,
    shares: u8,
    check: [u8; CHECK_BYTES],
}

impl ShareFile {
    fn id(&self) -> RootId {
        RootId::new(RootKind::Shamir, self.digest)
    }

    fn to_text(&self) -> String {
        let mut text = PREAMBLE.to_owned();
        for (name, value) in [
            ("version", FORMAT_VERSION.to_string()),
            ("root", hex::encode(self.digest)),
            ("needed", self.needed.to_string()),
            ("shares", self.shares.to_string()),
            ("check", hex::encode(self.check)),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut values = values(text)?;
        let mut take = |name| values.remove(name).ok_or_else(|| format!("`{name}` is missing"));
        if take("version")? != FORMAT_VERSION.to_string() {
            return Err(format!("only version {FORMAT_VERSION} is known here"));
        }
        let parsed = Self {
            digest: digits("root", take("root")?)?,
            needed: number("needed", take("needed")?)?,
            shares: number("shares", take("shares")?)?,
            check: digits("check", take("check")?)?,
        };
        check_counts(parsed.needed, parsed.shares).map_err(|error| error.to_string())?;
        match values.keys().next() {
            Some(name) => Err(format!("`{name}` is not known here")),
            None => Ok(parsed),
        }
    }

    fn read(path: &Path) -> Result<Self, RootError> {
        let params_error = |what| RootError::Params { path: path.to_owned(), what };
        Self::parse(&read_text(path)?).map_err(params_error)
    }
}

fn check_counts(needed: u8, shares: u8) -> Result<(), RootError> {
    if NEEDED_MIN <= needed && needed <= shares && shares <= SHARES_MAX {
        Ok(())
    } else {
        Err(RootError::ShareCounts { needed, shares })
    }
}

/// Tells the right key from a wrong one, and nothing about it (a PRF's output).
fn check_value(root_key: &Secret) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    counter_hmac_sha256(&RingProvider, root_key.expose(), CHECK_LABEL, &[], &mut check);
    scrub_stack();
    check
}

/// How far the opening of a [`ShamirRoot`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareProgress {
    /// Shares given; as many as needed once the root is open.
    pub given: u8,
    /// Shares that open the root.
    pub needed: u8,
    /// Whether the root is open.
    pub open: bool,
}

/// A root key that is split in shares, of which a few open it. After a start it is sealed: whoever keeps
/// a share offers it, and with enough of them the key is put together in locked memory. The file beside
/// it says which root is waited for and holds no secret.
pub struct ShamirRoot {
    path: PathBuf,
    file: ShareFile,
    id: RootId,
    arena: Arc<Arena>,
    entropy: Arc<dyn Entropy>,
    state: RwLock<State>,
}

enum State {
    /// Whole shares, each checked by itself, at most one of a number.
    Sealed(Vec<Secret>),
    Open(RootCore),
}

impl ShamirRoot {
    /// Makes a new root, its file, and its shares, of which `needed` open it. The root is open.
    /// `allow_unlocked` is as in [`crate::ArenaConfig`].
    ///
    /// Give out every share before anything is sealed under the root: they are nowhere else.
    ///
    /// # Errors
    /// [`RootError::ShareCounts`] unless 2 <= `needed` <= `shares` <= [`SHARES_MAX`];
    /// [`RootError::Exists`] when there is a file already.
    pub fn create(
        path: &Path,
        needed: u8,
        shares: u8,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<(Self, Shares), RootError> {
        check_counts(needed, shares)?;
        let arena = root_arena(allow_unlocked)?;
        let root_key = arena.random(&*entropy, AES_256_KEY_BYTES)?;
        let digest = digest_of(&root_key)?;
        let file = ShareFile { digest, needed, shares, check: check_value(&root_key) };
        let made = split(&file, &root_key, &*entropy, &arena)?;
        write_new(path, file.to_text().as_bytes())?;
        let core =
            RootCore::new(RootKind::Shamir, &root_key, Arc::clone(&arena), Arc::clone(&entropy))?;
        let root = Self::with_state(path, file, arena, entropy, State::Open(core));
        Ok((root, Shares(made.into_iter())))
    }

    /// Reads which root is waited for. It is sealed.
    ///
    /// # Errors
    /// [`RootError::Missing`] and [`RootError::Params`] for the file.
    pub fn open(
        path: &Path,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        let file = ShareFile::read(path)?;
        let arena = root_arena(allow_unlocked)?;
        Ok(Self::with_state(path, file, arena, entropy, State::Sealed(Vec::new())))
    }

    fn with_state(
        path: &Path,
        file: ShareFile,
        arena: Arc<Arena>,
        entropy: Arc<dyn Entropy>,
        state: State,
    ) -> Self {
        let id = file.id();
        Self { path: path.to_owned(), file, id, arena, entropy, state: RwLock::new(state) }
    }

    /// Takes one share. With the last one that is needed the root opens. When it is open already, a good
    /// share changes nothing.
    ///
    /// # Errors
    /// [`RootError::ShareForm`], [`RootError::ShareDamaged`], [`RootError::ShareForeign`] and
    /// [`RootError::ShareDuplicate`] leave the shares given before as they were.
    /// [`RootError::SharesWrong`]: enough were given, and their key is not this root's; all are forgotten.
    pub fn offer(&self, text: &SecretVec) -> Result<ShareProgress, RootError> {
        let share = decode(text.expose(), &self.arena)?;
        self.check_share(&share)?;
        let mut state = self.state.write();
        let State::Sealed(given) = &mut *state else { return Ok(self.progress_of(&state)) };
        let index = index_of(&share);
        if given.iter().any(|known| index_of(known) == index) {
            return Err(RootError::ShareDuplicate { index });
        }
        given.push(share);
        if given.len() < usize::from(self.file.needed) {
            return Ok(self.progress_of(&state));
        }
        let given = std::mem::take(given);
        *state = State::Open(self.combine(&given)?);
        Ok(self.progress_of(&state))
    }

    /// Whether the share is of this root: its parts apart from its value.
    fn check_share(&self, share: &Secret) -> Result<(), RootError> {
        let bytes = share.expose();
        let (sum, whole) = (checksum(bytes), &bytes[CHECKSUM_AT..]);
        if bytes[0] != VERSION || !RingProvider.equal(&sum, whole) {
            return Err(RootError::ShareDamaged);
        }
        if bytes[1..COUNTS_AT] != self.file.digest {
            let mut digest = [0; 16];
            digest.copy_from_slice(&bytes[1..COUNTS_AT]);
            let found = RootId::new(RootKind::Shamir, digest);
            return Err(RootError::ShareForeign { expected: self.id.clone(), found });
        }
        let counts = [bytes[COUNTS_AT], bytes[COUNTS_AT + 1]];
        if counts != [self.file.needed, self.file.shares]
            || !(1..=self.file.shares).contains(&index_of(share))
        {
            return Err(RootError::ShareDamaged);
        }
        Ok(())
    }

    fn combine(&self, given: &[Secret]) -> Result<RootCore, RootError> {
        let wrong = || RootError::SharesWrong(self.id.clone());
        let root_key = {
            let mut parts = Zeroizing::new(Vec::with_capacity(given.len()));
            for share in given {
                let mut part = Vec::with_capacity(1 + AES_256_KEY_BYTES);
                part.push(index_of(share));
                part.extend_from_slice(&share.expose()[VALUE_AT..CHECKSUM_AT]);
                parts.push(part);
            }
            let combined = Gf256::combine_bytes(&*parts).map(Zeroizing::new);
            scrub_stack();
            self.arena.copy_in(&combined.map_err(|_| wrong())?)?
        };
        let right = RingProvider.equal(&check_value(&root_key), &self.file.check);
        if !right || root_id(RootKind::Shamir, &root_key)? != self.id {
            return Err(wrong());
        }
        RootCore::new(
            RootKind::Shamir,
            &root_key,
            Arc::clone(&self.arena),
            Arc::clone(&self.entropy),
        )
    }

    /// How far the opening is.
    #[must_use]
    pub fn progress(&self) -> ShareProgress {
        self.progress_of(&self.state.read())
    }

    fn progress_of(&self, state: &State) -> ShareProgress {
        let needed = self.file.needed;
        match state {
            State::Open(_) => ShareProgress { given: needed, needed, open: true },
            State::Sealed(given) => {
                // At most SHARES_MAX.
                let given = u8::try_from(given.len()).unwrap_or(u8::MAX);
                ShareProgress { given, needed, open: false }
            }
        }
    }

    /// Forgets the key, and shares that were given: the root is sealed as after a start. Domain keys that
    /// are open stay so; see [`crate::Hsm::watch_roots`].
    pub fn seal(&self) {
        *self.state.write() = State::Sealed(Vec::new());
    }

    /// Forgets the shares given so far. An open root stays open.
    pub fn reset(&self) {
        if let State::Sealed(given) = &mut *self.state.write() {
            given.clear();
        }
    }

    fn with_core<T>(
        &self,
        work: impl FnOnce(&RootCore) -> Result<T, RootError>,
    ) -> Result<T, RootError> {
        let state = self.state.read();
        match &*state {
            State::Open(core) => work(core),
            State::Sealed(_) => {
                let ShareProgress { given, needed, .. } = self.progress_of(&state);
                Err(RootError::Sealed { root: self.id.clone(), given, needed })
            }
        }
    }
}

impl RootProvider for ShamirRoot {
    fn wrap<'a>(&'a self, plaintext: &'a Secret, aad: &'a [u8]) -> RootFuture<'a, Vec<u8>> {
        Box::pin(async move { self.with_core(|core| core.wrap(plaintext, aad)) })
    }

    fn unwrap<'a>(
        &'a self,
        sealed: &'a [u8],
        aad: &'a [u8],
        arena: &'a Arc<Arena>,
    ) -> RootFuture<'a, Secret> {
        Box::pin(async move { self.with_core(|core| core.unwrap(sealed, aad, arena)) })
    }

    fn identity(&self) -> &RootId {
        &self.id
    }

    fn kind(&self) -> RootKind {
        RootKind::Shamir
    }

    /// Also looks whether the file is still as it was.
    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(async move {
            if ShareFile::read(&self.path)? != self.file {
                return Err(RootError::Changed { path: self.path.clone(), root: self.id.clone() });
            }
            self.with_core(RootCore::self_test)
        })
    }
}

/// The digits of the id of the root whose key this is.
fn digest_of(root_key: &Secret) -> Result<[u8; 16], RootError> {
    let id = root_id(RootKind::Shamir, root_key)?;
    let text = id.as_str().rsplit(':').next().unwrap_or_default();
    digits("root", text).map_err(|_| RootError::Id)
}

fn split(
    file: &ShareFile,
    root_key: &Secret,
    entropy: &dyn Entropy,
    arena: &Arc<Arena>,
) -> Result<Vec<Secret>, RootError> {
    let (needed, shares) = (usize::from(file.needed), usize::from(file.shares));
    let parts = Gf256::split_bytes(needed, shares, root_key.expose(), Rng(entropy));
    scrub_stack();
    let parts = Zeroizing::new(parts.map_err(|_| RootError::Crypto("secret sharing"))?);
    let mut made = Vec::with_capacity(shares);
    for (number, part) in (1..=file.shares).zip(parts.iter()) {
        let [index, value @ ..] = part.as_slice() else { break };
        if *index != number || value.len() != AES_256_KEY_BYTES {
            break;
        }
        let mut share = arena.zeroed(SHARE_BYTES)?;
        let bytes = share.expose_mut();
        bytes[0] = VERSION;
        bytes[1..COUNTS_AT].copy_from_slice(&file.digest);
        bytes[COUNTS_AT..VALUE_AT].copy_from_slice(&[file.needed, file.shares, number]);
        bytes[VALUE_AT..CHECKSUM_AT].copy_from_slice(value);
        let sum = checksum(bytes);
        bytes[CHECKSUM_AT..].copy_from_slice(&sum);
        made.push(share);
    }
    if made.len() == shares { Ok(made) } else { Err(RootError::Crypto("secret sharing")) }
}

fn index_of(share: &Secret) -> u8 {
    share.expose()[VALUE_AT - 1]
}

fn checksum(share: &[u8]) -> [u8; SHARE_BYTES - CHECKSUM_AT] {
    let digest = RingProvider.sha256(&[CHECKSUM_LABEL, &share[..CHECKSUM_AT]]);
    scrub_stack();
    let mut sum = [0; SHARE_BYTES - CHECKSUM_AT];
    sum.copy_from_slice(&digest[..SHARE_BYTES - CHECKSUM_AT]);
    sum
}

/// The shares of a new root, in locked memory until each is taken. What is not taken is wiped on drop.
pub struct Shares(std::vec::IntoIter<Secret>);

impl Iterator for Shares {
    type Item = ShareText;

    fn next(&mut self) -> Option<ShareText> {
        self.0.next().map(|share| encode(&share))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// The text of one share, wiped on drop. It cannot be printed by accident, cloned or serialised.
pub struct ShareText {
    index: u8,
    text: SecretVec,
}

impl ShareText {
    /// The number of the share, from 1. Not secret.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The text: 24 groups of four characters with hyphens between. What is copied out of here is the
    /// caller's to wipe.
    #[must_use]
    pub fn expose(&self) -> &SecretVec {
        &self.text
    }
}

/// Crockford's base32. What a character stands for is found without a table, so that no cache line tells.
fn encode(share: &Secret) -> ShareText {
    let mut text = Vec::with_capacity(SHARE_CHARS + SHARE_CHARS / GROUP_CHARS);
    for (number, [a, b, c, d, e]) in share.expose().as_chunks::<5>().0.iter().enumerate() {
        let mut bits = u64::from_be_bytes([0, 0, 0, *a, *b, *c, *d, *e]);
        for place in 0..8 {
            if (number * 8 + place) % GROUP_CHARS == 0 && !text.is_empty() {
                text.push(b'-');
            }
            text.push(character(((bits >> (35 - 5 * place)) & 31) as u8));
        }
        bits.zeroize();
    }
    ShareText { index: index_of(share), text: SecretVec::new(text) }
}

fn character(value: u8) -> u8 {
    let mut found = 0;
    for (number, symbol) in (0u8..).zip(ALPHABET) {
        found |=
            symbol & (subtle::ConstantTimeEq::ct_eq(&number, &value).unwrap_u8().wrapping_neg());
    }
    found
}

fn decode(text: &[u8], arena: &Arc<Arena>) -> Result<Secret, RootError> {
    let mut share = arena.zeroed(SHARE_BYTES)?;
    let (mut bits, mut held, mut filled) = (0u32, 0, 0);
    for byte in text.iter().filter(|byte| !matches!(byte, b'-' | b' ' | b'\t' | b'\r' | b'\n')) {
        let value = value_of(*byte).ok_or(RootError::ShareForm)?;
        bits = (bits << 5 | u32::from(value)) & 0xfff;
        held += 5;
        if held >= 8 {
            held -= 8;
            let place = share.expose_mut().get_mut(filled).ok_or(RootError::ShareForm)?;
            *place = (bits >> held) as u8;
            filled += 1;
        }
    }
    bits.zeroize();
    if filled == SHARE_BYTES && held == 0 { Ok(share) } else { Err(RootError::ShareForm) }
}

fn value_of(byte: u8) -> Option<u8> {
    let symbol = match byte.to_ascii_uppercase() {
        b'I' | b'L' => b'1',
        b'O' => b'0',
        symbol => symbol,
    };
    let (mut found, mut known) = (0, 0);
    for (number, candidate) in (0u8..).zip(ALPHABET) {
        let same = subtle::ConstantTimeEq::ct_eq(candidate, &symbol).unwrap_u8();
        found |= number & same.wrapping_neg();
        known |= same;
    }
    (known == 1).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SeededEntropy, block_on, small_arena};

    struct Bench {
        folder: tempfile::TempDir,
        first: ShamirRoot,
        texts: Vec<SecretVec>,
    }

    fn bench(needed: u8, shares: u8, seed: u64) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.shares");
        let entropy = SeededEntropy::shared(seed);
        let (first, made) = ShamirRoot::create(&path, needed, shares, entropy, true).unwrap();
        let texts = made.map(|share| SecretVec::new(share.expose().expose().to_vec())).collect();
        Bench { folder, first, texts }
    }

    impl Bench {
        fn path(&self) -> PathBuf {
            self.folder.path().join("root.shares")
        }

        /// As after a restart.
        fn sealed(&self) -> ShamirRoot {
            ShamirRoot::open(&self.path(), SeededEntropy::shared(9), true).unwrap()
        }

        fn wrapped(&self) -> Vec<u8> {
            let secret = self.first.arena.copy_in(b"domain key").unwrap();
            block_on(self.first.wrap(&secret, b"aad")).unwrap()
        }

        fn raw(&self, number: usize) -> Vec<u8> {
            decode(self.texts[number].expose(), &small_arena()).unwrap().expose().to_vec()
        }
    }

    fn text_of(mut bytes: Vec<u8>, mend: bool) -> SecretVec {
        if mend {
            let sum = checksum(&bytes);
            bytes[CHECKSUM_AT..].copy_from_slice(&sum);
        }
        let text = encode(&small_arena().copy_in(&bytes).unwrap());
        SecretVec::new(text.expose().expose().to_vec())
    }

    fn unwrap(root: &ShamirRoot, wrapped: &[u8]) -> Result<Vec<u8>, RootError> {
        block_on(root.unwrap(wrapped, b"aad", &root.arena)).map(|secret| secret.expose().to_vec())
    }

    #[test]
    fn every_set_of_enough_shares_opens_the_root_in_any_order_and_no_smaller_set_does() {
        for (needed, shares) in [(2, 2), (2, 3), (3, 4), (3, 5), (5, 5), (2, 5)] {
            let bench = bench(needed, shares, 1);
            let wrapped = bench.wrapped();
            for set in 0u32..1 << shares {
                let mut members: Vec<usize> =
                    (0..usize::from(shares)).filter(|i| set >> i & 1 == 1).collect();
                if set % 3 == 1 {
                    members.reverse();
                }
                let root = bench.sealed();
                for (given, member) in (1u8..).zip(&members) {
                    let progress = root.offer(&bench.texts[*member]).unwrap();
                    let given = given.min(needed);
                    let expected = ShareProgress { given, needed, open: given == needed };
                    assert_eq!(progress, expected);
                    assert_eq!(root.progress(), expected);
                }
                let given = u8::try_from(members.len()).unwrap();
                match unwrap(&root, &wrapped) {
                    Ok(opened) => {
                        assert!(given >= needed, "{given} of {needed} opened the root");
                        assert_eq!(opened, b"domain key");
                        block_on(root.health()).unwrap();
                    }
                    Err(error) => {
                        assert!(given < needed, "{given} of {needed}: {error}");
                        assert!(
                            matches!(&error, RootError::Sealed { given: g, needed: n, root: id }
                            if (*g, *n) == (given, needed) && id == root.identity())
                        );
                        let more = format!("{} more are needed", needed - given);
                        assert!(error.to_string().contains(&more), "{error}");
                        assert!(matches!(block_on(root.health()), Err(RootError::Sealed { .. })));
                    }
                }
            }
        }
    }

    #[test]
    fn the_root_that_opens_is_the_one_that_was_made() {
        let bench = bench(2, 3, 1);
        let root = bench.sealed();
        assert_eq!(root.identity(), bench.first.identity());
        assert!(root.identity().as_str().starts_with("shamir:"));
        assert_eq!(root.kind(), RootKind::Shamir);
        let text = std::fs::read_to_string(bench.path()).unwrap();
        assert_eq!(ShareFile::parse(&text).unwrap(), bench.first.file);
        assert!(matches!(
            ShamirRoot::create(&bench.path(), 2, 3, SeededEntropy::shared(3), true),
            Err(RootError::Exists { .. })
        ));
    }

    #[test]
    fn every_mistyped_character_is_noticed_and_forgotten_and_so_is_a_wrong_length() {
        let bench = bench(2, 3, 1);
        let root = bench.sealed();
        let good = bench.texts[0].expose();
        assert_eq!(good.len(), 24 * 4 + 23);
        for position in (0..good.len()).filter(|i| good[*i] != b'-') {
            for other in ALPHABET.iter().filter(|c| **c != good[position]) {
                let mut text = good.to_vec();
                text[position] = *other;
                let refused = root.offer(&SecretVec::new(text));
                assert!(matches!(refused, Err(RootError::ShareDamaged)), "{position}");
            }
        }
        for text in [
            &b""[..],
            b"0",
            &good[1..],
            &good[..good.len() - 1],
            b"no share at all",
            &[good, b"0"].concat(),
        ] {
            let refused = root.offer(&SecretVec::new(text.to_vec()));
            assert!(matches!(refused, Err(RootError::ShareForm)));
        }
        assert_eq!(root.progress().given, 0);
    }

    #[test]
    fn people_may_type_small_letters_blanks_and_look_alikes() {
        let bench = bench(2, 3, 1);
        let root = bench.sealed();
        let sloppy = |text: &SecretVec| {
            let text = String::from_utf8(text.expose().to_vec()).unwrap();
            let text = text.to_lowercase().replace('1', "l").replace('0', "o").replace('-', " ");
            SecretVec::new(format!(" {text}\r\n").into_bytes())
        };
        root.offer(&sloppy(&bench.texts[0])).unwrap();
        assert!(root.offer(&sloppy(&bench.texts[2])).unwrap().open);
    }

    #[test]
    fn shares_of_another_root_and_shares_given_twice_are_refused_and_the_others_stay() {
        let (mine, other) = (bench(3, 4, 1), bench(3, 4, 2));
        let root = mine.sealed();
        root.offer(&mine.texts[0]).unwrap();
        let foreign = root.offer(&other.texts[1]);
        assert!(matches!(foreign, Err(RootError::ShareForeign { expected, found })
            if expected == *root.identity() && found == *other.first.identity()));
        let again = root.offer(&mine.texts[0]);
        assert!(matches!(again, Err(RootError::ShareDuplicate { index: 1 })));
        assert_eq!(root.progress(), ShareProgress { given: 1, needed: 3, open: false });
        root.offer(&mine.texts[1]).unwrap();
        assert!(root.offer(&mine.texts[3]).unwrap().open);
        // Open, it says so, and still tells a bad share from a good one.
        assert!(root.offer(&mine.texts[0]).unwrap().open);
        assert!(matches!(root.offer(&other.texts[0]), Err(RootError::ShareForeign { .. })));
    }

    #[test]
    fn a_forged_share_opens_nothing_and_the_set_is_forgotten() {
        let bench = bench(2, 3, 1);
        let root = bench.sealed();
        let mut forged = bench.raw(0);
        forged[VALUE_AT] ^= 1;
        root.offer(&text_of(forged, true)).unwrap();
        let refused = root.offer(&bench.texts[1]);
        assert!(matches!(refused, Err(RootError::SharesWrong(id)) if id == *root.identity()));
        assert_eq!(root.progress(), ShareProgress { given: 0, needed: 2, open: false });
        root.offer(&bench.texts[0]).unwrap();
        assert!(root.offer(&bench.texts[1]).unwrap().open);
    }

    /// A label that lies about the counts, the number or the version, with a checksum that fits.
    #[test]
    fn a_share_whose_label_does_not_fit_the_root_is_refused() {
        let bench = bench(2, 3, 1);
        let root = bench.sealed();
        for (place, value) in [(0, 2), (17, 3), (18, 4), (19, 0), (19, 4), (19, 255)] {
            let mut bytes = bench.raw(0);
            bytes[place] = value;
            let refused = root.offer(&text_of(bytes, true));
            assert!(matches!(refused, Err(RootError::ShareDamaged)), "{place}");
        }
    }

    #[test]
    fn sealing_forgets_the_key_and_reset_the_shares() {
        let bench = bench(2, 3, 1);
        let wrapped = bench.wrapped();
        let root = bench.sealed();
        let free = root.arena.slots_free();
        root.offer(&bench.texts[0]).unwrap();
        root.reset();
        assert_eq!(root.progress().given, 0);
        assert_eq!(root.arena.slots_free(), free);
        root.offer(&bench.texts[0]).unwrap();
        root.offer(&bench.texts[1]).unwrap();
        root.reset();
        unwrap(&root, &wrapped).unwrap();
        root.seal();
        assert!(matches!(unwrap(&root, &wrapped), Err(RootError::Sealed { given: 0, .. })));
        assert_eq!(root.arena.slots_free(), free);
        root.offer(&bench.texts[1]).unwrap();
        root.offer(&bench.texts[2]).unwrap();
        unwrap(&root, &wrapped).unwrap();
    }

    #[test]
    fn shares_leave_locked_memory_as_they_are_taken_and_numbers_make_sense() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.shares");
        let entropy = SeededEntropy::shared(1);
        for (needed, shares) in [(0, 3), (1, 3), (4, 3), (2, 17), (0, 0), (1, 1)] {
            let refused = ShamirRoot::create(&path, needed, shares, entropy.clone(), true);
            assert!(matches!(refused, Err(RootError::ShareCounts { .. })), "{needed} of {shares}");
        }
        let (root, mut made) = ShamirRoot::create(&path, 2, 16, entropy, true).unwrap();
        let free = root.arena.slots_free();
        for number in 1..=3 {
            assert_eq!(made.next().unwrap().index(), number);
            assert_eq!(root.arena.slots_free(), free + usize::from(number));
        }
        drop(made);
        assert_eq!(root.arena.slots_free(), free + 16);
    }

    #[test]
    fn lines_of_the_file_that_are_missing_unknown_or_wrong_are_named() {
        let bench = bench(2, 3, 1);
        let text = std::fs::read_to_string(bench.path()).unwrap();
        for name in ["version", "root", "needed", "shares", "check"] {
            let without: String = text
                .lines()
                .filter(|l| !l.starts_with(name))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(ShareFile::parse(&without), Err(format!("`{name}` is missing")));
        }
        for (from, to, expected) in [
            ("version = 1", "version = 2", "only version 1"),
            ("needed = 2", "needed = 4", "not allowed"),
            ("needed = 2", "needed = 300", "not a number"),
            ("shares = 3", "shares = 3\ncolour = 1", "`colour` is not known"),
        ] {
            let error = ShareFile::parse(&text.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::write(bench.path(), text.replace("needed = 2", "needed = 3")).unwrap();
        assert!(matches!(block_on(bench.first.health()), Err(RootError::Changed { .. })));
    }
}
