//! A root key that a passphrase gives.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use keyward_env::Entropy;
use zeroize::Zeroize;

use super::core::{RootCore, root_arena, wrap_with_core};
use super::file::write_new;
use super::params::{ArgonParams, CHECK_BYTES, FILE_BYTES_MAX, ParamsFile, SALT_BYTES};
use super::{RootFuture, RootKind, RootProvider};
use crate::arena::{Arena, Secret};
use crate::error::RootError;
use crate::kdf::counter_hmac_sha256;
use crate::provider::{AES_256_KEY_BYTES, CryptoProvider, RingProvider, scrub_stack};
use crate::secret_vec::SecretVec;

/// The shortest passphrase that a new root takes, in bytes. Long ones are better: this only keeps
/// accidents out.
pub const PASSPHRASE_BYTES_MIN: usize = 8;
/// The longest passphrase, in bytes.
const PASSPHRASE_BYTES_MAX: usize = 4096;

const CHECK_LABEL: &[u8] = b"keyward passphrase check v1";

/// A root key derived from a passphrase with Argon2id (RFC 9106). Salt and parameters lie in a file, which
/// is not secret and has to be kept: without it the passphrase opens nothing.
///
/// The check value in that file, and the root's id, let whoever has the *file* try passphrases at the cost
/// of one Argon2id each; so would any sealed copy. The id alone does not: the salt is not in it.
pub struct PassphraseRoot {
    params_path: PathBuf,
    params: ParamsFile,
    core: RootCore,
}

impl PassphraseRoot {
    /// Makes a new root and the parameter file for it. Takes a tenth of a second and
    /// `argon.memory_kib` of memory: call it off the async threads. `allow_unlocked` is as in
    /// [`crate::ArenaConfig`].
    ///
    /// # Errors
    /// [`RootError::Exists`], [`RootError::PassphraseLength`], [`RootError::ParamsRange`].
    pub fn create(
        params_path: &Path,
        passphrase: &SecretVec,
        argon: ArgonParams,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        argon.check()?;
        check_length(passphrase)?;
        let arena = root_arena(allow_unlocked)?;
        let mut salt = [0; SALT_BYTES];
        entropy.fill(&mut salt);
        let root_key = stretch(passphrase, &salt, argon, &arena)?;
        let params = ParamsFile { argon, salt, check: check_value(&root_key) };
        write_new(params_path, params.to_text().as_bytes())?;
        Self::from_key(params_path, params, &root_key, arena, entropy)
    }

    /// Opens a root that [`PassphraseRoot::create`] made, at the same cost.
    ///
    /// # Errors
    /// [`RootError::WrongPassphrase`]; [`RootError::Missing`] and [`RootError::Params`] for the file.
    pub fn open(
        params_path: &Path,
        passphrase: &SecretVec,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        let params = read_params(params_path)?;
        check_length(passphrase)?;
        let arena = root_arena(allow_unlocked)?;
        let root_key = stretch(passphrase, &params.salt, params.argon, &arena)?;
        if !RingProvider.equal(&check_value(&root_key), &params.check) {
            return Err(RootError::WrongPassphrase { path: params_path.to_owned() });
        }
        Self::from_key(params_path, params, &root_key, arena, entropy)
    }

    fn from_key(
        params_path: &Path,
        params: ParamsFile,
        root_key: &Secret,
        arena: Arc<Arena>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, RootError> {
        let core = RootCore::new(RootKind::Passphrase, root_key, arena, entropy)?;
        Ok(Self { params_path: params_path.to_owned(), params, core })
    }
}

impl RootProvider for PassphraseRoot {
    wrap_with_core!();

    fn kind(&self) -> RootKind {
        RootKind::Passphrase
    }

    /// Also looks whether the parameter file is still as it was.
    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(async move {
            if read_params(&self.params_path)? != self.params {
                let (path, root) = (self.params_path.clone(), self.core.id().clone());
                return Err(RootError::Changed { path, root });
            }
            self.core.self_test()
        })
    }
}

/// Reads a passphrase from a file: a credential that systemd or a container platform put there. One
/// newline at the end is taken off, since editors and `echo` put one there. The file's mode is not looked
/// at: such platforms mount secrets with modes of their own.
///
/// # Errors
/// [`RootError::Missing`], [`RootError::File`]; [`RootError::PassphraseLength`] for an empty file or one
/// of more than 4096 bytes.
pub fn read_credential(path: &Path) -> Result<SecretVec, RootError> {
    // Room for a newline, and for one byte more, which tells that the file is too long.
    let mut buffer = SecretVec::zeroed(PASSPHRASE_BYTES_MAX + 2);
    let len = read_bounded(path, buffer.expose_mut())?;
    buffer.truncate(len);
    if buffer.expose().last() == Some(&b'\n') {
        buffer.truncate(len - 1);
    }
    if (1..=PASSPHRASE_BYTES_MAX).contains(&buffer.len()) {
        Ok(buffer)
    } else {
        Err(passphrase_length(buffer.len(), 1))
    }
}

