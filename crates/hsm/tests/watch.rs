//! Roots that are gone, slow, hang or answer wrongly; and several roots of one node.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::{SeededEntropy, block_on, key_id};
use keyward_hsm::testing::{FaultyRoot, ManualClock, RootFault};
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, BackingKey, CanonicalContext, Hsm, HsmConfig, HsmError,
    MemoryRoot, ParsedCiphertext, ROOTS_MAX, RootError, RootHealth, RootProvider, RootWatchConfig,
    SealedToken,
};
use keyward_model::{DomainKeyId, KeyMaterialId};

const SECOND: Duration = Duration::from_secs(1);
const CONFIG: RootWatchConfig = RootWatchConfig {
    grace: Duration::from_secs(3600),
    probe_interval: Duration::from_secs(5),
    probe_timeout: Duration::from_secs(2),
    operation_timeout: Duration::from_secs(10),
};

/// A node with an open key on a root whose faults can be switched, and its watch.
struct Bench {
    clock: ManualClock,
    root: Arc<FaultyRoot>,
    hsm: Arc<Hsm>,
    watch: Pin<Box<dyn Future<Output = ()> + Send>>,
    domain: DomainKeyId,
    material: KeyMaterialId,
    token: SealedToken,
    open: Arc<BackingKey>,
}

fn memory_root(seed: u64) -> Arc<dyn RootProvider> {
    let entropy = SeededEntropy::shared(seed);
    Arc::new(MemoryRoot::new(&seed.to_be_bytes(), entropy, true).unwrap())
}

fn faulty(seed: u64, clock: &ManualClock) -> Arc<FaultyRoot> {
    FaultyRoot::new(memory_root(seed), Arc::new(clock.clone()))
}

fn hsm_on(root: Arc<dyn RootProvider>) -> Arc<Hsm> {
    let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
    let config = HsmConfig { cache_max_entries: 64, arena };
    Hsm::new(root, SeededEntropy::shared(7), &config).unwrap()
}

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::default();
        clock.advance(1000 * SECOND);
        let root = faulty(1, &clock);
        let hsm = hsm_on(root.clone());
        let watch = Box::pin(hsm.watch_roots(Arc::new(clock.clone()), CONFIG));
        let domain = block_on(hsm.generate_domain_key()).unwrap().id;
        let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
        let open = hsm.unseal(key_id(1), material, &token).unwrap();
        let mut bench = Self { clock, root, hsm, watch, domain, material, token, open };
        bench.turn();
        assert!(matches!(bench.health(), RootHealth::Healthy { .. }));
        bench
    }

    /// Lets the watch do what it can do now. (It is polled again until it waits for the clock twice.)
    fn turn(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        assert!(self.watch.as_mut().poll(&mut context).is_pending(), "the watch has ended");
    }

    /// Lets time pass in steps of a second, and the watch with it.
    fn pass(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.clock.advance(SECOND);
            self.turn();
        }
    }

    fn health(&self) -> RootHealth {
        self.hsm.roots()[0].health.clone()
    }

    /// Every use of keys, one after the other.
    fn uses(&self) -> Vec<Result<(), HsmError>> {
        let (hsm, context) = (&self.hsm, CanonicalContext::empty());
        let (_, request) = hsm.reseal_request();
        vec![
            hsm.keys_usable(),
            hsm.encrypt(&self.open, b"p", &context).map(drop),
            hsm.generate_backing_key(self.domain, key_id(2)).map(drop),
            hsm.unseal(key_id(1), self.material, &self.token).map(drop),
            hsm.reseal_token(&self.token, key_id(1), self.material, self.domain).map(drop),
            hsm.seal_secret(self.domain, "l", b"s").map(drop),
            hsm.export_domain_key(self.domain, &request).map(drop),
        ]
    }

    fn assert_serves(&self) {
        for (number, answer) in self.uses().into_iter().enumerate() {
            assert!(answer.is_ok(), "use {number}: {:?}", answer.err());
        }
    }

    fn assert_away(&self, blob: &[u8], sealed: &SealedToken) {
        let mut answers = self.uses();
        let parsed = ParsedCiphertext::parse(blob).unwrap();
        answers.push(self.hsm.decrypt(&self.open, &parsed, &CanonicalContext::empty()).map(drop));
        answers.push(self.hsm.open_secret(sealed, "l").map(drop));
        for (number, answer) in answers.into_iter().enumerate() {
            assert!(matches!(answer, Err(HsmError::RootAway { .. })), "use {number}: {answer:?}");
        }
    }
}

