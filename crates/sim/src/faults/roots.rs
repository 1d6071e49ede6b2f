//! Roots are slow, gone or answer wrongly; an operator adds, removes and rotates them meanwhile, and processes
//! die at any step of it.

use std::sync::Arc;
use std::time::Duration;

use keyward_hsm::RootId;
use keyward_service::{RootCommand, RootReply};

use crate::client::Callers;
use crate::cluster::{Death, operator};
use crate::dice::Dice;
use crate::roots::Mode;
use crate::sleep;

const PATIENCE: Duration = Duration::from_secs(10);
/// How often in a thousand a process dies between two steps of its root keeper.
const DEATHS_PERMILLE: u64 = 120;
const MODES: &[Mode] = &[Mode::Good, Mode::Good, Mode::Slow, Mode::Gone, Mode::Gone, Mode::Wrong];

/// Breaks and changes roots for that long.
pub async fn break_roots(callers: Arc<Callers>, mut dice: Dice, duration: Duration) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + duration;
    cluster.set_deaths(DEATHS_PERMILLE);
    for number in 0u64.. {
        sleep(dice.between_ms(200, 3000)).await;
        if cluster.world.now() >= end {
            return;
        }
        let index = dice.pick(&cluster.members());
        let roots = cluster.recorded_roots(index);
        if roots.is_empty() {
            continue;
        }
        let (id, device) = roots[dice.index(roots.len())].clone();
        match dice.below(100) {
            0..=44 => {
                let mode = dice.pick(MODES);
                cluster.cabinet(index).set(&device, mode);
                callers.book.lock().counters.root_faults += u64::from(mode != Mode::Good);
                continue;
            }
            45..=64 => change(&callers, &mut dice, index, add(number)),
            65..=84 => change(&callers, &mut dice, index, Changing::Remove(id)),
            _ => {
                change(&callers, &mut dice, index, add(number));
                sleep(dice.between_ms(100, 1500)).await;
                change(&callers, &mut dice, index, Changing::Remove(id));
            }
        }
        if dice.permille(300) {
            let (again, death) = (Arc::clone(&callers), dice.pick(&[Death::Kill, Death::PowerCut]));
            let group = cluster.group(index);
            cluster.world.after(dice.between_ms(0, 1200), move || {
                if again.cluster.group(index) == group && !super::some_node_is_down(&again) {
                    again.cluster.restart_soon(index, death);
                }
            });
        }
    }
}

#[derive(Clone)]
enum Changing {
    Add(String),
    Remove(RootId),
}

fn add(number: u64) -> Changing {
    Changing::Add(format!("device {number}"))
}

/// An operator has a node's roots changed, through any node.
fn change(callers: &Arc<Callers>, dice: &mut Dice, index: usize, changing: Changing) {
    let (callers, through) = (Arc::clone(callers), dice.pick(&callers.cluster.members()));
    let world = Arc::clone(&callers.cluster.world);
    let work = async move {
        let cluster = &callers.cluster;
        let (node, before) = (cluster.id(index), cluster.recorded_roots(index));
        let command = match &changing {
            Changing::Add(spec) => RootCommand::Add { spec: spec.clone() },
            Changing::Remove(root) => RootCommand::Remove { root: root.clone() },
        };
        let answer = cluster
            .operate(through, move |kms| async move {
                kms.roots_of_node(&operator(), node, command, PATIENCE).await
            })
            .await;
        let mut book = callers.book.lock();
        match (answer, changing) {
            (Ok(RootReply::Done), Changing::Remove(root)) => {
                book.counters.roots_changed += 1;
                if cluster.recorded_roots(index).is_empty() {
                    book.violate(format!("THE LAST ROOT of node {node} was removed: {root}"));
                }
            }
            (Ok(_), _) => book.counters.roots_changed += 1,
            (Err(why), Changing::Remove(_)) if before.len() == 1 => {
                book.counters.last_roots_kept += u64::from(why.contains("is the last root"));
            }
            (Err(_), _) => {}
        }
    };
    drop(world.spawn_in(crate::runtime::HARNESS, work));
}
