//! What must hold whatever a drill promises, by the checkers of the simulator (`crates/check`): no answer is wrong, no call
//! acts on a state that was over, operators' changes happened one after the other, quotas are kept, and nothing
//! acknowledged is lost.

mod changed;
mod quotas;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyward_check::key::{KeyCommand, KeyModel, OfKey, ToldOfKey};
use keyward_check::linear::Operations;
use keyward_check::{End, History as Writes, KeyView};

use super::asked::{Asked, Names, asked, end};
use super::history::{CallRecord, History, Kind, Source};
use super::verdict::Verdict;

pub use changed::{Changed, changed};

/// A broken rule is told with so many examples.
const EXAMPLES: usize = 3;

/// All of them.
pub fn judge(history: &History, names: &Names) -> Vec<Verdict> {
    let mut verdicts = vec![
        no_answer_is_wrong(history),
        ciphertexts_open_in_the_end(history, names),
        keys_are_as_told(history, names),
    ];
    verdicts.extend(principals_are_as_told(history, names));
    verdicts.extend(changes_happened(history, names));
    verdicts.extend(quotas::are_kept(history, names));
    verdicts.extend(changed::are_there(history));
    verdicts
}

/// A verdict about cases, of which some are broken.
fn verdict(name: &str, promised: &str, held: &str, broken: &[String]) -> Verdict {
    let seen = match broken {
        [] => held.to_owned(),
        some => format!("{} broken: {}", some.len(), some[..some.len().min(EXAMPLES)].join("; ")),
    };
    Verdict::invariant(name, promised, broken.is_empty(), seen)
}

fn seconds(us: u64) -> String {
    super::verdict::seconds(Duration::from_micros(us))
}

/// Calls on the key itself, by loads and in the end.
fn uses(history: &History) -> impl Iterator<Item = (&CallRecord, &Source)> {
    let with = |call: &'_ CallRecord| history.sources.get(call.source);
    let calls = history.calls.iter().filter_map(move |call| Some((call, with(call)?)));
    calls.filter(|(call, source)| {
        matches!(source.kind, Kind::Load | Kind::End | Kind::Before)
            && matches!(&*call.operation, "Encrypt" | "Decrypt" | "GenerateDataKey")
    })
}

/// Every ciphertext opens to what went in, whoever opens it, wherever.
fn no_answer_is_wrong(history: &History) -> Verdict {
    let answered = || uses(history).filter(|(call, _)| call.answered());
    let made: BTreeMap<u64, u64> = answered()
        .filter(|(call, _)| call.operation != "Decrypt")
        .map(|(call, _)| (call.subject, call.value))
        .collect();
    let (mut opened, mut broken) = (0, Vec::new());
    for (call, source) in answered().filter(|(call, _)| call.operation == "Decrypt") {
        opened += 1;
        if made.get(&call.subject) != Some(&call.value) {
            broken.push(format!(
                "ciphertext {:016x} opened to something else in {} at {} s",
                call.subject,
                source.region,
                seconds(call.sent_us)
            ));
        }
    }
    let held = format!("{} ciphertexts, opened {opened} times, each to what went in", made.len());
    verdict("no answer is wrong", "every ciphertext opens to what went in", &held, &broken)
}

/// What a call shows of its key.
fn view(ended: &str) -> Option<KeyView> {
    match ended {
        super::history::ANSWERED => Some(KeyView::Enabled),
        "DisabledException" => Some(KeyView::Disabled),
        "KMSInvalidStateException" => Some(KeyView::Pending),
        "NotFoundException" => Some(KeyView::Absent),
        _ => None,
    }
}

/// Every state that a key was told to have, by key and Region.
type States = BTreeMap<(String, String), Writes<KeyView>>;