#[test]
fn open_keys_are_used_through_the_grace_then_refused_then_used_again_by_themselves() {
    for fault in [RootFault::Gone, RootFault::Wrong, RootFault::Hangs, RootFault::Slow(3 * SECOND)]
    {
        let mut bench = Bench::new();
        let blob = bench.hsm.encrypt(&bench.open, b"p", &CanonicalContext::empty()).unwrap();
        let sealed = bench.hsm.seal_secret(bench.domain, "l", b"s").unwrap();
        bench.pass(60 * SECOND);
        bench.root.set(fault);
        bench.pass(3580 * SECOND);
        bench.assert_serves();
        let RootHealth::Failing { since, last_good: Some(last_good), reason } = bench.health()
        else {
            panic!("{fault:?} was not noticed")
        };
        assert!(since > last_good && since - last_good <= 8 * SECOND, "{fault:?}");
        assert!(!reason.is_empty());

        bench.pass(30 * SECOND);
        bench.assert_away(&blob, &sealed);
        let Err(HsmError::RootAway { since, grace, reason: why }) =
            bench.hsm.encrypt(&bench.open, b"p", &CanonicalContext::empty())
        else {
            panic!("not away")
        };
        assert_eq!((since, grace, why), (last_good, CONFIG.grace, reason));

        bench.root.set(RootFault::None);
        bench.pass(8 * SECOND);
        assert!(matches!(bench.health(), RootHealth::Healthy { .. }), "{fault:?}");
        bench.assert_serves();
        let parsed = ParsedCiphertext::parse(&blob).unwrap();
        bench.hsm.decrypt(&bench.open, &parsed, &CanonicalContext::empty()).unwrap();
    }
}

/// The grace counts from the last right answer, to the second, also when probes fail on and off.
#[test]
fn the_grace_counts_from_the_last_right_answer() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.root.set(RootFault::Gone);
        bench.pass(3000 * SECOND);
        bench.root.set(RootFault::None);
        bench.pass(6 * SECOND);
        bench.assert_serves();
    }
    bench.root.set(RootFault::Gone);
    bench.pass(6 * SECOND);
    let RootHealth::Failing { last_good: Some(last_good), .. } = bench.health() else { panic!() };
    let now = |bench: &Bench| keyward_hsm::RootClock::boot_now(&bench.clock);
    let left = last_good + CONFIG.grace - now(&bench);
    bench.pass(left);
    bench.assert_serves();
    bench.clock.advance(Duration::from_millis(2));
    bench.turn();
    assert!(matches!(bench.uses()[0], Err(HsmError::RootAway { .. })));
}

#[test]
fn a_root_that_is_half_a_second_slow_is_healthy_shows_it_and_slows_no_open_key() {
    let mut bench = Bench::new();
    let slow = Duration::from_millis(500);
    bench.root.set(RootFault::Slow(slow));
    for _ in 0..40 {
        bench.clock.advance(Duration::from_millis(250));
        bench.turn();
    }
    // A probe asks twice: for its health, and to unwrap.
    assert!(matches!(bench.health(), RootHealth::Healthy { answered_in, .. }
        if answered_in == 2 * slow));
    // No time passes here: what is open does not wait for the root.
    bench.assert_serves();
}

/// The first probe asks three times, and that takes longer than a probe may.
#[test]
fn a_root_that_is_slow_from_the_start_is_healthy_with_the_second_probe() {
    let clock = ManualClock::default();
    let root = faulty(1, &clock);
    let hsm = hsm_on(root.clone());
    let slow = Duration::from_millis(700);
    root.set(RootFault::Slow(slow));
    let mut watch = Box::pin(hsm.watch_roots(Arc::new(clock.clone()), CONFIG));
    let mut context = Context::from_waker(Waker::noop());
    let mut pass = |time: Duration| {
        for _ in 0..time.as_millis() / 100 {
            assert!(watch.as_mut().poll(&mut context).is_pending());
            clock.advance(Duration::from_millis(100));
        }
        assert!(watch.as_mut().poll(&mut context).is_pending());
        hsm.roots()[0].health.clone()
    };
    assert!(matches!(pass(3 * SECOND), RootHealth::Failing { last_good: None, .. }));
    assert!(matches!(pass(8 * SECOND), RootHealth::Healthy { answered_in, .. }
        if answered_in == 2 * slow));
}

