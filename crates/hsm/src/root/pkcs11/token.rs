//! One session with the root key, and what is done in it.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | mechanism: 1 AES-GCM, 2 AES key wrap (RFC 3394), 3 the same with padding (RFC 5649) |
//! | 2 | 12 | AES-GCM only: the initialisation vector |
//! | 14 or 2 | n | what the token returned |
//!
//! The *binding* is a label, the mechanism and the caller's AAD. AES-GCM takes it as its AAD. Key wrap
//! takes none, so SHA-256 of it is wrapped in front of the secret, as one key object, and compared after
//! unwrapping (decision 0007).

use std::sync::Arc;

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;
use keyward_env::Entropy;
use zeroize::{Zeroize, Zeroizing};

use super::error::Pkcs11Error;
use super::module::Module;
use super::pin::{Pin, PinFlags};
use super::{Pkcs11Mechanism, TokenName};
use crate::arena::{Arena, SLOT_BYTES, Secret};
use crate::error::RootError;
use crate::provider::{
    AES_256_KEY_BYTES, CryptoProvider, GCM_NONCE_BYTES, GCM_TAG_BYTES, RingProvider, SHA_256_BYTES,
};
use crate::root::{RootId, RootKind};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 2;
const BINDING_LABEL: &[u8] = b"keyward pkcs11 v1";
const ID_BYTES: usize = 16;

/// Why something did not work.
pub(super) enum Fault {
    /// The session, or what is behind it: worth a new session.
    Broken(Pkcs11Error),
    /// A new session would change nothing.
    Refused(RootError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Broken(Pkcs11Error::Failed(error.to_string()))
    }
}

impl From<Pkcs11Error> for Fault {
    fn from(error: Pkcs11Error) -> Self {
        Self::Refused(error.into())
    }
}

impl From<RootError> for Fault {
    fn from(error: RootError) -> Self {
        Self::Refused(error)
    }
}

/// What a session is opened with.
pub(super) struct Access {
    pub(super) module: Arc<Module>,
    pub(super) token: TokenName,
    pub(super) key_label: String,
    pub(super) pin: Pin,
    pub(super) pin_retry: bool,
    pub(super) mechanism: Option<Pkcs11Mechanism>,
    pub(super) arena: Arc<Arena>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl Access {
    fn find_token(&self) -> Result<(Slot, TokenInfo), Fault> {
        let context = self.module.context();
        let mut found = None;
        for slot in context.get_slots_with_initialized_token()? {
            // One that is being pulled out right now is not it.
            let Ok(info) = context.get_token_info(slot) else { continue };
            let fits = match &self.token {
                TokenName::Label(label) => info.label() == label,
                TokenName::Serial(serial) => info.serial_number() == serial,
            };
            if fits && found.replace((slot, info)).is_some() {
                return Err(Pkcs11Error::TokenAmbiguous(self.token.to_string()).into());
            }
        }
        let missing = || Fault::Broken(Pkcs11Error::TokenMissing(self.token.to_string()));
        found.ok_or_else(missing)
    }

    /// Opens a session and logs in. The session is not closed on drop: see [`Module`].
    fn log_in(&self, slot: Slot, info: &TokenInfo, writes: bool) -> Result<Session, Fault> {
        let context = self.module.context();
        let session = if writes {
            context.open_rw_session_no_drop(slot)?
        } else {
            context.open_ro_session_no_drop(slot)?
        };
        let outcome = self.log_in_session(&session, info);
        match outcome {
            Ok(()) => Ok(session),
            Err(fault) => {
                let _ = session.close();
                Err(fault)
            }
        }
    }

    fn log_in_session(&self, session: &Session, info: &TokenInfo) -> Result<(), Fault> {
        let state = session.get_session_info()?.session_state();
        let logged_in = matches!(state, SessionState::RoUser | SessionState::RwUser);
        if logged_in || !info.login_required() {
            return Ok(());
        }
        let pin = self.pin.read(&self.arena)?;
        let flags = PinFlags {
            count_low: info.user_pin_count_low(),
            final_try: info.user_pin_final_try(),
            locked: info.user_pin_locked(),
        };
        // Held over the login: two threads must not try the same PIN at once.
        self.module.with_pins(info.serial_number(), |guard| {
            guard.admit(&pin, flags, self.pin_retry)?;
            // Wiped on drop, by the crate that takes it.
            let raw = RawAuthPin::new(Box::new(pin.expose().to_vec()));
            match session.login_with_raw(UserType::User, &raw) {
                Ok(()) => guard.accepted(pin),
                Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
                Err(Error::Pkcs11(RvError::PinLocked, _)) => {
                    return Err(Pkcs11Error::PinLocked.into());
                }
                Err(Error::Pkcs11(
                    RvError::PinIncorrect
                    | RvError::PinInvalid
                    | RvError::PinLenRange
                    | RvError::PinExpired,
                    _,
                )) => {
                    guard.refused(pin);
                    return Err(Pkcs11Error::PinRefused.into());
                }
                Err(error) => return Err(error.into()),
            }
            Ok(())
        })
    }

    fn find_key(&self, session: &Session) -> Result<Option<ObjectHandle>, Fault> {
        let found = session.find_objects(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Label(self.key_label.clone().into_bytes()),
        ])?;
        match found[..] {
            [] => Ok(None),
            [key] => Ok(Some(key)),
            _ => Err(Pkcs11Error::KeyAmbiguous(self.key_label.clone()).into()),
        }
    }

