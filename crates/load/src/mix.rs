//! What is called: operations and sizes, by weight.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::PlanError;

/// Bytes of a plaintext, at most (AWS KMS, Encrypt).
pub const SIZE_MAX: usize = 4096;
const WEIGHT_MAX: u32 = 1_000_000;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $aws:literal;)+) => {
        /// An operation that a load can be made of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Operation { $($(#[$doc])* $name),+ }

        impl Operation {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As the command line has it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// As AWS has it.
            #[must_use]
            pub fn aws_name(self) -> &'static str {
                match self { $(Self::$name => $aws),+ }
            }
        }
    };
}

operations! {
    /// Encrypts plaintexts of the load's sizes.
    Encrypt = "encrypt", "Encrypt";
    /// Decrypts what was encrypted before the load began.
    Decrypt = "decrypt", "Decrypt";
    /// Encrypts that anew under another of the load's keys.
    ReEncrypt = "re-encrypt", "ReEncrypt";
    /// Makes AES-256 data keys.
    GenerateDataKey = "generate-data-key", "GenerateDataKey";
    /// Makes AES-256 data keys that are not shown.
    GenerateDataKeyWithoutPlaintext =
        "generate-data-key-without-plaintext", "GenerateDataKeyWithoutPlaintext";
    /// Draws 32 random bytes.
    GenerateRandom = "generate-random", "GenerateRandom";
    /// Looks at keys: control plane, from memory.
    DescribeKey = "describe-key", "DescribeKey";
    /// Changes keys: control plane, one entry in the log each.
    UpdateKeyDescription = "update-key-description", "UpdateKeyDescription";
    /// Makes keys: control plane, one entry in the log each.
    CreateKey = "create-key", "CreateKey";
}

impl Operation {
    /// Its place in [`Operation::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// It can go on a stream.
    #[must_use]
    pub fn streams(self) -> bool {
        !matches!(self, Self::DescribeKey | Self::UpdateKeyDescription | Self::CreateKey)
    }

    /// It opens a ciphertext.
    pub(crate) fn opens(self) -> bool {
        matches!(self, Self::Decrypt | Self::ReEncrypt)
    }

    /// It changes keys, which have to be the load's own.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::UpdateKeyDescription | Self::CreateKey)
    }

    fn parse(text: &str) -> Result<Self, PlanError> {
        let plain = |name: &str| name.replace(['-', '_'], "").to_ascii_lowercase();
        let found = Self::ALL.iter().find(|operation| plain(operation.name()) == plain(text));
        found.copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|operation| operation.name()).collect();
            PlanError::new(format!("'{text}' is no operation of a load: {}", names.join(", ")))
        })
    }
}

/// Things by weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weighted<T> {
    /// Each with the sum of the weights up to it.
    parts: Vec<(T, u32)>,
}

impl<T: Copy + PartialEq> Weighted<T> {
    /// Reads `a=3,b=1`; what has no weight weighs 1.
    fn parse(text: &str, thing: impl Fn(&str) -> Result<T, PlanError>) -> Result<Self, PlanError> {
        let mut parts: Vec<(T, u32)> = Vec::new();
        let mut sum = 0u32;
        for part in text.split(',').map(str::trim) {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let one = thing(name.trim())?;
            let weight = weight.trim().trim_end_matches('%');
            let weight: u32 =
                weight.parse().ok().filter(|weight| *weight <= WEIGHT_MAX).ok_or_else(|| {
                    PlanError::new(format!(
                        "'{part}': a weight is a whole number up to {WEIGHT_MAX}, as in {name}=70"
                    ))
                })?;
            if parts.iter().any(|(known, _)| *known == one) {
                return Err(PlanError::new(format!("'{name}' stands twice in '{text}'")));
            }
            sum = sum.saturating_add(weight);
            if weight > 0 {
                parts.push((one, sum));
            }
        }
        if parts.is_empty() {
            return Err(PlanError::new(format!(
                "'{text}' weighs nothing: one part at least needs a weight above 0"
            )));
        }
        Ok(Self { parts })
    }

    fn index(&self, dice: &mut ChaCha8Rng) -> usize {
        let sum = self.parts.last().map_or(1, |(_, sum)| *sum);
        if self.parts.len() == 1 {
            return 0;
        }
        let drawn = dice.random_range(0..sum);
        self.parts.partition_point(|(_, up_to)| *up_to <= drawn)
    }

    fn things(&self) -> impl Iterator<Item = T> {
        self.parts.iter().map(|(thing, _)| *thing)
    }
}

/// Operations by weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Weighted<Operation>);

impl Mix {
    /// Reads `encrypt=70,decrypt=30`.
    ///
    /// # Errors
    /// A text that is no mix, and what operations there are.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        Weighted::parse(text, Operation::parse).map(Self)
    }

    /// What it consists of.
    pub fn operations(&self) -> impl Iterator<Item = Operation> {
        self.0.things()
    }

    /// One of them.
    pub fn draw(&self, dice: &mut ChaCha8Rng) -> Operation {
        self.0.parts[self.0.index(dice)].0
    }
}

/// Sizes of plaintexts by weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(Weighted<usize>);

impl Sizes {
    /// Reads `32` or `32=9,4096=1`: bytes, each 1 to 4096.
    ///
    /// # Errors
    /// A text that is none.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let size = |text: &str| {
            let size = text.parse().ok().filter(|size| (1..=SIZE_MAX).contains(size));
            size.ok_or_else(|| {
                PlanError::new(format!(
                    "'{text}' is no size: 1 to {SIZE_MAX} bytes, as in 32 or 32=9,4096=1"
                ))
            })
        };
        Weighted::parse(text, size).map(Self)
    }

    pub(crate) fn all(&self) -> Vec<usize> {
        self.0.things().collect()
    }

    /// Which of [`Self::all`].
    pub(crate) fn draw(&self, dice: &mut ChaCha8Rng) -> usize {
        self.0.index(dice)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn what_is_drawn_follows_the_weights() {
        let mix =
            Mix::parse("Encrypt=70, decrypt=20,generate-data-key=10,generate-random=0").unwrap();
        let mut dice = ChaCha8Rng::seed_from_u64(1);
        let mut drawn = [0; Operation::ALL.len()];
        (0..10_000).for_each(|_| drawn[mix.draw(&mut dice).index()] += 1);
        let of = |operation: Operation| drawn[operation.index()];
        assert!((6800..7200).contains(&of(Operation::Encrypt)));
        assert!((1850..2150).contains(&of(Operation::Decrypt)));
        assert!((880..1120).contains(&of(Operation::GenerateDataKey)));
        assert_eq!(of(Operation::GenerateRandom), 0);
        assert_eq!(Sizes::parse("32=9,4096=1").unwrap().all(), [32, 4096]);
    }

    #[test]
    fn what_is_no_mix_is_told_why() {
        let says = |text: &str| Mix::parse(text).unwrap_err().to_string();
        assert!(
            says("encript=1").contains("'encript' is no operation of a load: encrypt, decrypt")
        );
        assert!(says("encrypt=lots").contains("a weight is a whole number"));
        assert!(says("encrypt=1,encrypt=2").contains("stands twice"));
        assert!(says("encrypt=0").contains("weighs nothing"));
        let says = |text: &str| Sizes::parse(text).unwrap_err().to_string();
        assert!(says("5000").contains("1 to 4096 bytes"));
        assert!(says("0").contains("is no size"));
    }
}
