//! A root that lives in memory only. For simulation and tests: whoever has the seed has the root.

use std::sync::Arc;

use keyward_env::Entropy;

use super::{LocalRoot, RootFuture, RootId, RootKind, RootProvider, local_provider, root_arena};
use crate::arena::{Arena, Secret};
use crate::error::RootError;

/// A root key made from a seed.
pub struct MemoryRoot {
    root: LocalRoot,
}

impl MemoryRoot {
    /// The root of that seed.
    ///
    /// # Errors
    /// [`RootError::Arena`] when there is no memory for it.
    pub fn new(seed: &[u8; 32], entropy: Arc<dyn Entropy>) -> Result<Self, RootError> {
        let key = root_arena(true)?.copy_in(seed)?;
        Ok(Self { root: LocalRoot::new(RootKind::Memory, key, entropy) })
    }
}

impl RootProvider for MemoryRoot {
    local_provider!(RootKind::Memory);

    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}