fn states(history: &History, names: &Names) -> States {
    let places = history.sources.iter().map(|s| (s.key.clone(), s.region.clone()));
    let mut states: States = places.map(|place| (place, Writes::new(KeyView::Enabled))).collect();
    for event in &history.events {
        let end = end(event);
        for (place, of) in commands(event, &history.sources, names) {
            let view = match of {
                OfKey::Enable => KeyView::Enabled,
                OfKey::Disable | OfKey::Cancel => KeyView::Disabled,
                OfKey::Schedule => KeyView::Pending,
                OfKey::Delete => KeyView::Absent,
                OfKey::Describe | OfKey::Rotate | OfKey::Show => continue,
            };
            let Some(writes) = states.get_mut(&place) else { continue };
            // By itself a key goes only if it waits for that, and when the Region sees fit.
            if of == OfKey::Delete && writes.last_acknowledged() != Some(&KeyView::Pending) {
                continue;
            }
            let write = writes.begin(view, event.began_us);
            writes.ended(write, if of == OfKey::Delete { End::Unknown } else { end });
        }
        if let Asked::GoesOn { region: Some(region) } = asked(event) {
            forget(&mut states, &region, event.began_us);
        }
    }
    states
}

/// A Region goes on with what is left of it: any state from before may be the one.
fn forget(states: &mut States, region: &str, at_us: u64) {
    for (_, writes) in states.iter_mut().filter(|((_, at), _)| at == region) {
        for view in [KeyView::Enabled, KeyView::Disabled, KeyView::Pending] {
            writes.begin(view, at_us);
        }
    }
}

/// What a step asked of keys, by key and Region.
fn commands(
    event: &super::history::Event,
    sources: &[Source],
    names: &Names,
) -> Vec<((String, String), OfKey)> {
    let places: BTreeSet<(String, String)> =
        sources.iter().map(|s| (s.key.clone(), s.region.clone())).collect();
    let in_region = |at: &String| *at == event.region;
    match asked(event) {
        Asked::Key { id, of, everywhere } => {
            let Some(name) = names.keys.get(&id) else { return Vec::new() };
            let meant = |(key, at): &(String, String)| key == name && (everywhere || in_region(at));
            places.into_iter().filter(meant).map(|place| (place, of)).collect()
        }
        Asked::Clock => {
            let here = places.into_iter().filter(|(_, at)| in_region(at));
            here.map(|place| (place, OfKey::Delete)).collect()
        }
        _ => Vec::new(),
    }
}

/// No call acts on a state that was over before it began.
fn keys_are_as_told(history: &History, names: &Names) -> Verdict {
    let states = states(history, names);
    let (mut looked, mut broken) = (0, Vec::new());
    for (call, source) in uses(history) {
        let place = (source.key.clone(), source.region.clone());
        let (Some(view), Some(writes)) = (view(&call.ended), states.get(&place)) else { continue };
        looked += 1;
        if let Err(why) = writes.may_read(&view, call.sent_us, call.ended_us()) {
            broken.push(format!("{} in {}: {why} (microseconds)", source.key, source.region));
        }
    }
    verdict(
        "no call acts on a key's state that is over",
        "a call that begins after a change was acknowledged acts on that change or a later one",
        &format!("{looked} calls did"),
        &broken,
    )
}

/// Every ciphertext opens while its key is enabled.
fn ciphertexts_open_in_the_end(history: &History, names: &Names) -> Verdict {
    let states = states(history, names);
    let (mut opened, mut refused, mut broken) = (0, 0, Vec::new());
    for (call, source) in uses(history).filter(|(_, source)| source.kind == Kind::End) {
        let place = (source.key.clone(), source.region.clone());
        let states = states.get(&place);
        let enabled = states.is_some_and(|states| {
            states.is_certain() && states.last_acknowledged() == Some(&KeyView::Enabled)
        });
        match (call.answered(), enabled) {
            (true, _) => opened += 1,
            (false, false) => refused += 1,
            (false, true) => broken.push(format!(
                "{:016x} does not open in {}: {}",
                call.subject, source.region, call.ended
            )),
        }
    }
    let held = match refused {
        0 => format!("{opened} of {opened} opened"),
        _ => format!("{opened} opened; {refused} of keys that are not enabled did not"),
    };
    verdict(
        "every ciphertext opens in the end",
        "what was encrypted opens in every Region of its key, if that is enabled there",
        &held,
        &broken,
    )
}

