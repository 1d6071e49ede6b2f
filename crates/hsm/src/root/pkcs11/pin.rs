//! The PIN: where it comes from, and when it is tried. A token locks itself for good after a few wrong
//! ones, so a PIN that was refused is never tried again by itself.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::Pkcs11Error;
use crate::arena::{Arena, SLOT_BYTES, Secret};
use crate::error::RootError;
use crate::provider::{CryptoProvider, RingProvider};
use crate::root::read_credential;
use crate::secret_vec::SecretVec;

/// Different PINs that are tried in a row at most. Most tokens lock before.
const REFUSED_MAX: usize = 8;

/// Where the PIN of a token comes from.
pub enum PinSource {
    /// A file, as [`read_credential`] reads it; read again at each login, so that it can be corrected while
    /// the node runs.
    File(PathBuf),
    /// The PIN itself, 1 to 64 bytes.
    Bytes(SecretVec),
}

/// A [`PinSource`] with its PIN in locked memory.
pub(super) enum Pin {
    File(PathBuf),
    Kept(Secret),
}

fn in_arena(bytes: &[u8], arena: &Arc<Arena>) -> Result<Secret, RootError> {
    if !(1..=SLOT_BYTES).contains(&bytes.len()) {
        return Err(Pkcs11Error::PinLength { bytes: bytes.len() }.into());
    }
    Ok(arena.copy_in(bytes)?)
}

impl Pin {
    pub(super) fn new(source: PinSource, arena: &Arc<Arena>) -> Result<Self, RootError> {
        Ok(match source {
            PinSource::File(path) => Self::File(path),
            PinSource::Bytes(bytes) => Self::Kept(in_arena(bytes.expose(), arena)?),
        })
    }

    pub(super) fn read(&self, arena: &Arc<Arena>) -> Result<Secret, RootError> {
        match self {
            Self::File(path) => in_arena(read_credential(path)?.expose(), arena),
            Self::Kept(pin) => Ok(arena.copy_in(pin.expose())?),
        }
    }
}

/// What a token says about its PIN's count of tries (PKCS#11 3.1, section 3.2, `CK_TOKEN_INFO`).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PinFlags {
    pub(super) count_low: bool,
    pub(super) final_try: bool,
    pub(super) locked: bool,
}

/// What this process knows of a token's PIN. One for each token, for as long as the process lives.
#[derive(Default)]
pub(super) struct PinGuard {
    /// The one that worked last.
    good: Option<Secret>,
    /// Those that were refused since.
    refused: Vec<Secret>,
}

impl PinGuard {
    /// Whether a PIN may be tried. `retry` is the operator's word that it is right.
    pub(super) fn admit(
        &self,
        pin: &Secret,
        flags: PinFlags,
        retry: bool,
    ) -> Result<(), Pkcs11Error> {
        let same = |known: &Secret| RingProvider.equal(known.expose(), pin.expose());
        if flags.locked {
            return Err(Pkcs11Error::PinLocked);
        }
        if flags.final_try {
            return Err(Pkcs11Error::PinFinalTry);
        }
        if self.refused.len() >= REFUSED_MAX || self.refused.iter().any(same) {
            return Err(Pkcs11Error::PinRefused);
        }
        // The count is low through this process, and here is another PIN: that is the operator's word.
        let corrected = !self.refused.is_empty();
        if flags.count_low && !retry && !corrected && !self.good.as_ref().is_some_and(same) {
            return Err(Pkcs11Error::PinCountLow);
        }
        Ok(())
    }

    pub(super) fn accepted(&mut self, pin: Secret) {
        self.refused.clear();
        self.good = Some(pin);
    }

