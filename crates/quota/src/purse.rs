//! Prepaid tokens on a node: whole ones, that end soon.

mod cell;

pub use cell::Purse;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tokens_are_spent_once_and_end() {
        let at = |ms| Duration::from_secs(50_000_000) + Duration::from_millis(ms);
        let purse = Purse::default();
        assert!(!purse.take(1, at(0)));
        purse.fill(3, at(100));
        assert!(purse.take(2, at(0)) && !purse.take(2, at(0)) && purse.take(1, at(99)));
        assert!(!purse.take(1, at(99)));
        purse.put_back(1);
        assert!(!purse.take(1, at(100)), "they have ended");
        assert!(purse.take(1, at(99)));
        purse.fill(u64::MAX, at(100));
        assert_eq!(purse.empty(at(1)), Purse::MOST);
        assert_eq!(purse.empty(at(1)), 0);
    }
}