    /// Makes the root key in the token, which has none of that label.
    pub(super) fn create_key(&self) -> Result<(), Fault> {
        let (slot, info) = self.find_token()?;
        let offered = self.module.context().get_mechanism_list(slot)?;
        let gcm = match self.mechanism {
            Some(mechanism) => mechanism == Pkcs11Mechanism::AesGcm,
            None => offered.contains(&MechanismType::AES_GCM),
        };
        let session = self.log_in(slot, &info, true)?;
        let made = self.create_in(&session, gcm);
        let _ = session.close();
        made
    }

    fn create_in(&self, session: &Session, gcm: bool) -> Result<(), Fault> {
        let exists = || Fault::from(Pkcs11Error::KeyExists(self.key_label.clone()));
        if !matches!(self.find_key(session), Ok(None)) {
            return Err(exists());
        }
        let mut id = [0; ID_BYTES];
        self.entropy.fill(&mut id);
        // Either it encrypts or it wraps keys. A key that does both gives away what it wraps: whoever can
        // use the token has a key wrapped and decrypts it as if it were data.
        let key = session.generate_key(
            &Mechanism::AesKeyGen,
            &[
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::ValueLen(AES_256_KEY_BYTES.try_into()?),
                Attribute::Label(self.key_label.clone().into_bytes()),
                Attribute::Id(id.to_vec()),
                Attribute::Encrypt(gcm),
                Attribute::Decrypt(gcm),
                Attribute::Wrap(!gcm),
                Attribute::Unwrap(!gcm),
                Attribute::Sign(false),
                Attribute::Verify(false),
                Attribute::Derive(false),
            ],
        )?;
        match self.find_key(session) {
            Ok(Some(found)) if found == key => Ok(()),
            // Another process was as fast.
            _ => {
                session.destroy_object(key)?;
                Err(exists())
            }
        }
    }

    /// Opens a session with the root key. To be called while [`Module::enter`]'s guard is held.
    pub(super) fn connect(&self, epoch: u64) -> Result<RootSession, Fault> {
        let (slot, info) = self.find_token()?;
        let offered = self.module.context().get_mechanism_list(slot)?;
        let session = self.log_in(slot, &info, false)?;
        match self.look_at_key(&session, &offered) {
            Ok((key, id, mechanism)) => Ok(RootSession {
                session,
                key,
                id,
                mechanism,
                epoch,
                entropy: Arc::clone(&self.entropy),
            }),
            Err(fault) => {
                let _ = session.close();
                Err(fault)
            }
        }
    }