    pub(super) fn refused(&mut self, pin: Secret) {
        self.refused.push(pin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::small_arena;

    const LOW: PinFlags = PinFlags { count_low: true, final_try: false, locked: false };

    /// A token that locks after three wrong PINs, as the standard describes it.
    struct Token {
        right: &'static str,
        wrong_tries: u32,
        tried: u32,
    }

    impl Token {
        fn flags(&self) -> PinFlags {
            PinFlags {
                count_low: self.wrong_tries > 0,
                final_try: self.wrong_tries == 2,
                locked: self.wrong_tries >= 3,
            }
        }

        /// Logs in as the root does.
        fn login(
            &mut self,
            guard: &mut PinGuard,
            pin: &str,
            retry: bool,
        ) -> Result<(), Pkcs11Error> {
            let pin_bytes = small_arena().copy_in(pin.as_bytes()).unwrap();
            guard.admit(&pin_bytes, self.flags(), retry)?;
            self.tried += 1;
            if pin == self.right {
                self.wrong_tries = 0;
                guard.accepted(pin_bytes);
                Ok(())
            } else {
                self.wrong_tries += 1;
                guard.refused(pin_bytes);
                Err(Pkcs11Error::PinRefused)
            }
        }
    }

    #[test]
    fn a_wrong_pin_is_tried_once_however_often_and_a_corrected_one_works() {
        let mut token = Token { right: "1234", wrong_tries: 0, tried: 0 };
        let mut guard = PinGuard::default();
        for _ in 0..10 {
            let refused = token.login(&mut guard, "9999", false);
            assert!(matches!(refused, Err(Pkcs11Error::PinRefused)));
            // Not even on the operator's word: this process knows better.
            assert!(token.login(&mut guard, "9999", true).is_err());
        }
        assert_eq!(token.tried, 1);
        token.login(&mut guard, "1234", false).unwrap();
        assert_eq!((token.tried, token.wrong_tries), (2, 0));
        // Once another PIN has worked, the old one may have become right.
        token.right = "9999";
        token.login(&mut guard, "9999", false).unwrap();
    }

    /// A service manager that restarts a node over and over must not lock the token.
    #[test]
    fn restarts_do_not_use_up_the_tries_without_the_operators_word() {
        let mut token = Token { right: "1234", wrong_tries: 0, tried: 0 };
        assert!(token.login(&mut PinGuard::default(), "9999", false).is_err());
        for _ in 0..10 {
            let refused = token.login(&mut PinGuard::default(), "9999", false);
            assert!(matches!(refused, Err(Pkcs11Error::PinCountLow)));
        }
        assert_eq!(token.tried, 1);
        assert!(token.login(&mut PinGuard::default(), "8888", true).is_err());
        assert_eq!(token.tried, 2);
        for pin in ["8888", "1234"] {
            let refused = token.login(&mut PinGuard::default(), pin, true);
            assert!(matches!(refused, Err(Pkcs11Error::PinFinalTry)));
        }
        token.wrong_tries = 3;
        let refused = token.login(&mut PinGuard::default(), "1234", true);
        assert!(matches!(refused, Err(Pkcs11Error::PinLocked)));
        assert_eq!(token.tried, 2);
    }

    #[test]
    fn the_pin_that_worked_is_tried_again_although_somebody_else_mistyped() {
        let arena = small_arena();
        let pin = |text: &str| arena.copy_in(text.as_bytes()).unwrap();
        let mut guard = PinGuard::default();
        guard.accepted(pin("1234"));
        assert!(guard.admit(&pin("1234"), LOW, false).is_ok());
        assert!(matches!(guard.admit(&pin("12345"), LOW, false), Err(Pkcs11Error::PinCountLow)));
        guard.refused(pin("1234"));
        assert!(matches!(guard.admit(&pin("1234"), LOW, true), Err(Pkcs11Error::PinRefused)));
    }

    #[test]
    fn a_file_that_changes_all_the_time_does_not_use_up_the_tries_of_a_token_without_a_count() {
        let mut token = Token { right: "never", wrong_tries: 0, tried: 0 };
        let mut guard = PinGuard::default();
        for number in 0..100 {
            token.wrong_tries = 0;
            assert!(token.login(&mut guard, &number.to_string(), true).is_err());
        }
        assert_eq!(token.tried as usize, REFUSED_MAX);
    }

    #[test]
    fn pins_come_from_a_file_that_may_be_corrected_or_are_handed_in() {
        let (arena, folder) = (small_arena(), tempfile::tempdir().unwrap());
        let path = folder.path().join("pin");
        let from_file = Pin::new(PinSource::File(path.clone()), &arena).unwrap();
        assert!(matches!(from_file.read(&arena), Err(RootError::Missing { .. })));
        for text in ["1234", "4321"] {
            std::fs::write(&path, format!("{text}\n")).unwrap();
            assert_eq!(from_file.read(&arena).unwrap().expose(), text.as_bytes());
        }
        std::fs::write(&path, "x".repeat(65)).unwrap();
        assert!(matches!(
            from_file.read(&arena),
            Err(RootError::Pkcs11(Pkcs11Error::PinLength { bytes: 65 }))
        ));
        let bytes = PinSource::Bytes(SecretVec::new(b"1234".to_vec()));
        let kept = Pin::new(bytes, &arena).unwrap();
        assert_eq!(kept.read(&arena).unwrap().expose(), b"1234");
        let empty = Pin::new(PinSource::Bytes(SecretVec::new(Vec::new())), &arena);
        assert!(matches!(empty, Err(RootError::Pkcs11(Pkcs11Error::PinLength { bytes: 0 }))));
    }
}
