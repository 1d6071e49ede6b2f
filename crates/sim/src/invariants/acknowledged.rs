//! **Nothing acknowledged is lost** (invariant 1): in the end every node shows, of each thing, the last acknowledged write
//! or one of unknown outcome; and every acknowledged rotation made a material.

use std::sync::Arc;

use keyward_model::ErrorCode;
use keyward_service::Response;
use keyward_service::api::DescribeKey;

use super::Seen;
use crate::book::{KeyView, alias_name};
use crate::client::Callers;
use crate::ending::insist;

/// Asks every node for everything.
pub async fn nothing_is_lost(callers: &Arc<Callers>) {
    let world = &callers.cluster.world;
    for index in callers.cluster.members() {
        let node = callers.cluster.id(index);
        let who = format!("node {node} in the end");
        let (keys, aliases) = {
            let book = callers.book.lock();
            (book.keys.len(), book.aliases.len())
        };
        for key in 0..keys {
            let key_id = callers.book.lock().keys[key].id.clone();
            let began = world.step();
            let shown =
                insist(callers, index, || DescribeKey { key_id: key_id.clone() }.into()).await;
            let seen = Seen { began, ended: world.step(), node: Some(node), who: who.clone() };
            let mut book = callers.book.lock();
            match shown {
                Ok(Response::Key(metadata)) => {
                    let view = KeyView::from(metadata.state);
                    book.read_state(key, view, &seen);
                    book.commands.shown(key, view, seen.began, seen.ended);
                    book.read_description(key, &metadata.description, &seen);
                }
                // Gone for good, or lost: the history tells.
                Err((ErrorCode::NotFoundException, _)) => {
                    book.read_state(key, KeyView::Absent, &seen);
                    book.commands.shown(key, KeyView::Absent, seen.began, seen.ended);
                }
                other => book.violate(format!("LOST KEY {key_id} on {who}: {other:?}")),
            }
        }
        for alias in 0..aliases {
            let began = world.step();
            let request = || DescribeKey { key_id: alias_name(alias) }.into();
            let shown = insist(callers, index, request).await;
            let seen = Seen { began, ended: world.step(), node: Some(node), who: who.clone() };
            let mut book = callers.book.lock();
            match shown {
                Ok(Response::Key(metadata)) => {
                    book.read_alias(alias, Some(&metadata.key_id), &seen);
                    let to = book.keys.iter().position(|key| key.id == metadata.key_id);
                    book.commands.points(alias, to, seen.began, seen.ended);
                }
                Err((ErrorCode::NotFoundException, _)) => {
                    book.read_alias(alias, None, &seen);
                    book.commands.points(alias, None, seen.began, seen.ended);
                }
                other => book.violate(format!("AN ALIAS CANNOT BE READ on {who}: {other:?}")),
            }
        }
        materials_are_there(callers, index, &who);
    }
}

/// Every acknowledged rotation made a material, and nothing else did.
fn materials_are_there(callers: &Callers, index: usize, who: &str) {
    let Some(running) = callers.cluster.running(index) else { return };
    let state = running.kms.node().state();
    let mut book = callers.book.lock();
    let mut found = Vec::new();
    for key in &book.keys {
        let Some(row) = key.id.parse().ok().and_then(|id| state.key(&id)) else { continue };
        let (acknowledged, possible) = key.rotations;
        let materials = row.materials.len();
        if !(acknowledged + 1..=possible + 1).contains(&materials) {
            found.push(format!(
                "LOST OR SURPLUS ROTATION of key {} on {who}: {materials} materials after {acknowledged} \
                 acknowledged and {possible} possible rotations",
                key.id
            ));
        }
    }
    for what in found {
        book.violate(what);
    }
}
