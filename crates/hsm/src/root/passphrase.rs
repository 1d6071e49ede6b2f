//! A root key derived from a passphrase with Argon2id (RFC 9106). Salt, costs and a check value are in a
//! small text file; the passphrase comes from a prompt or a credential file, never from an argument.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use keyward_env::Entropy;
use zeroize::Zeroizing;

use super::{
    LocalRoot, ROOT_KEY_BYTES, RootFuture, RootId, RootKind, RootProvider, local_provider,
    root_arena,
};
use crate::arena::{Arena, Secret};
use crate::error::RootError;
use crate::provider::{CryptoProvider, RingProvider};
use crate::secret_vec::SecretVec;

/// The shortest passphrase: Argon2id slows guessing down, it does not make a short one long.
pub const PASSPHRASE_BYTES_MIN: usize = 12;
const PASSPHRASE_BYTES_MAX: usize = 1024;
const SALT_BYTES: usize = 16;

/// What Argon2id is given (RFC 9106, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgonParams {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for ArgonParams {
    /// 64 MiB, 3 passes, 1 lane.
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, passes: 3, lanes: 1 }
    }
}

/// The root behind a passphrase.
pub struct PassphraseRoot {
    root: LocalRoot,
    path: PathBuf,
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RootError {
    move |source| RootError::File { what, path: path.to_owned(), source }
}

/// Reads a passphrase from a credential file, without one newline at its end.
///
/// # Errors
/// [`RootError::Missing`], [`RootError::File`], [`RootError::PassphraseLength`].
pub fn read_credential(path: &Path) -> Result<SecretVec, RootError> {
    let mut file = fs::File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => RootError::Missing { path: path.to_owned() },
        _ => file_error("open", path)(error),
    })?;
    // One buffer of the full size, so that growing leaves no copies behind.
    let mut bytes = SecretVec::zeroed(PASSPHRASE_BYTES_MAX + 2);
    let mut len = 0;
    loop {
        match file.read(&mut bytes.expose_mut()[len..]).map_err(file_error("read", path))? {
            0 => break,
            read => len += read,
        }
    }
    if len > 0 && bytes.expose()[len - 1] == b'\n' {
        len -= 1;
    }
    bytes.truncate(len);
    check_length(len)?;
    Ok(bytes)
}

fn check_length(bytes: usize) -> Result<(), RootError> {
    if (PASSPHRASE_BYTES_MIN..=PASSPHRASE_BYTES_MAX).contains(&bytes) {
        return Ok(());
    }
    let (bytes_min, bytes_max) = (PASSPHRASE_BYTES_MIN, PASSPHRASE_BYTES_MAX);
    Err(RootError::PassphraseLength { bytes, bytes_min, bytes_max })
}

fn derive(
    passphrase: &SecretVec,
    salt: &[u8],
    params: ArgonParams,
    arena: &Arc<Arena>,
) -> Result<Secret, RootError> {
    let ArgonParams { memory_kib, passes, lanes } = params;
    if !(8 * 1024..=4 * 1024 * 1024).contains(&memory_kib) {
        return Err(RootError::ParamsRange("memory must be 8 MiB to 4 GiB"));
    }
    if !(1..=64).contains(&passes) || !(1..=64).contains(&lanes) {
        return Err(RootError::ParamsRange("passes and lanes must be 1 to 64"));
    }
    let params = Params::new(memory_kib, passes, lanes, Some(ROOT_KEY_BYTES))
        .map_err(|_| RootError::ParamsRange("refused by Argon2id"))?;
    let mut key = arena.zeroed(ROOT_KEY_BYTES)?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.expose(), salt, key.expose_mut())
        .map_err(|_| RootError::Crypto("Argon2id"))?;
    Ok(key)
}