/// Nobody who was switched off is let in, and nobody else is kept out.
fn principals_are_as_told(history: &History, names: &Names) -> Option<Verdict> {
    let mut let_in: BTreeMap<(String, String), Writes<bool>> = BTreeMap::new();
    let places =
        history.sources.iter().filter_map(|s| Some((s.principal.clone()?, s.region.clone())));
    let_in.extend(places.map(|place| (place, Writes::new(true))));
    for event in &history.events {
        let Asked::Principal { arn, let_in: value, everywhere } = asked(event) else { continue };
        let Some(name) = names.principals.get(&arn) else { continue };
        for ((_, at), writes) in let_in.iter_mut().filter(|((who, _), _)| who == name) {
            let write = writes.begin(value, event.began_us);
            // Other Regions hear of it later, if nobody waits for them.
            let here = everywhere || *at == event.region;
            writes.ended(write, if here { end(event) } else { End::Unknown });
        }
    }
    if let_in.is_empty() {
        return None;
    }
    let (mut looked, mut broken) = (0, Vec::new());
    for (call, source) in uses(history) {
        let Some(who) = &source.principal else { continue };
        let seen = match call.ended.as_str() {
            "UnrecognizedClientException" => false,
            ended if view(ended).is_some() => true,
            _ => continue,
        };
        let Some(writes) = let_in.get(&(who.clone(), source.region.clone())) else { continue };
        looked += 1;
        if let Err(why) = writes.may_read(&seen, call.sent_us, call.ended_us()) {
            broken.push(format!("{who} in {}: {why} (let in or not, microseconds)", source.region));
        }
    }
    Some(verdict(
        "no call is let in or kept out by what is over",
        "a call that begins after a principal was switched off or on is refused or let in",
        &format!("{looked} calls were"),
        &broken,
    ))
}

/// Operators' changes of each key happened one after the other, with the outcomes that they were told.
fn changes_happened(history: &History, names: &Names) -> Option<Verdict> {
    let mut of_keys: BTreeMap<(String, String), Operations<KeyCommand>> = BTreeMap::new();
    let (mut all, mut cut) = (0, BTreeSet::new());
    for event in &history.events {
        if let Asked::GoesOn { region: Some(region) } = asked(event) {
            cut.insert(region);
        }
        for (place, of) in commands(event, &history.sources, names) {
            let told = match event.refused.as_deref() {
                Some("KMSInvalidStateException") if of == OfKey::Cancel => ToldOfKey::NotPending,
                Some(error) => view(error).map_or(ToldOfKey::Done, ToldOfKey::Was),
                None => ToldOfKey::Done,
            };
            let end = match (of, told, end(event)) {
                (OfKey::Delete, ..) => End::Unknown,
                (_, ToldOfKey::Was(_) | ToldOfKey::NotPending, End::Void) => {
                    End::Acknowledged(event.ended_us)
                }
                (_, _, end) => end,
            };
            all += 1;
            let operations = of_keys.entry(place).or_default();
            let number = operations.begin(KeyCommand(of, told), event.began_us);
            operations.ended(number, KeyCommand(of, told), end);
        }
    }
    let broken = |((key, region), operations): (&(String, String), &Operations<KeyCommand>)| {
        let (command, began, _) = operations.check::<KeyModel>(KeyView::Enabled).err()?;
        Some(format!("{command:?} of {key} in {region}, begun at {} s", seconds(began)))
    };
    // Where a Region went on with what was left, some of it may not have been.
    let whole = of_keys.iter().filter(|((_, region), _)| !cut.contains(region));
    let broken: Vec<String> = whole.filter_map(broken).collect();
    (all > 0).then(|| {
        verdict(
            "changes of keys are linearizable",
            "they happened one after the other, with the outcomes that operators were told",
            &format!("{all} of {all} did"),
            &broken,
        )
    })
}