    fn look_at_key(
        &self,
        session: &Session,
        offered: &[MechanismType],
    ) -> Result<(ObjectHandle, RootId, Pkcs11Mechanism), Fault> {
        let label = || self.key_label.clone();
        let unfit = |what| Fault::from(Pkcs11Error::KeyUnfit { label: label(), what });
        // When the objects of a token are gone, so may be the token: worth another look.
        let missing = || Fault::Broken(Pkcs11Error::KeyMissing(label()));
        let key = self.find_key(session)?.ok_or_else(missing)?;
        let (mut id, mut bytes, mut uses) = (None, None, [false; 4]);
        for attribute in session.get_attributes(
            key,
            &[
                AttributeType::Sensitive,
                AttributeType::Extractable,
                AttributeType::ValueLen,
                AttributeType::Id,
                AttributeType::Encrypt,
                AttributeType::Decrypt,
                AttributeType::Wrap,
                AttributeType::Unwrap,
            ],
        )? {
            match attribute {
                Attribute::Sensitive(false) => return Err(unfit("it must be sensitive")),
                Attribute::Extractable(true) => return Err(unfit("it must not be extractable")),
                Attribute::ValueLen(len) => bytes = Some(u64::from(len)),
                Attribute::Id(bytes) => id = <[u8; ID_BYTES]>::try_from(bytes).ok(),
                Attribute::Encrypt(can) => uses[0] = can,
                Attribute::Decrypt(can) => uses[1] = can,
                Attribute::Wrap(can) => uses[2] = can,
                Attribute::Unwrap(can) => uses[3] = can,
                _ => {}
            }
        }
        if bytes != Some(AES_256_KEY_BYTES as u64) {
            return Err(unfit("it must be an AES key of 256 bits"));
        }
        let id = id.ok_or_else(|| unfit("its id (CKA_ID) must be 16 random bytes"))?;
        let [encrypts, decrypts, wraps, unwraps] = uses;
        let fits = |mechanism: &Pkcs11Mechanism| {
            let allowed = match mechanism {
                Pkcs11Mechanism::AesGcm => encrypts && decrypts,
                Pkcs11Mechanism::AesKeyWrap | Pkcs11Mechanism::AesKeyWrapPad => wraps && unwraps,
            };
            allowed
                && offered.contains(&mechanism.kind())
                && self.mechanism.is_none_or(|wanted| wanted == *mechanism)
        };
        let mechanism = Pkcs11Mechanism::ALL.into_iter().find(fits);
        let mechanism = mechanism.ok_or_else(|| Pkcs11Error::NoMechanism(label()))?;
        Ok((key, RootId::new(RootKind::Pkcs11, id), mechanism))
    }
}

/// A session that is logged in, and the handle of the root key in it.
pub(super) struct RootSession {
    session: Session,
    key: ObjectHandle,
    pub(super) id: RootId,
    mechanism: Pkcs11Mechanism,
    /// The module's epoch that the handles belong to.
    pub(super) epoch: u64,
    entropy: Arc<dyn Entropy>,
}

impl RootSession {
    /// Closes the session; when its epoch is over, it has been closed already, and its number may be that
    /// of another one.
    pub(super) fn end(self, epoch: u64) {
        if self.epoch == epoch {
            let _ = self.session.close();
        }
    }

    pub(super) fn wrap(&self, secret: &Secret, aad: &[u8]) -> Result<Vec<u8>, Fault> {
        let binding = binding(self.mechanism, aad);
        let mut sealed = vec![VERSION, self.mechanism.code()];
        if self.mechanism == Pkcs11Mechanism::AesGcm {
            let mut iv = [0; GCM_NONCE_BYTES];
            self.entropy.fill(&mut iv);
            sealed.extend_from_slice(&iv);
            let params = GcmParams::new(&mut iv, &binding, GCM_TAG_BITS.into())?;
            let bytes =
                self.session.encrypt(&Mechanism::AesGcm(params), self.key, secret.expose())?;
            if bytes.len() != secret.len() + GCM_TAG_BYTES {
                return Err(Fault::Broken(Pkcs11Error::Failed(
                    "AES-GCM of an odd length".to_owned(),
                )));
            }
            sealed.extend_from_slice(&bytes);
        } else {
            if !secret.len().is_multiple_of(8) {
                return Err(Pkcs11Error::SecretLength { bytes: secret.len() }.into());
            }
            let mut payload = Vec::with_capacity(SHA_256_BYTES + secret.len());
            payload.extend_from_slice(&RingProvider.sha256(&[&binding]));
            payload.extend_from_slice(secret.expose());
            // A session object: gone with the session, if not before. Sensitive, since it is only wrapped.
            let mut template = data_template(true);
            template.push(Attribute::Value(payload));
            let object = self.session.create_object(&template);
            if let Some(Attribute::Value(payload)) = template.last_mut() {
                payload.zeroize();
            }
            let object = object?;
            let wrapped = self.session.wrap_key(&self.mechanism.key_wrap(), self.key, object);
            self.session.destroy_object(object)?;
            sealed.extend_from_slice(&wrapped?);
        }
        Ok(sealed)
    }

