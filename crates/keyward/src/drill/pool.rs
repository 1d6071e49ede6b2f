//! Ciphertexts that were made in a drill: any caller of their key opens them, and all of them open in the end.

use parking_lot::Mutex;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::history::mark;

/// Ciphertexts of one key that are kept.
const KEPT_MAX: usize = 256;

/// A ciphertext, and marks of it and of what it must open to.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub blob: Vec<u8>,
    pub subject: u64,
    pub value: u64,
}

impl Sealed {
    pub fn new(blob: Vec<u8>, plaintext: &[u8]) -> Self {
        Self { subject: mark(&blob), value: mark(plaintext), blob }
    }
}

/// Those of one key: a fair sample of all that there were.
#[derive(Debug, Default)]
pub struct Pool(Mutex<(u64, Vec<Sealed>)>);

impl Pool {
    /// Keeps it, maybe, in the place of another one.
    pub fn put(&self, sealed: Sealed, dice: &mut ChaCha8Rng) {
        let (seen, kept) = &mut *self.0.lock();
        *seen += 1;
        if kept.len() < KEPT_MAX {
            return kept.push(sealed);
        }
        let at = dice.random_range(0..*seen);
        if let Some(place) = usize::try_from(at).ok().and_then(|at| kept.get_mut(at)) {
            *place = sealed;
        }
    }

    /// Any of them.
    pub fn draw(&self, dice: &mut ChaCha8Rng) -> Option<Sealed> {
        let (_, kept) = &*self.0.lock();
        (!kept.is_empty()).then(|| kept[dice.random_range(0..kept.len())].clone())
    }

    /// So many, from all of the time.
    pub fn some(&self, many: usize) -> Vec<Sealed> {
        let (_, kept) = &*self.0.lock();
        let step = kept.len().div_ceil(many.max(1)).max(1);
        kept.iter().step_by(step).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_from_all_of_the_time() {
        let (pool, mut dice) = (Pool::default(), ChaCha8Rng::seed_from_u64(1));
        assert!(pool.draw(&mut dice).is_none());
        for number in 0..10_000_u32 {
            pool.put(Sealed::new(number.to_be_bytes().to_vec(), b"x"), &mut dice);
        }
        let kept = pool.0.lock().1.clone();
        assert_eq!(kept.len(), KEPT_MAX);
        let late = kept.iter().filter(|one| one.blob > 5000_u32.to_be_bytes().to_vec()).count();
        assert!((80..180).contains(&late), "{late}");
        let some = pool.some(24);
        assert!((20..=24).contains(&some.len()), "{}", some.len());
    }
}
