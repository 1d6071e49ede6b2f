//! A root key in a PKCS#11 token: a hardware module, a network HSM, or SoftHSM in tests.
//!
//! The key is generated in the token, sensitive and not extractable, and never leaves it. Domain keys go
//! in and come out, in the clear on the way between this process and the token's library.
//!
//! Calls into the library block, and may hang. They are made by two threads of this root's own, which
//! take them from a queue of 16; a caller waits for its answer as long as the configuration says, then
//! gets an error. So a token that hangs costs two threads and at most 18 calls, and everything later is
//! refused at once.

mod error;
mod module;
mod pin;
mod pool;
mod token;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cryptoki::mechanism::{Mechanism, MechanismType};
use keyward_env::Entropy;

pub use self::error::Pkcs11Error;
use self::module::Module;
pub use self::module::leave_pkcs11_modules;
use self::pin::Pin;
pub use self::pin::PinSource;
use self::pool::{Pool, Work};
use self::token::Access;
use super::core::root_arena;
use super::{RootFuture, RootId, RootKind, RootProvider};
use crate::arena::{Arena, Secret};
use crate::error::RootError;
use crate::watch::{RootClock, within};

/// Which token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenName {
    /// By its label.
    Label(String),
    /// By its serial number.
    Serial(String),
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => write!(f, "the label {label:?}"),
            Self::Serial(serial) => write!(f, "the serial number {serial:?}"),
        }
    }
}

/// What a token wraps with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pkcs11Mechanism {
    /// `CKM_AES_GCM` (SP 800-38D) with a random vector of 96 bits and a tag of 128.
    AesGcm,
    /// `CKM_AES_KEY_WRAP` (RFC 3394).
    AesKeyWrap,
    /// `CKM_AES_KEY_WRAP_PAD` (RFC 5649).
    AesKeyWrapPad,
}

impl Pkcs11Mechanism {
    /// The best one first.
    const ALL: [Self; 3] = [Self::AesGcm, Self::AesKeyWrap, Self::AesKeyWrapPad];

    const fn code(self) -> u8 {
        match self {
            Self::AesGcm => 1,
            Self::AesKeyWrap => 2,
            Self::AesKeyWrapPad => 3,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.code() == code)
    }

    const fn kind(self) -> MechanismType {
        match self {
            Self::AesGcm => MechanismType::AES_GCM,
            Self::AesKeyWrap => MechanismType::AES_KEY_WRAP,
            Self::AesKeyWrapPad => MechanismType::AES_KEY_WRAP_PAD,
        }
    }

    fn key_wrap(self) -> Mechanism<'static> {
        match self {
            Self::AesKeyWrapPad => Mechanism::AesKeyWrapPad,
            Self::AesGcm | Self::AesKeyWrap => Mechanism::AesKeyWrap,
        }
    }
}

/// Where a PKCS#11 root is.
pub struct Pkcs11Config {
    /// The module's library.
    pub module: PathBuf,
    /// The token.
    pub token: TokenName,
    /// The label of the root's key in it.
    pub key_label: String,
    /// Where the user's PIN comes from.
    pub pin: PinSource,
    /// The operator's word that the PIN is right although the token has seen a wrong one. For one start.
    pub pin_retry: bool,
    /// The longest that a call waits for the token, in the queue and in the token together.
    pub timeout: Duration,
    /// What to wrap with, and what a key that is made is for. `None`: the first of AES-GCM, AES key wrap and
    /// AES key wrap with padding that the token offers and the key allows. What was wrapped with another one
    /// opens all the same, as far as the key allows.
    pub mechanism: Option<Pkcs11Mechanism>,
}

/// [`Pkcs11Config::timeout`] unless the operator says otherwise.
pub const PKCS11_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A root key in a PKCS#11 token.
///
/// A session, a token or a module that fails is opened anew, once within the call that notices and then,
/// with pauses of 0.1 to 10 s, by the calls that come. The PIN is read again then. A PIN that the token
/// refused is not tried again by this process until its source holds another one, and after a restart
/// only on the operator's word ([`Pkcs11Config::pin_retry`]); one that might lock the token is never
/// tried.
pub struct Pkcs11Root {
    id: RootId,
    pool: Pool,
    arena: Arc<Arena>,
    clock: Arc<dyn RootClock>,
    timeout: Duration,
}

