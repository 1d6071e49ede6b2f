//! Secrets that do not fit a slot: plaintexts of messages, the CA's private key.

use zeroize::Zeroize;

/// Secret bytes on the heap, wiped on drop with their whole allocation. Not locked: the arena is for keys,
/// which live long; these live for a call. It cannot be printed, cloned or serialised.
pub struct SecretVec(Vec<u8>);

impl SecretVec {
    /// Takes bytes over. Grow a vector to its full capacity before it holds a secret: a reallocation
    /// leaves a copy behind.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn zeroed(len: usize) -> Self {
        Self(vec![0; len])
    }

    /// The bytes. What is copied out of here is the caller's to wipe.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Cuts off what lies after `len` bytes, and wipes it.
    pub(crate) fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.0.get_mut(len..) {
            rest.zeroize();
        }
        self.0.truncate(len);
    }

    /// Hands the bytes over, for an answer that is about to be sent. They are no longer wiped on drop.
    #[must_use]
    pub fn into_unprotected(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True for no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for SecretVec {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncating_and_taking_apart_keep_what_was_asked_for() {
        let mut secret = SecretVec::new(b"hunter2\n".to_vec());
        secret.truncate(7);
        assert_eq!(secret.expose(), b"hunter2");
        secret.truncate(100);
        assert_eq!(secret.len(), 7);
        assert!(!secret.is_empty());
        assert_eq!(secret.into_unprotected(), b"hunter2");
    }
}