#[test]
fn a_call_that_needs_a_root_that_hangs_gets_an_error_after_the_time_that_is_set() {
    let bench = Bench::new();
    let sealed = block_on(bench.hsm.generate_domain_key()).unwrap();
    bench.hsm.forget_domain_key(sealed.id);
    bench.root.set(RootFault::Hangs);
    let mut context = Context::from_waker(Waker::noop());
    let mut asked = Box::pin(bench.hsm.open_domain_key(&sealed));
    assert!(asked.as_mut().poll(&mut context).is_pending());
    bench.clock.advance(CONFIG.operation_timeout);
    let Poll::Ready(answer) = asked.as_mut().poll(&mut context) else { panic!("still waiting") };
    assert!(matches!(answer, Err(HsmError::Root(RootError::Timeout { limit }))
        if limit == CONFIG.operation_timeout));
    drop(asked);
    bench.root.set(RootFault::None);
    block_on(bench.hsm.open_domain_key(&sealed)).unwrap();
}

#[test]
fn a_copy_that_would_not_open_again_is_never_handed_out() {
    let bench = Bench::new();
    bench.root.set(RootFault::Wrong);
    let refused = block_on(bench.hsm.generate_domain_key());
    assert!(matches!(refused, Err(HsmError::Root(RootError::DoesNotUnwrap(_)))), "{refused:?}");
}

#[test]
fn a_root_that_never_answered_is_given_the_grace_from_the_start_of_the_watch() {
    let clock = ManualClock::default();
    let root = faulty(1, &clock);
    let hsm = hsm_on(root.clone());
    let domain = block_on(hsm.generate_domain_key()).unwrap().id;
    root.set(RootFault::Gone);
    let mut watch = Box::pin(hsm.watch_roots(Arc::new(clock.clone()), CONFIG));
    let mut context = Context::from_waker(Waker::noop());
    let mut seal = |time| {
        clock.advance(time);
        assert!(watch.as_mut().poll(&mut context).is_pending());
        hsm.seal_secret(domain, "l", b"s").map(drop)
    };
    assert!(seal(Duration::ZERO).is_ok());
    assert!(seal(CONFIG.grace).is_ok());
    assert!(matches!(seal(SECOND), Err(HsmError::RootAway { .. })));
    assert!(matches!(&hsm.roots()[0].health, RootHealth::Failing { last_good: None, .. }));
}

#[test]
fn the_watch_ends_with_the_hsm_and_there_is_one_only() {
    let Bench { clock, hsm, mut watch, open, .. } = Bench::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut second = Box::pin(hsm.watch_roots(Arc::new(clock.clone()), CONFIG));
    assert!(second.as_mut().poll(&mut context).is_ready());
    drop((hsm, open));
    clock.advance(CONFIG.probe_interval);
    assert!(watch.as_mut().poll(&mut context).is_ready());
}

// --- Several roots.

