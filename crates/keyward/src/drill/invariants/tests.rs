use super::*;
use crate::drill::history::{Event, UNKNOWN};

const KEY: &str = "mrk-1";
const CLERK: &str = "arn:aws:iam::111122223333:user/clerk";

fn source(kind: Kind, region: &str, principal: Option<&str>) -> Source {
    Source {
        kind,
        name: "a load".to_owned(),
        region: region.to_owned(),
        key: "orders".to_owned(),
        principal: principal.map(str::to_owned),
    }
}

/// A history of one key in two Regions: a load in each, one by a principal, and looks in the end.
fn history() -> History {
    let sources = vec![
        source(Kind::Load, "us-east-1", None),
        source(Kind::Load, "eu-west-1", None),
        source(Kind::Load, "us-east-1", Some("clerk")),
        source(Kind::Before, "us-east-1", None),
        source(Kind::End, "us-east-1", None),
        source(Kind::End, "eu-west-1", None),
    ];
    History { sources, ..History::default() }
}

fn names() -> Names {
    Names {
        keys: [(KEY.to_owned(), "orders".to_owned())].into(),
        principals: [(CLERK.to_owned(), "clerk".to_owned())].into(),
    }
}

/// A call of a source, at that time in milliseconds, 2 ms long.
fn call(source: usize, operation: &'static str, at_ms: u64, ended: &str) -> CallRecord {
    CallRecord {
        source,
        operation: operation.into(),
        began_us: at_ms * 1000,
        sent_us: at_ms * 1000,
        took_us: 2000,
        subject: 7,
        value: 70,
        ended: ended.to_owned(),
    }
}

/// A step in us-east-1, 100 ms long.
fn step(at_ms: u64, command: &str) -> Event {
    Event {
        began_us: at_ms * 1000,
        ended_us: (at_ms + 100) * 1000,
        name: None,
        region: "us-east-1".to_owned(),
        command: format!("keyward {command}"),
        done: true,
        refused: None,
        said: String::new(),
    }
}

/// The rules that are broken.
fn broken(history: &History) -> Vec<String> {
    let verdicts = judge(history, &names());
    verdicts.into_iter().filter(|verdict| !verdict.held).map(|verdict| verdict.name).collect()
}

const STATE: &str = "no call acts on a key's state that is over";

#[test]
fn a_success_after_an_acknowledged_disable_is_found() {
    let mut history = history();
    history.events = vec![step(1000, &format!("key disable {KEY} --all-regions"))];
    history.calls = vec![
        call(0, "Encrypt", 1050, "answered"),
        call(0, "Encrypt", 1060, "DisabledException"),
        call(1, "Encrypt", 1200, "DisabledException"),
    ];
    assert!(broken(&history).is_empty(), "while it is under way either may be");
    let mut late = history.clone();
    late.calls.push(call(1, "Encrypt", 1101, "answered"));
    assert_eq!(broken(&late), [STATE]);
    // Enabled again: from its beginning on calls may succeed.
    late.events.push(step(1050, &format!("key enable {KEY} --all-regions")));
    assert!(broken(&late).is_empty());
    // Of this Region alone: the other one goes on.
    late.events = vec![step(1000, &format!("key disable {KEY}"))];
    late.calls = vec![call(1, "Encrypt", 1200, "answered")];
    assert!(broken(&late).is_empty());
    late.calls = vec![call(0, "Encrypt", 1200, "answered")];
    assert_eq!(broken(&late), [STATE]);
    // Nobody knows whether it took effect.
    late.events[0].done = false;
    assert!(broken(&late).is_empty());
}

#[test]
fn a_refusal_that_is_over_and_a_key_that_comes_back_are_found() {
    let mut history = history();
    history.events = vec![
        step(1000, &format!("key schedule-deletion {KEY} --days 7")),
        step(2000, "dev clock advance 8d"),
    ];
    history.calls = vec![
        call(0, "Encrypt", 1500, "KMSInvalidStateException"),
        call(0, "Encrypt", 2500, "KMSInvalidStateException"),
        call(0, "Encrypt", 3000, "NotFoundException"),
    ];
    assert!(broken(&history).is_empty(), "when it goes is the Region's business");
    let mut early = history.clone();
    early.calls.push(call(0, "Encrypt", 1500, "NotFoundException"));
    assert_eq!(broken(&early), [STATE]);
    history.calls.push(call(0, "Encrypt", 4000, "answered"));
    assert_eq!(broken(&history), [STATE]);
}