    pub(super) fn unwrap(
        &self,
        sealed: &[u8],
        aad: &[u8],
        arena: &Arc<Arena>,
    ) -> Result<Secret, Fault> {
        let refused = || Fault::Refused(RootError::DoesNotUnwrap(self.id.clone()));
        let (header, rest) = sealed.split_first_chunk::<HEADER_BYTES>().ok_or_else(refused)?;
        let mechanism = Pkcs11Mechanism::of_code(header[1]).ok_or_else(refused)?;
        if header[0] != VERSION {
            return Err(refused());
        }
        let binding = binding(mechanism, aad);
        let opened = if mechanism == Pkcs11Mechanism::AesGcm {
            let (iv, bytes) = rest.split_first_chunk::<GCM_NONCE_BYTES>().ok_or_else(refused)?;
            if !(1..=SLOT_BYTES + GCM_TAG_BYTES).contains(&bytes.len()) {
                return Err(refused());
            }
            let mut iv = *iv;
            let params = GcmParams::new(&mut iv, &binding, GCM_TAG_BITS.into())?;
            self.session.decrypt(&Mechanism::AesGcm(params), self.key, bytes).map(Zeroizing::new)
        } else {
            self.unwrap_object(mechanism, rest)
        };
        let opened = opened.map_err(|error| match error {
            Error::Pkcs11(
                RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::WrappedKeyInvalid
                | RvError::WrappedKeyLenRange,
                _,
            ) => refused(),
            error => error.into(),
        })?;
        let secret = if mechanism == Pkcs11Mechanism::AesGcm {
            &opened[..]
        } else {
            let (digest, secret) =
                opened.split_first_chunk::<SHA_256_BYTES>().ok_or_else(refused)?;
            if !RingProvider.equal(digest, &RingProvider.sha256(&[&binding])) {
                return Err(refused());
            }
            secret
        };
        if !(1..=SLOT_BYTES).contains(&secret.len()) {
            return Err(refused());
        }
        Ok(arena.copy_in(secret).map_err(RootError::from)?)
    }

    fn unwrap_object(
        &self,
        mechanism: Pkcs11Mechanism,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let template = data_template(false);
        let object =
            self.session.unwrap_key(&mechanism.key_wrap(), self.key, wrapped, &template)?;
        let value = self.session.get_attributes(object, &[AttributeType::Value]);
        self.session.destroy_object(object)?;
        match value?.pop() {
            Some(Attribute::Value(value)) => Ok(Zeroizing::new(value)),
            _ => Err(Error::InvalidValue),
        }
    }

    /// Whether the session works: wraps and unwraps something new.
    pub(super) fn self_test(&self, arena: &Arc<Arena>) -> Result<(), Fault> {
        const AAD: &[u8] = b"keyward root self-test";
        let probe = arena.random(&*self.entropy, AES_256_KEY_BYTES).map_err(RootError::from)?;
        let opened = self.unwrap(&self.wrap(&probe, AAD)?, AAD, arena)?;
        if RingProvider.equal(probe.expose(), opened.expose()) {
            Ok(())
        } else {
            Err(Fault::Refused(RootError::WrongAnswer(self.id.clone())))
        }
    }
}

const GCM_TAG_BITS: u64 = 128;

fn binding(mechanism: Pkcs11Mechanism, aad: &[u8]) -> Vec<u8> {
    [BINDING_LABEL, &[0, mechanism.code()], aad].concat()
}

/// A key object that lives in the session only and is a piece of data to us.
fn data_template(sensitive: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(sensitive),
        Attribute::Extractable(true),
    ]
}
