//! Messages that AWS's own SDK wrote, so that `cargo test` alone notices if the format is misread. The full
//! cross test, both ways, is `tests/esdk`.
//!
//! The vectors were made with PyPI's aws-encryption-sdk 4.0.7: data key 32 times 0x5a, wrapped key "the
//! wrapped data key", context {purpose: vector, Ä: ümlaut}, frames of 128 bytes; the content is 300 bytes,
//! byte i being i modulo 251.

use std::convert::Infallible;

use keyward_client::esdk::{
    DataKeyOpener, DecryptOptions, EncryptedDataKey, EncryptionContext, PUBLIC_KEY_CONTEXT_KEY,
    PlaintextDataKey, Suite, decrypt, inspect,
};

const COMMIT: &str = include_str!("vectors/python-4.0.7-0478.hex");
const COMMIT_SIGNED: &str = include_str!("vectors/python-4.0.7-0578.hex");

struct VectorKey;

impl DataKeyOpener for VectorKey {
    type Error = Infallible;

    fn open(
        &mut self,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<PlaintextDataKey, Infallible> {
        assert_eq!(encrypted.ciphertext, b"the wrapped data key");
        assert_eq!(context["purpose"], "vector");
        assert_eq!(context["Ä"], "ümlaut");
        Ok(PlaintextDataKey::from_slice(&[0x5a; 32]).expect("32 bytes are a data key"))
    }
}

#[test]
fn messages_of_the_python_sdk_are_read() {
    for (suite, vector) in [(Suite::Commit, COMMIT), (Suite::CommitSigned, COMMIT_SIGNED)] {
        let message = hex::decode(vector.replace('\n', "")).unwrap();
        let header = inspect(message.as_slice()).unwrap();
        assert_eq!(header.suite, suite);
        assert_eq!(header.frame_length, 128);
        assert_eq!(header.context.contains_key(PUBLIC_KEY_CONTEXT_KEY), suite.is_signed());

        let mut content = Vec::new();
        let options = DecryptOptions::default();
        let summary =
            decrypt(&mut VectorKey, &options, message.as_slice(), &mut content, |_| {}).unwrap();
        let expected: Vec<u8> = (0..300_u32).map(|index| (index % 251) as u8).collect();
        assert_eq!(content, expected);
        assert_eq!(summary.frames, 3);
        assert_eq!(summary.message_bytes, message.len() as u64);
    }
}
