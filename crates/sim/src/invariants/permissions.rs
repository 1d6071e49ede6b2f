//! **No stale permission** (invariant 3, DESIGN section 5): after an acknowledged restriction no call that begins later, on
//! any node, works under the old permission; the same the other way round, and for keys that were made, descriptions
//! and aliases. And no node goes back behind what it has shown before.
//!
//! Each answer is looked at by itself, as it leaves. Outcomes of commands are looked at together in the end
//! (`linearizability.rs`).

use keyward_model::NodeId;

use crate::book::{Book, KeyView};
use keyward_check::{History, Step};

/// An answer that shows something.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When the call began.
    pub began: Step,
    /// When it ended.
    pub ended: Step,
    /// The node that showed it; none where it may be what the leader saw.
    pub node: Option<NodeId>,
    /// What for, for a failure's text.
    pub who: String,
}

impl Book {
    /// A key's state. A key that is gone works nowhere.
    pub fn read_state(&mut self, key: usize, view: KeyView, seen: &Seen) {
        let book = &mut self.keys[key];
        let lives = matches!(view, KeyView::Enabled | KeyView::Disabled);
        let what = if book.gone_since.is_some_and(|gone| gone < seen.began) && lives {
            format!("RESURRECTION of key {} through {}: it is {view:?}", book.id, seen.who)
        } else {
            match look(&mut book.state, &view, seen) {
                Ok(()) => return,
                Err(why) => format!("STALE STATE of key {} through {}: {why}", book.id, seen.who),
            }
        };
        self.violate(what);
    }

    /// A key's description.
    pub fn read_description(&mut self, key: usize, text: &str, seen: &Seen) {
        let book = &mut self.keys[key];
        if let Err(why) = look(&mut book.description, &text.to_owned(), seen) {
            let what = format!("STALE DESCRIPTION of key {} through {}: {why}", book.id, seen.who);
            self.violate(what);
        }
    }

    /// Where an alias points.
    pub fn read_alias(&mut self, alias: usize, to: Option<&str>, seen: &Seen) {
        let target = match to {
            None => None,
            Some(id) => match self.keys.iter().position(|key| key.id == id) {
                Some(key) => Some(key),
                None => {
                    let what = format!("alias {alias} points at {id}, which nobody made");
                    return self.violate(what);
                }
            },
        };
        if let Err(why) = look(&mut self.aliases[alias], &target, seen) {
            self.violate(format!("STALE ALIAS {alias} through {}: {why}", seen.who));
        }
    }
}

fn look<V: Clone + PartialEq + std::fmt::Debug>(
    history: &mut History<V>,
    value: &V,
    seen: &Seen,
) -> Result<(), String> {
    history.may_read(value, seen.began, seen.ended)?;
    match seen.node {
        Some(node) => history.may_show(node, value, seen.began, seen.ended),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::{Acknowledged, Change};

    fn seen(began: Step, ended: Step) -> Seen {
        Seen { began, ended, node: Some(1), who: "node 1".to_owned() }
    }

    /// With one key, and one alias that points nowhere.
    fn book() -> Book {
        let mut book = Book::default();
        book.aliases.push(History::new(None));
        let begun = book.begin(Change::Create, 1);
        book.end(&begun, &Ok(Acknowledged::Created("a key".to_owned())), 2, false);
        book
    }

    fn change(book: &mut Book, change: Change, step: Step) {
        let begun = book.begin(change, step);
        book.end(&begun, &Ok(Acknowledged::Done), step + 1, false);
    }

    fn only_violation(book: &Book) -> &str {
        assert_eq!(book.violations.len(), 1, "{:?}", book.violations);
        &book.violations[0]
    }

    #[test]
    fn a_use_that_begins_after_an_acknowledged_disable_must_see_it() {
        let mut book = book();
        change(&mut book, Change::SetEnabled(0, false), 10);
        book.read_state(0, KeyView::Enabled, &seen(9, 12));
        assert!(book.violations.is_empty(), "it began before");
        book.read_state(0, KeyView::Enabled, &seen(12, 13));
        assert!(only_violation(&book).starts_with("STALE STATE"));
    }

    #[test]
    fn a_key_that_is_gone_works_nowhere() {
        let mut book = book();
        book.keys[0].gone_since = Some(30);
        book.read_state(0, KeyView::Enabled, &seen(29, 32));
        assert!(book.violations.is_empty(), "it began before");
        book.read_state(0, KeyView::Enabled, &seen(31, 32));
        assert!(only_violation(&book).starts_with("RESURRECTION"));
    }

    #[test]
    fn an_old_description_an_old_alias_and_an_alias_to_nothing_are_noticed() {
        let mut book = book();
        change(&mut book, Change::Describe(0, "new".to_owned()), 10);
        change(&mut book, Change::CreateAlias(0, 0), 20);
        book.read_description(0, "", &seen(12, 13));
        book.read_alias(0, None, &seen(22, 23));
        book.read_alias(0, Some("another"), &seen(24, 25));
        let begins = ["STALE DESCRIPTION", "STALE ALIAS", "alias 0 points at another"];
        assert_eq!(book.violations.len(), begins.len(), "{:?}", book.violations);
        for (violation, begin) in book.violations.iter().zip(begins) {
            assert!(violation.starts_with(begin), "{violation}");
        }
    }

    #[test]
    fn a_node_that_shows_a_change_under_way_does_not_forget_it() {
        let mut book = book();
        let _under_way = book.begin(Change::Describe(0, "new".to_owned()), 10);
        book.read_description(0, "new", &seen(11, 12));
        book.read_description(0, "", &Seen { node: Some(2), ..seen(13, 14) });
        assert!(book.violations.is_empty(), "{:?}", book.violations);
        book.read_description(0, "", &seen(13, 14));
        assert!(only_violation(&book).contains("after one until 12 saw \"new\""));
    }
}