fn passphrase_length(bytes: usize, bytes_min: usize) -> RootError {
    RootError::PassphraseLength { bytes, bytes_min, bytes_max: PASSPHRASE_BYTES_MAX }
}

fn check_length(passphrase: &SecretVec) -> Result<(), RootError> {
    if (PASSPHRASE_BYTES_MIN..=PASSPHRASE_BYTES_MAX).contains(&passphrase.len()) {
        Ok(())
    } else {
        Err(passphrase_length(passphrase.len(), PASSPHRASE_BYTES_MIN))
    }
}

/// Fills `buffer` from the start of a file and returns how far.
fn read_bounded(path: &Path, buffer: &mut [u8]) -> Result<usize, RootError> {
    let error = |what| {
        move |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => RootError::Missing { path: path.to_owned() },
            _ => RootError::File { what, path: path.to_owned(), source },
        }
    };
    let mut file = File::open(path).map_err(error("open"))?;
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(bytes) => len += bytes,
            Err(source) if source.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(error("read")(source)),
        }
    }
    Ok(len)
}

/// Reads a small text file.
pub(super) fn read_text(path: &Path) -> Result<String, RootError> {
    let params_error = |what| RootError::Params { path: path.to_owned(), what };
    let mut buffer = vec![0; FILE_BYTES_MAX + 1];
    let len = read_bounded(path, &mut buffer)?;
    if len > FILE_BYTES_MAX {
        return Err(params_error(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    buffer.truncate(len);
    String::from_utf8(buffer).map_err(|_| params_error("not text".to_owned()))
}

fn read_params(path: &Path) -> Result<ParamsFile, RootError> {
    let params_error = |what| RootError::Params { path: path.to_owned(), what };
    let params = ParamsFile::parse(&read_text(path)?).map_err(params_error)?;
    params.argon.check().map_err(|error| params_error(error.to_string()))?;
    Ok(params)
}

/// Argon2id version 1.3 over the passphrase, into locked memory. Its working memory is wiped.
fn stretch(
    passphrase: &SecretVec,
    salt: &[u8; SALT_BYTES],
    argon: ArgonParams,
    arena: &Arc<Arena>,
) -> Result<Secret, RootError> {
    let failed = |_| RootError::Crypto("Argon2id");
    let params = Params::new(argon.memory_kib, argon.passes, argon.lanes, Some(AES_256_KEY_BYTES))
        .map_err(failed)?;
    let mut blocks = vec![Block::new(); params.block_count()];
    let mut root_key = arena.zeroed(AES_256_KEY_BYTES)?;
    let stretched = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(
            passphrase.expose(),
            salt,
            root_key.expose_mut(),
            &mut blocks,
        );
    blocks.iter_mut().for_each(Zeroize::zeroize);
    scrub_stack();
    stretched.map(|()| root_key).map_err(failed)
}

/// Tells a wrong passphrase from a right one, and nothing about the root key (a PRF's output).
fn check_value(root_key: &Secret) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    counter_hmac_sha256(&RingProvider, root_key.expose(), CHECK_LABEL, &[], &mut check);
    scrub_stack();
    check
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::{SeededEntropy, block_on};

    /// The cheapest that is allowed.
    const CHEAP: ArgonParams = ArgonParams { memory_kib: 19_456, passes: 2, lanes: 1 };

    fn secret(text: &str) -> SecretVec {
        SecretVec::new(text.as_bytes().to_vec())
    }

    fn create(path: &Path, passphrase: &str) -> Result<PassphraseRoot, RootError> {
        let entropy = SeededEntropy::shared(1);
        PassphraseRoot::create(path, &secret(passphrase), CHEAP, entropy, true)
    }

    fn open(path: &Path, passphrase: &str) -> Result<PassphraseRoot, RootError> {
        PassphraseRoot::open(path, &secret(passphrase), SeededEntropy::shared(2), true)
    }

    #[test]
    fn the_right_passphrase_opens_the_same_root_and_a_wrong_one_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.params");
        let first = create(&path, "correct horse").unwrap();
        let second = open(&path, "correct horse").unwrap();
        assert_eq!(first.identity(), second.identity());
        assert_eq!(second.kind(), RootKind::Passphrase);
        let domain_key = first.core.arena().copy_in(b"domain key").unwrap();
        let wrapped = block_on(first.wrap(&domain_key, b"")).unwrap();
        assert_eq!(
            block_on(second.unwrap(&wrapped, b"", first.core.arena())).unwrap().expose(),
            b"domain key"
        );
        for wrong in ["correct horsf", "correct horse\n", "Correct horse"] {
            let refused = open(&path, wrong);
            assert!(matches!(refused, Err(RootError::WrongPassphrase { path: p }) if p == path));
        }
    }

    #[test]
    fn two_roots_of_one_passphrase_differ() {
        let folder = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::shared(3);
        let make = |name: &str| {
            let path = folder.path().join(name);
            let passphrase = secret("correct horse");
            PassphraseRoot::create(&path, &passphrase, CHEAP, entropy.clone(), true).unwrap()
        };
        assert_ne!(make("a").identity(), make("b").identity());
    }

    #[test]
    fn changed_parameters_are_as_good_as_a_wrong_passphrase() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.params");
        create(&path, "correct horse").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("memory_kib = 19456", "memory_kib = 19457")).unwrap();
        assert!(matches!(open(&path, "correct horse"), Err(RootError::WrongPassphrase { .. })));
        fs::write(&path, text.replace("memory_kib = 19456", "memory_kib = 64")).unwrap();
        assert!(matches!(open(&path, "correct horse"), Err(RootError::Params { .. })));
        fs::write(&path, vec![b'#'; 5000]).unwrap();
        assert!(matches!(open(&path, "correct horse"), Err(RootError::Params { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(open(&path, "correct horse"), Err(RootError::Missing { .. })));
    }

    #[test]
    fn a_root_is_not_overwritten_and_weak_input_makes_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.params");
        for short in ["", "1234567"] {
            assert!(matches!(create(&path, short), Err(RootError::PassphraseLength { .. })));
        }
        let weak = ArgonParams { passes: 1, ..CHEAP };
        let entropy = SeededEntropy::shared(1);
        let refused = PassphraseRoot::create(&path, &secret("12345678"), weak, entropy, true);
        assert!(matches!(refused, Err(RootError::ParamsRange(_))));
        assert!(!path.exists());
        create(&path, "12345678").unwrap();
        assert!(matches!(create(&path, "12345678"), Err(RootError::Exists { .. })));
    }

    #[test]
    fn health_notices_a_parameter_file_that_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.params");
        let root = create(&path, "correct horse").unwrap();
        block_on(root.health()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("passes = 2", "passes = 4")).unwrap();
        assert!(matches!(block_on(root.health()), Err(RootError::Changed { .. })));
    }

    #[test]
    fn a_credential_loses_one_newline_and_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credential");
        let long = "x".repeat(PASSPHRASE_BYTES_MAX);
        for (contents, expected) in [
            ("hunter2".to_owned(), "hunter2"),
            ("hunter2\n".to_owned(), "hunter2"),
            ("hunter2\n\n".to_owned(), "hunter2\n"),
            (" hunter2 ".to_owned(), " hunter2 "),
            (long.clone() + "\n", &long),
        ] {
            fs::write(&path, contents).unwrap();
            assert_eq!(read_credential(&path).unwrap().expose(), expected.as_bytes());
        }
        for refused in [String::new(), "\n".to_owned(), long.clone() + "x", long + "\n\n"] {
            fs::write(&path, refused).unwrap();
            assert!(matches!(read_credential(&path), Err(RootError::PassphraseLength { .. })));
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(read_credential(&path), Err(RootError::Missing { .. })));
    }

    /// The root key is what the algorithm gives for the parameters in the file, and each of them counts.
    #[test]
    fn stretching_is_argon2id_version_1_3_with_the_parameters_of_the_file() {
        let arena = root_arena(true).unwrap();
        let (salt, two_lanes) = ([7; SALT_BYTES], ArgonParams { lanes: 2, ..CHEAP });
        let mut seen = std::collections::BTreeSet::new();
        for argon in [CHEAP, two_lanes, ArgonParams { passes: 3, ..CHEAP }] {
            let stretched = stretch(&secret("correct horse"), &salt, argon, &arena).unwrap();
            let params = Params::new(argon.memory_kib, argon.passes, argon.lanes, None).unwrap();
            let mut expected = [0; 32];
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(b"correct horse", &salt, &mut expected)
                .unwrap();
            assert_eq!(stretched.expose(), expected);
            seen.insert(expected);
        }
        assert_eq!(seen.len(), 3);
    }

    /// RFC 9106, section 5.3: the published Argon2id vector (with a secret and associated data, which
    /// Keyward does not use).
    #[test]
    fn argon2id_matches_rfc_9106() {
        let mut params = argon2::ParamsBuilder::new();
        params.m_cost(32).t_cost(3).p_cost(4).output_len(32);
        params.data(argon2::AssociatedData::new(&[4; 12]).unwrap());
        let params = params.build().unwrap();
        let argon =
            Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params).unwrap();
        let mut tag = [0; 32];
        argon.hash_password_into(&[1; 32], &[2; 16], &mut tag).unwrap();
        assert_eq!(
            hex::encode(tag),
            "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
        );
    }
}
