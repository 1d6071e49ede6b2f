//! What the types forbid, held at compile time.

mod common;

use std::fmt::{Debug, Display};

use keyward_hsm::testing::FaultyRoot;
use keyward_hsm::{
    BackingKey, FileRoot, Hsm, MemoryRoot, PassphraseRoot, PinSource, Pkcs11Config, Pkcs11Root,
    ResealSecret, Secret, SecretVec, ShamirRoot, ShareText, Shares,
};

/// Fails to compile when the type implements the trait: the path below is ambiguous then.
macro_rules! never_implements {
    ($type:ty: $($bound:tt)+) => {
        const _: fn() = || {
            struct Implemented;
            trait AmbiguousIfImplemented<A> {
                fn probe() {}
            }
            impl<T: ?Sized> AmbiguousIfImplemented<()> for T {}
            impl<T: ?Sized + $($bound)+> AmbiguousIfImplemented<Implemented> for T {}
            let _ = <$type as AmbiguousIfImplemented<_>>::probe;
        };
    };
}

macro_rules! secret_types {
    ($($type:ty),+) => {$(
        never_implements!($type: Debug);
        never_implements!($type: Display);
        never_implements!($type: Clone);
        never_implements!($type: serde::Serialize);
    )+};
}

secret_types!(
    Secret,
    SecretVec,
    BackingKey,
    ResealSecret,
    FileRoot,
    PassphraseRoot,
    MemoryRoot,
    ShamirRoot,
    ShareText,
    Pkcs11Root,
    Pkcs11Config,
    PinSource,
    FaultyRoot,
    Shares,
    Hsm
);

fn send<T: Send>(_: &T) {}
fn send_and_sync<T: Send + Sync>(_: &T) {}

#[test]
fn an_hsm_and_its_futures_cross_threads() {
    let (hsm, domain) = common::hsm_with_domain(1);
    send_and_sync(&hsm);
    let (secret, _) = hsm.reseal_request();
    send(&hsm.generate_domain_key());
    send(&hsm.import_domain_key(domain, &secret, b""));
    send(&hsm.root().health());
}