#[test]
fn an_answer_that_is_wrong_and_a_ciphertext_that_does_not_open_are_found() {
    let mut history = history();
    history.calls = vec![call(0, "Encrypt", 10, "answered"), call(1, "Decrypt", 20, "answered")];
    history.calls.push(call(4, "Decrypt", 900, "answered"));
    assert!(broken(&history).is_empty());
    let mut wrong = history.clone();
    wrong.calls[1].value = 71;
    assert_eq!(broken(&wrong), ["no answer is wrong"]);
    history.calls.push(call(5, "Decrypt", 900, "InvalidCiphertextException"));
    assert_eq!(broken(&history), ["every ciphertext opens in the end"]);
    // A key that is disabled opens nothing, as it should.
    history.calls.pop();
    history.calls.push(call(5, "Decrypt", 900, "DisabledException"));
    history.events = vec![step(500, &format!("key disable {KEY} --all-regions"))];
    history.calls.retain(|call| call.source != 4);
    assert!(broken(&history).is_empty());
}

#[test]
fn whoever_was_switched_off_and_is_let_in_is_found() {
    let mut history = history();
    history.events = vec![step(1000, &format!("principal disable {CLERK}"))];
    history.calls = vec![
        call(2, "Encrypt", 900, "answered"),
        call(2, "Encrypt", 1200, "UnrecognizedClientException"),
        call(0, "Encrypt", 1300, "answered"),
    ];
    assert!(broken(&history).is_empty());
    history.calls.push(call(2, "Encrypt", 1300, "answered"));
    assert_eq!(broken(&history), ["no call is let in or kept out by what is over"]);
}

#[test]
fn more_than_a_quota_is_found() {
    let mut history = history();
    history.events =
        vec![step(0, &format!("quota set --principal {CLERK} --limit 10/s --burst 5"))];
    history.calls = (0..5).map(|_| call(2, "Encrypt", 200, "answered")).collect();
    // Those of others, and before, do not count.
    history.calls.extend((0..50).map(|_| call(0, "Encrypt", 200, "answered")));
    history.calls.extend((0..50).map(|_| call(2, "Encrypt", 50, "answered")));
    assert!(broken(&history).is_empty());
    history.calls.push(call(2, "Encrypt", 200, "answered"));
    assert_eq!(broken(&history), ["quotas are never exceeded"]);
    // Taken away before that.
    history.events.push(step(150, &format!("quota delete --principal {CLERK}")));
    assert!(broken(&history).is_empty());
}

#[test]
fn outcomes_that_no_order_explains_are_found() {
    let mut history = history();
    history.events = vec![
        step(0, &format!("key schedule-deletion {KEY} --days 7")),
        step(200, &format!("key cancel-deletion {KEY}")),
        step(400, &format!("key enable {KEY}")),
    ];
    assert!(broken(&history).is_empty());
    history.events.remove(1);
    assert_eq!(broken(&history), ["changes of keys are linearizable"]);
    history.events[1].refused = Some("KMSInvalidStateException".to_owned());
    assert!(broken(&history).is_empty(), "it was refused, as it should be");
}

#[test]
fn a_change_that_was_acknowledged_and_is_gone_is_found() {
    let change = |days, ended: &str| CallRecord {
        value: days,
        ..call(3, "EnableKeyRotation", days * 10, ended)
    };
    let shown = |source, days| CallRecord {
        value: days,
        ..call(source, "GetKeyRotationStatus", 9000, "answered")
    };
    let mut history = history();
    history.sources[3].kind = Kind::Changes;
    history.calls = vec![
        change(90, "answered"),
        change(91, "answered"),
        change(92, UNKNOWN),
        shown(4, 91),
        shown(5, 91),
    ];
    assert!(broken(&history).is_empty());
    history.calls[3].value = 92;
    assert_eq!(broken(&history), ["Regions agree in the end"], "it may have taken effect");
    history.calls[3].value = 90;
    history.calls[4].value = 90;
    assert_eq!(broken(&history), ["no acknowledged change is lost"]);
    let lost: Vec<u64> = changed(&history)[0].lost.iter().map(|call| call.value).collect();
    assert_eq!(lost, [91]);
    // A Region went on without it, which an operator had decided.
    history.events = vec![step(1000, "region promote us-east-1")];
    assert!(broken(&history).is_empty());
}
