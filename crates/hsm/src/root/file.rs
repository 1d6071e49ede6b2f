//! A root key in a file: 32 random bytes, mode 0600. The embedded default. Who can read the file can open
//! everything that was sealed for it; keep it apart from backups of the data.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_env::Entropy;

use super::{
    LocalRoot, ROOT_KEY_BYTES, RootFuture, RootId, RootKind, RootProvider, local_provider,
    root_arena,
};
use crate::arena::{Arena, Secret};
use crate::error::RootError;

/// The root in a file.
pub struct FileRoot {
    root: LocalRoot,
    path: PathBuf,
    arena: Arc<Arena>,
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RootError {
    move |source| RootError::File { what, path: path.to_owned(), source }
}

impl FileRoot {
    /// Makes a new root and its file. An existing file is never overwritten.
    ///
    /// # Errors
    /// [`RootError::Exists`], [`RootError::File`], [`RootError::Arena`].
    pub fn create(
        path: &Path,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        let arena = root_arena(allow_unlocked)?;
        let key = arena.random(&*entropy, ROOT_KEY_BYTES)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => RootError::Exists { path: path.to_owned() },
                _ => file_error("create", path)(error),
            })?;
        file.write_all(key.expose()).map_err(file_error("write", path))?;
        file.sync_all().map_err(file_error("sync", path))?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(file_error("sync the folder of", path))?;
        }
        let root = LocalRoot::new(RootKind::File, key, entropy);
        Ok(Self { root, path: path.to_owned(), arena })
    }

    /// Opens a root.
    ///
    /// # Errors
    /// [`RootError::Missing`], [`RootError::LooseMode`], [`RootError::OtherOwner`],
    /// [`RootError::WrongLength`], [`RootError::File`], [`RootError::Arena`].
    pub fn open(
        path: &Path,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        let arena = root_arena(allow_unlocked)?;
        let key = read_key(path, &arena)?;
        let root = LocalRoot::new(RootKind::File, key, entropy);
        Ok(Self { root, path: path.to_owned(), arena })
    }
}

/// Reads the key into a slot; it is held nowhere else.
fn read_key(path: &Path, arena: &Arc<Arena>) -> Result<Secret, RootError> {
    let mut file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => RootError::Missing { path: path.to_owned() },
        _ => file_error("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(file_error("look at", path))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(RootError::LooseMode { path: path.to_owned(), mode });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(RootError::OtherOwner { path: path.to_owned(), owner: metadata.uid(), user });
    }
    if !metadata.is_file() || metadata.len() != ROOT_KEY_BYTES as u64 {
        return Err(RootError::WrongLength {
            path: path.to_owned(),
            bytes: metadata.len(),
            expected: ROOT_KEY_BYTES as u64,
        });
    }
    let mut key = arena.zeroed(ROOT_KEY_BYTES)?;
    file.read_exact(key.expose_mut()).map_err(file_error("read", path))?;
    Ok(key)
}

impl RootProvider for FileRoot {
    local_provider!(RootKind::File);

    /// The file must still be there and hold the same root, or the next start would fail.
    fn health(&self) -> RootFuture<'_, ()> {
        let checked = read_key(&self.path, &self.arena).and_then(|key| {
            if RootId::of(RootKind::File, key.expose()) == *self.root.id() {
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::SeededEntropy;

    fn entropy() -> Arc<dyn Entropy> {
        Arc::new(SeededEntropy::new(7))
    }

    #[test]
    fn a_root_file_is_made_once_with_mode_0600_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let made = FileRoot::create(&path, entropy(), true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let opened = FileRoot::open(&path, entropy(), true).unwrap();
        assert_eq!(made.identity(), opened.identity());
        let again = FileRoot::create(&path, entropy(), true);
        assert!(matches!(again, Err(RootError::Exists { .. })));
    }

    #[test]
    fn loose_modes_wrong_lengths_and_missing_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let open = || FileRoot::open(&path, entropy(), true).err();
        assert!(matches!(open(), Some(RootError::Missing { .. })));
        FileRoot::create(&path, entropy(), true).unwrap();
        for mode in [0o644, 0o640, 0o602, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let Some(error @ RootError::LooseMode { .. }) = open() else { panic!("{mode:o}") };
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [0; 31]).unwrap();
        assert!(matches!(open(), Some(RootError::WrongLength { bytes: 31, .. })));
    }

    #[tokio::test]
    async fn another_roots_wrapping_and_another_aad_do_not_unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let a = FileRoot::create(&folder.path().join("a"), entropy(), true).unwrap();
        let other: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(8));
        let b = FileRoot::create(&folder.path().join("b"), other, true).unwrap();
        let arena = crate::testing::small_arena();
        let secret = arena.copy_in(b"0123456789abcdef").unwrap();
        let sealed = a.wrap(&secret, b"x").await.unwrap();
        assert_eq!(a.unwrap(&sealed, b"x", &arena).await.unwrap().expose(), secret.expose());
        assert!(a.unwrap(&sealed, b"y", &arena).await.is_err());
        assert!(b.unwrap(&sealed, b"x", &arena).await.is_err());
        assert!(a.unwrap(&sealed[..20], b"x", &arena).await.is_err());
        // Health notices a file that was replaced.
        assert!(a.health().await.is_ok());
        fs::copy(folder.path().join("b"), folder.path().join("a")).unwrap();
        assert!(matches!(a.health().await, Err(RootError::Changed { .. })));
    }
}
