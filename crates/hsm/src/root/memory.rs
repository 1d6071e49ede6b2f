//! A root that is a function of a seed.

use std::sync::Arc;

use keyward_env::Entropy;

use super::core::{RootCore, root_arena, wrap_with_core};
use super::{RootFuture, RootKind, RootProvider};
use crate::error::RootError;
use crate::provider::{CryptoProvider, RingProvider};

/// A root key made of a seed and kept nowhere. **For simulation and tests:** whoever knows the seed has the
/// key, and there is nothing to reopen after a restart but the seed.
pub struct MemoryRoot {
    core: RootCore,
}

impl MemoryRoot {
    /// The root of a seed: the same seed, the same root.
    ///
    /// # Errors
    /// [`RootError::Arena`] when there is no locked memory for it and `allow_unlocked` is off.
    pub fn new(
        seed: &[u8],
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        let digest = RingProvider.sha256(&[b"keyward memory root v1", seed]);
        let arena = root_arena(allow_unlocked)?;
        let root_key = arena.copy_in(&digest)?;
        let core = RootCore::new(RootKind::Memory, &root_key, arena, entropy)?;
        Ok(Self { core })
    }
}

impl RootProvider for MemoryRoot {
    wrap_with_core!();

    fn kind(&self) -> RootKind {
        RootKind::Memory
    }

    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(async move { self.core.self_test() })
    }
}
