//! Key derivation: NIST SP 800-108r1, section 4.1 (KDF in counter mode), with HMAC-SHA-256 as its PRF.

use zeroize::Zeroize;

use crate::provider::{CryptoProvider, SHA_256_BYTES};

/// Fills `out` with keying material derived from `key`.
///
/// The fixed input is the one that the standard recommends, `label || 0x00 || context || [L]`, the counter
/// is in front of it, and counter and length (in bits) are 32-bit big-endian numbers. Labels hold no zero
/// byte, so no two (label, context) pairs have the same fixed input.
///
/// # Panics
/// When `out` is 2^29 bytes or longer, or `label` holds a zero byte: mistakes of the program.
pub fn counter_hmac_sha256(
    crypto: &dyn CryptoProvider,
    key: &[u8],
    label: &[u8],
    context: &[u8],
    out: &mut [u8],
) {
    assert!(!label.contains(&0), "a label without zero bytes");
    assert!(out.len() < 1 << 29, "a length in bits below 2^32");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let out_bits = ((out.len() * 8) as u32).to_be_bytes();
    counter_mode(crypto, key, [label, &[0], context, &out_bits], out);
}

/// The loop of section 4.1 over a fixed input that is given in parts.
fn counter_mode(crypto: &dyn CryptoProvider, key: &[u8], fixed: [&[u8]; 4], out: &mut [u8]) {
    let [a, b, c, d] = fixed;
    let mut block = [0; SHA_256_BYTES];
    for (counter, chunk) in (1u32..).zip(out.chunks_mut(SHA_256_BYTES)) {
        crypto.hmac_sha256(key, &[&counter.to_be_bytes(), a, b, c, d], &mut block);
        chunk.copy_from_slice(&block[..chunk.len()]);
    }
    block.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::RingProvider;

    /// NIST CAVP, `KDFCTR_gen.rsp` (CAVS 14.4): `[PRF=HMAC_SHA256] [CTRLOCATION=BEFORE_FIXED]
    /// [RLEN=32_BITS]`, COUNT 0, 10, 20 and 30: one block, one whole block, a cut one, two.
    const CAVP: [(&str, &str, &str); 4] = [
        (
            "dd1d91b7d90b2bd3138533ce92b272fbf8a369316aefe242e659cc0ae238afe0",
            "01322b96b30acd197979444e468e1c5c6859bf1b1cf951b7e725303e237e46b8\
             64a145fab25e517b08f8683d0315bb2911d80a0e8aba17f3b413faac",
            "10621342bfb0fd40046c0e29f2cfdbf0",
        ),
        (
            "e204d6d466aad507ffaf6d6dab0a5b26152c9e21e764370464e360c8fbc765c6",
            "7b03b98d9f94b899e591f3ef264b71b193fba7043c7e953cde23bc5384bc1a62\
             93580115fae3495fd845dadbd02bd6455cf48d0f62b33e62364a3a80",
            "770dfab6a6a4a4bee0257ff335213f78d8287b4fd537d5c1fffa956910e7c779",
        ),
        (
            "dc60338d884eecb72975c603c27b360605011756c697c4fc388f5176ef81efb1",
            "44d7aa08feba26093c14979c122c2437c3117b63b78841cd10a4bc5ed55c5658\
             6ad8986d55307dca1d198edcffbc516a8fbe6152aa428cdd800c062d",
            "29ac07dccf1f28d506cd623e6e3fc2fa255bd60b",
        ),
        (
            "c4bedbddb66493e7c7259a3bbbc25f8c7e0ca7fe284d92d431d9cd99a0d214ac",
            "1c69c54766791e315c2cc5c47ecd3ffab87d0d273dd920e70955814c220eacac\
             e6a5946542da3dfe24ff626b4897898cafb7db83bdff3c14fa46fd4b",
            "1da47638d6c9c4d04d74d4640bbd42ab814d9e8cc22f4326695239f96b0693f12d0dd1152cf44430",
        ),
    ];

    #[test]
    fn the_counter_loop_matches_nist_cavp() {
        for (key, fixed, expected) in CAVP {
            let (key, fixed) = (hex::decode(key).unwrap(), hex::decode(fixed).unwrap());
            let expected = hex::decode(expected).unwrap();
            let mut out = vec![0; expected.len()];
            counter_mode(&RingProvider, &key, [&fixed, &[], &[], &[]], &mut out);
            assert_eq!(out, expected);
        }
    }

    /// CAVP leaves the fixed input to the implementer. This writes ours out by hand.
    #[test]
    fn the_fixed_input_is_label_zero_context_length() {
        let key = [7; 32];
        let mut out = [0; 40];
        counter_hmac_sha256(&RingProvider, &key, b"label", b"context", &mut out);
        let mut by_hand = Vec::new();
        for counter in [1u8, 2] {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
            let mut input = vec![0, 0, 0, counter];
            input.extend_from_slice(b"label\0context\x00\x00\x01\x40");
            by_hand.extend_from_slice(ring::hmac::sign(&key, &input).as_ref());
        }
        assert_eq!(out[..], by_hand[..40]);
    }

    #[test]
    fn label_context_key_and_length_each_change_the_output() {
        let derive = |key: u8, label: &[u8], context: &[u8], len: usize| {
            let mut out = vec![0; len];
            counter_hmac_sha256(&RingProvider, &[key; 32], label, context, &mut out);
            out[..16].to_vec()
        };
        let base = derive(1, b"a", b"b", 32);
        for other in [
            derive(2, b"a", b"b", 32),
            derive(1, b"b", b"b", 32),
            derive(1, b"a", b"c", 32),
            derive(1, b"a", b"b", 16),
        ] {
            assert_ne!(base, other);
        }
    }
}