#[test]
fn any_root_opens_a_domain_key_and_those_that_fail_are_passed_over() {
    let clock = ManualClock::default();
    let (first, second) = (faulty(1, &clock), faulty(2, &clock));
    let hsm = hsm_on(first.clone());
    hsm.add_root(second.clone()).unwrap();
    assert_eq!(hsm.root_id(), *first.identity());
    let sealed = block_on(hsm.generate_domain_key()).unwrap();
    let holders: Vec<_> = sealed.copies.iter().map(|copy| &copy.root).collect();
    assert_eq!(holders, [first.identity(), second.identity()]);
    for (one, other) in [(&first, &second), (&second, &first)] {
        for fault in [RootFault::Gone, RootFault::Wrong] {
            one.set(fault);
            hsm.forget_domain_key(sealed.id);
            block_on(hsm.open_domain_key(&sealed)).unwrap();
            // A new key gets a copy for each root that answers.
            let new = block_on(hsm.generate_domain_key()).unwrap();
            assert_eq!(new.copies.len(), 1);
            assert_eq!(new.copies[0].root, *other.identity());
            one.set(RootFault::None);
            // And one for the other root when that is back.
            let copy = block_on(hsm.copy_for_root(new.id, one.identity())).unwrap();
            hsm.forget_domain_key(new.id);
            let late = keyward_hsm::SealedDomainKey { id: new.id, copies: vec![copy] };
            block_on(hsm.open_domain_key(&late)).unwrap();
        }
    }
    first.set(RootFault::Gone);
    second.set(RootFault::Gone);
    hsm.forget_domain_key(sealed.id);
    let refused = block_on(hsm.open_domain_key(&sealed));
    assert!(matches!(refused, Err(HsmError::Root(RootError::Away(_)))));
    assert!(block_on(hsm.generate_domain_key()).is_err());
}

#[test]
fn a_root_that_failed_its_probe_is_asked_last() {
    let clock = ManualClock::default();
    let (first, second) = (faulty(1, &clock), faulty(2, &clock));
    let hsm = hsm_on(first.clone());
    hsm.add_root(second.clone()).unwrap();
    let sealed = block_on(hsm.generate_domain_key()).unwrap();
    let watch = hsm.watch_roots(Arc::new(clock.clone()), CONFIG);
    first.set(RootFault::Gone);
    block_on(hsm.probe_roots());
    // If the first one were asked, this would wait for ever, and `block_on` panics then.
    first.set(RootFault::Hangs);
    hsm.forget_domain_key(sealed.id);
    block_on(hsm.open_domain_key(&sealed)).unwrap();
    drop(watch);
}

#[test]
fn keys_are_used_as_long_as_one_of_the_roots_answers() {
    let mut bench = Bench::new();
    let second = faulty(2, &bench.clock);
    bench.hsm.add_root(second.clone()).unwrap();
    bench.root.set(RootFault::Gone);
    bench.pass(4000 * SECOND);
    bench.assert_serves();
    second.set(RootFault::Gone);
    bench.pass(3590 * SECOND);
    bench.assert_serves();
    bench.pass(30 * SECOND);
    assert!(matches!(bench.uses()[0], Err(HsmError::RootAway { .. })));
    // A root that is added, and answers, is enough.
    bench.hsm.add_root(memory_root(3)).unwrap();
    bench.pass(6 * SECOND);
    bench.assert_serves();
}

#[test]
fn roots_are_added_once_listed_and_removed_but_for_the_last_one() {
    let hsm = hsm_on(memory_root(1));
    let first = hsm.root_id();
    let present = hsm.add_root(memory_root(1));
    assert!(matches!(present, Err(HsmError::RootPresent(id)) if id == first));
    assert!(matches!(hsm.remove_root(&first), Err(HsmError::LastRoot(id)) if id == first));
    for seed in 2..=ROOTS_MAX as u64 {
        hsm.add_root(memory_root(seed)).unwrap();
    }
    let full = hsm.add_root(memory_root(99));
    assert!(matches!(full, Err(HsmError::TooManyRoots { roots_max: ROOTS_MAX })));
    let ids: Vec<_> = hsm.roots().into_iter().map(|root| root.id).collect();
    assert_eq!(ids.len(), ROOTS_MAX);
    let (secret, request) = hsm.reseal_request();
    hsm.remove_root(&first).unwrap();
    assert!(matches!(hsm.remove_root(&first), Err(HsmError::NoSuchRoot(id)) if id == first));
    assert_eq!(hsm.root_id(), ids[1]);
    // What was fetched for the root that is gone is not sealed for another one.
    let member = hsm_on(memory_root(50));
    let domain = block_on(member.generate_domain_key()).unwrap().id;
    let message = member.export_domain_key(domain, &request).unwrap();
    let refused = block_on(hsm.import_domain_key(domain, &secret, &message));
    assert!(matches!(refused, Err(HsmError::NoSuchRoot(id)) if id == first));
}