impl PassphraseRoot {
    /// Makes a new root: draws a salt and writes the parameter file. Takes a second or so: keep it off
    /// async threads.
    ///
    /// # Errors
    /// [`RootError::Exists`], [`RootError::PassphraseLength`], [`RootError::ParamsRange`],
    /// [`RootError::File`], [`RootError::Arena`].
    pub fn create(
        path: &Path,
        passphrase: &SecretVec,
        params: ArgonParams,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        check_length(passphrase.len())?;
        let mut salt = [0; SALT_BYTES];
        entropy.fill(&mut salt);
        let key = derive(passphrase, &salt, params, &root_arena(allow_unlocked)?)?;
        let root = LocalRoot::new(RootKind::Passphrase, key, entropy);
        let ArgonParams { memory_kib, passes, lanes } = params;
        let text = format!(
            "keyward-root-passphrase 1\nargon2id {memory_kib} {passes} {lanes}\nsalt {}\nroot {}\n",
            hex::encode(salt),
            root.id()
        );
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => RootError::Exists { path: path.to_owned() },
                _ => file_error("create", path)(error),
            })?;
        file.write_all(text.as_bytes()).map_err(file_error("write", path))?;
        file.sync_all().map_err(file_error("sync", path))?;
        Ok(Self { root, path: path.to_owned() })
    }

    /// Opens a root. The id in the file is the check value: another passphrase gives another id.
    ///
    /// # Errors
    /// [`RootError::Missing`], [`RootError::Params`], [`RootError::WrongPassphrase`],
    /// [`RootError::PassphraseLength`], [`RootError::Arena`].
    pub fn open(
        path: &Path,
        passphrase: &SecretVec,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        check_length(passphrase.len())?;
        let (params, salt, id) = read_params(path)?;
        let key = derive(passphrase, &salt, params, &root_arena(allow_unlocked)?)?;
        let root = LocalRoot::new(RootKind::Passphrase, key, entropy);
        if !RingProvider.equal(root.id().as_str().as_bytes(), id.as_str().as_bytes()) {
            return Err(RootError::WrongPassphrase { path: path.to_owned() });
        }
        Ok(Self { root, path: path.to_owned() })
    }
}

fn read_params(path: &Path) -> Result<(ArgonParams, Zeroizing<Vec<u8>>, RootId), RootError> {
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => RootError::Missing { path: path.to_owned() },
        _ => file_error("read", path)(error),
    })?;
    let wrong = |what: &str| RootError::Params { path: path.to_owned(), what: what.to_owned() };
    let lines: Vec<&str> = text.lines().collect();
    let &[first, costs, salt, root] = lines.as_slice() else {
        return Err(wrong("four lines expected"));
    };
    if first != "keyward-root-passphrase 1" {
        return Err(wrong("not a parameter file of a version known here"));
    }
    let costs: Vec<u32> = costs
        .strip_prefix("argon2id ")
        .map(|rest| rest.split(' ').filter_map(|cost| cost.parse().ok()).collect())
        .unwrap_or_default();
    let &[memory_kib, passes, lanes] = costs.as_slice() else {
        return Err(wrong("the line 'argon2id MEMORY PASSES LANES' is damaged"));
    };
    let salt = salt
        .strip_prefix("salt ")
        .and_then(|digits| hex::decode(digits).ok())
        .filter(|salt| salt.len() == SALT_BYTES)
        .ok_or_else(|| wrong("the line 'salt' is damaged"))?;
    let root = root
        .strip_prefix("root ")
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| wrong("the line 'root' is damaged"))?;
    Ok((ArgonParams { memory_kib, passes, lanes }, Zeroizing::new(salt), root))
}

impl RootProvider for PassphraseRoot {
    local_provider!(RootKind::Passphrase);

    /// The parameter file must still name this root, or the next start would fail.
    fn health(&self) -> RootFuture<'_, ()> {
        let checked = read_params(&self.path).and_then(|(_, _, id)| {
            if id == *self.root.id() {
                Ok(())
            } else {
                Err(RootError::Changed { path: self.path.clone(), root: self.root.id().clone() })
            }
        });
        Box::pin(std::future::ready(checked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SeededEntropy;

    const CHEAP: ArgonParams = ArgonParams { memory_kib: 8 * 1024, passes: 1, lanes: 1 };

    fn secret(text: &str) -> SecretVec {
        SecretVec::new(text.as_bytes().to_vec())
    }

    #[test]
    fn the_right_passphrase_opens_and_another_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.params");
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(3));
        let made = PassphraseRoot::create(
            &path,
            &secret("correct horse battery"),
            CHEAP,
            Arc::clone(&entropy),
            true,
        )
        .unwrap();
        let open = |text: &str| {
            PassphraseRoot::open(&path, &secret(text), Arc::clone(&entropy), true)
        };
        assert_eq!(open("correct horse battery").unwrap().identity(), made.identity());
        assert!(matches!(open("correct horse batterz"), Err(RootError::WrongPassphrase { .. })));
        assert!(matches!(open("short"), Err(RootError::PassphraseLength { .. })));
        fs::write(&path, "junk\n").unwrap();
        assert!(matches!(open("correct horse battery"), Err(RootError::Params { .. })));
    }

    #[test]
    fn a_credential_loses_one_newline_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credential");
        fs::write(&path, "twelve bytes \n\n").unwrap();
        assert_eq!(read_credential(&path).unwrap().expose(), b"twelve bytes \n");
        fs::write(&path, vec![b'x'; 5000]).unwrap();
        assert!(matches!(read_credential(&path), Err(RootError::PassphraseLength { .. })));
    }
}
