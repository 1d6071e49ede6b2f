//! A root key in a file that only its owner can read.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_env::Entropy;

use super::core::{RootCore, root_arena, root_id, wrap_with_core};
use super::{RootFuture, RootKind, RootProvider};
use crate::arena::{Arena, Secret};
use crate::error::RootError;

const ROOT_KEY_BYTES: usize = 32;
/// Reading and writing for the owner; nothing for anybody else.
const OWNER_ONLY: u32 = 0o600;

/// A root key of 32 random bytes in a file of mode 0600: the embedded default. It is as safe as the disk
/// and the account it lies under, and has to be backed up apart from the data it protects.
pub struct FileRoot {
    path: PathBuf,
    core: RootCore,
}

impl FileRoot {
    /// Makes a new root key and the file for it; its folder too, mode 0700, when that is not there.
    /// `allow_unlocked` is as in [`crate::ArenaConfig`].
    ///
    /// # Errors
    /// [`RootError::Exists`] when there is a file already: no root is ever overwritten.
    /// [`RootError::File`] when the system refuses; nothing is left behind then.
    pub fn create(
        path: &Path,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        let arena = root_arena(allow_unlocked)?;
        let root_key = arena.random(&*entropy, ROOT_KEY_BYTES)?;
        write_new(path, root_key.expose())?;
        Self::from_key(path, &root_key, arena, entropy)
    }

    /// Opens the root key of a file that [`FileRoot::create`] made.
    ///
    /// # Errors
    /// [`RootError::Missing`], [`RootError::LooseMode`], [`RootError::OtherOwner`] and
    /// [`RootError::WrongLength`] name the file and what would be right.
    pub fn open(
        path: &Path,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        let arena = root_arena(allow_unlocked)?;
        let root_key = read_key(path, &arena)?;
        Self::from_key(path, &root_key, arena, entropy)
    }

    fn from_key(
        path: &Path,
        root_key: &Secret,
        arena: Arc<Arena>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, RootError> {
        let core = RootCore::new(RootKind::File, root_key, arena, entropy)?;
        Ok(Self { path: path.to_owned(), core })
    }

    /// The file is still there, still tight, and still holds this root: so the next start will succeed.
    fn check_file(&self) -> Result<(), RootError> {
        let root_key = read_key(&self.path, self.core.arena())?;
        if root_id(RootKind::File, &root_key)? == *self.core.id() {
            Ok(())
        } else {
            Err(RootError::Changed { path: self.path.clone(), root: self.core.id().clone() })
        }
    }
}

impl RootProvider for FileRoot {
    wrap_with_core!();

    fn kind(&self) -> RootKind {
        RootKind::File
    }

    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(async move {
            self.check_file()?;
            self.core.self_test()
        })
    }
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RootError {
    let path = path.to_owned();
    move |source| match source.kind() {
        ErrorKind::NotFound if what == "open" => RootError::Missing { path },
        ErrorKind::AlreadyExists => RootError::Exists { path },
        _ => RootError::File { what, path, source },
    }
}

/// Writes a new file of mode 0600 and syncs it, its folder, and what holds folders that had to be made:
/// keys are sealed under this root next, and must not outlive it. Removes the file again when that fails
/// midway.
pub(super) fn write_new(path: &Path, contents: &[u8]) -> Result<(), RootError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let made = folder.ancestors().take_while(|above| !above.exists()).count();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(file_error("create the folder of", path))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY)
        .open(path)
        .map_err(file_error("create", path))?;
    let written = file
        .write_all(contents)
        .and_then(|()| file.sync_all())
        .and_then(|()| folder.ancestors().take(made + 1).try_for_each(sync_folder));
    written.map_err(|source| {
        // Half a root key is worse than none: the next start would refuse it.
        let _ = std::fs::remove_file(path);
        file_error("write", path)(source)
    })
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    // The last ancestor of a relative path is empty and means the working folder.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

/// Reads a root key into locked memory, and nowhere else, after looking at the file that was opened.
fn read_key(path: &Path, arena: &Arc<Arena>) -> Result<Secret, RootError> {
    let mut file = File::open(path).map_err(file_error("open", path))?;
    let metadata = file.metadata().map_err(file_error("look at", path))?;
    check_metadata(path, &metadata, rustix::process::geteuid().as_raw())?;
    let mut root_key = arena.zeroed(ROOT_KEY_BYTES)?;
    file.read_exact(root_key.expose_mut()).map_err(file_error("read", path))?;
    Ok(root_key)
}