impl Pkcs11Root {
    /// Opens the root whose key is in the token. Blocks for at most `config.timeout`, twice that when the
    /// module has to be loaded: call it off the async threads. `allow_unlocked` is as in
    /// [`crate::ArenaConfig`].
    ///
    /// # Errors
    /// [`RootError::Pkcs11`] with what is wrong; [`RootError::Timeout`]; what [`super::read_credential`]
    /// refuses with.
    pub fn open(
        config: Pkcs11Config,
        clock: Arc<dyn RootClock>,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        Self::start(config, clock, entropy, allow_unlocked, false)
    }

    /// Has the token make the root key, then opens it as [`Pkcs11Root::open`] does. Its id (`CKA_ID`) is
    /// 16 random bytes, which is the root's identity.
    ///
    /// # Errors
    /// [`Pkcs11Error::KeyExists`] when the token has a key of that label; as [`Pkcs11Root::open`].
    pub fn create(
        config: Pkcs11Config,
        clock: Arc<dyn RootClock>,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
    ) -> Result<Self, RootError> {
        Self::start(config, clock, entropy, allow_unlocked, true)
    }

    fn start(
        config: Pkcs11Config,
        clock: Arc<dyn RootClock>,
        entropy: Arc<dyn Entropy>,
        allow_unlocked: bool,
        create: bool,
    ) -> Result<Self, RootError> {
        let arena = root_arena(allow_unlocked)?;
        let pin = Pin::new(config.pin, &arena)?;
        let timeout = config.timeout;
        let module_path = config.module;
        let module = pool::patiently(timeout, move || Module::load(&module_path))??;
        let access = Access {
            module,
            token: config.token,
            key_label: config.key_label,
            pin,
            pin_retry: config.pin_retry,
            mechanism: config.mechanism,
            arena: Arc::clone(&arena),
            entropy,
        };
        let pool = Pool::new(access, Arc::clone(&clock))?;
        let id = pool.identify(create, timeout)?;
        Ok(Self { id, pool, arena, clock, timeout })
    }

    /// Has a thread do something, and waits for it within the time that is set.
    async fn ask<T: Send + 'static>(&self, work: Work<T>) -> Result<T, RootError> {
        let answer = self.pool.ask(work)?;
        within(&*self.clock, self.timeout, async {
            answer.await.unwrap_or_else(|_| {
                Err(Pkcs11Error::Failed("its thread has ended".to_owned()).into())
            })
        })
        .await
    }
}

impl RootProvider for Pkcs11Root {
    fn wrap<'a>(&'a self, plaintext: &'a Secret, aad: &'a [u8]) -> RootFuture<'a, Vec<u8>> {
        Box::pin(async move {
            let (secret, aad) = (self.arena.copy_in(plaintext.expose())?, aad.to_vec());
            self.ask(Box::new(move |session| session.wrap(&secret, &aad))).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        sealed: &'a [u8],
        aad: &'a [u8],
        arena: &'a Arc<Arena>,
    ) -> RootFuture<'a, Secret> {
        Box::pin(async move {
            let (sealed, aad, arena) = (sealed.to_vec(), aad.to_vec(), Arc::clone(arena));
            let (id, own) = (self.id.clone(), Arc::clone(&self.arena));
            self.ask(Box::new(move |session| match session.unwrap(&sealed, &aad, &arena) {
                // Many tokens say no more than that something failed, for a wrong tag too. When the
                // session works otherwise, it was the bytes.
                Err(token::Fault::Broken(_)) if session.self_test(&own).is_ok() => {
                    Err(token::Fault::Refused(RootError::DoesNotUnwrap(id.clone())))
                }
                answer => answer,
            }))
            .await
        })
    }

    fn identity(&self) -> &RootId {
        &self.id
    }

    fn kind(&self) -> RootKind {
        RootKind::Pkcs11
    }

    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(async move {
            let arena = Arc::clone(&self.arena);
            self.ask(Box::new(move |session| session.self_test(&arena))).await
        })
    }
}