fn check_metadata(path: &Path, metadata: &Metadata, user: u32) -> Result<(), RootError> {
    let path = || path.to_owned();
    let (mode, expected) = (metadata.mode() & 0o7777, ROOT_KEY_BYTES as u64);
    if mode & !OWNER_ONLY != 0 && metadata.is_file() {
        return Err(RootError::LooseMode { path: path(), mode });
    }
    if metadata.uid() != user {
        return Err(RootError::OtherOwner { path: path(), owner: metadata.uid(), user });
    }
    if !metadata.is_file() || metadata.len() != expected {
        return Err(RootError::WrongLength { path: path(), bytes: metadata.len(), expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::{SeededEntropy, block_on};

    fn create(path: &Path) -> Result<FileRoot, RootError> {
        FileRoot::create(path, SeededEntropy::shared(1), true)
    }

    fn open(path: &Path) -> Result<FileRoot, RootError> {
        FileRoot::open(path, SeededEntropy::shared(2), true)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_created_root_is_owner_only_and_opens_again_as_the_same_root() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/for/it/root.key");
        let first = create(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.len()), (0o600, 32));
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        let second = open(&path).unwrap();
        assert_eq!(first.identity(), second.identity());
        assert!(first.identity().as_str().starts_with("file:"));
        assert!(!first.identity().as_str().contains(&hex::encode(&fs::read(&path).unwrap()[..4])));
        let secret = first.core.arena().copy_in(b"domain key").unwrap();
        let wrapped = block_on(first.wrap(&secret, b"aad")).unwrap();
        assert_eq!(
            block_on(second.unwrap(&wrapped, b"aad", second.core.arena())).unwrap().expose(),
            b"domain key"
        );
    }

    #[test]
    fn a_root_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        create(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(create(&path), Err(RootError::Exists { path: p }) if p == path));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn every_bit_of_mode_beyond_the_owners_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        create(&path).unwrap();
        for bit in [0o001, 0o002, 0o004, 0o010, 0o020, 0o040, 0o100, 0o1000, 0o2000, 0o4000] {
            chmod(&path, 0o600 | bit);
            let Err(error) = open(&path) else { panic!("mode {bit:o} was accepted") };
            assert!(matches!(error, RootError::LooseMode { mode, .. } if mode == 0o600 | bit));
            let mend = format!("chmod 600 {}", path.display());
            assert!(error.to_string().contains(&mend), "{error}");
        }
        for tighter in [0o600, 0o400] {
            chmod(&path, tighter);
            assert!(open(&path).is_ok(), "{tighter:o}");
        }
    }

    #[test]
    fn another_owner_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        create(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let other = metadata.uid() + 1;
        let Err(error) = check_metadata(&path, &metadata, other) else { panic!("accepted") };
        assert!(matches!(error, RootError::OtherOwner { owner, user, .. }
            if owner == metadata.uid() && user == other));
        assert!(error.to_string().contains(&format!("chown {other} ")), "{error}");
    }

    #[test]
    fn wrong_lengths_and_things_that_are_no_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [0, 31, 33, 4096] {
            let path = folder.path().join(format!("root-{bytes}"));
            fs::write(&path, vec![1; bytes]).unwrap();
            chmod(&path, 0o600);
            assert!(
                matches!(open(&path), Err(RootError::WrongLength { bytes: b, expected: 32, .. })
                if b == bytes as u64)
            );
        }
        assert!(matches!(open(folder.path()), Err(RootError::WrongLength { .. })));
        let missing = folder.path().join("missing");
        assert!(matches!(open(&missing), Err(RootError::Missing { path }) if path == missing));
    }

    #[test]
    fn health_notices_a_file_that_is_gone_loose_or_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let root = create(&path).unwrap();
        block_on(root.health()).unwrap();
        chmod(&path, 0o644);
        assert!(matches!(block_on(root.health()), Err(RootError::LooseMode { .. })));
        chmod(&path, 0o600);
        fs::write(&path, [9; 32]).unwrap();
        assert!(matches!(block_on(root.health()), Err(RootError::Changed { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(block_on(root.health()), Err(RootError::Missing { .. })));
    }
}
