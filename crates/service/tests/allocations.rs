//! How often a call allocates on its way through the stack, with everything on: a trail on a disk, two quotas, leases,
//! permissions. `docs/performance.md` says what each of them is. A number that grows is found here.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use keyward_audit::{RealFiles, Trail, TrailConfig};
use keyward_env::{Env, OsEntropy, RealEnv};
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, Hsm, HsmConfig, MemoryRoot, RootId, RootProvider, SecretVec,
};
use keyward_model::{ErrorCode, KmsError, Region, Timestamp};
use keyward_quota::{Covers, Limit, Quota, QuotaName, Scope, Window};
use keyward_raft::{BasicNode, BoxFuture, Node, NodeConfig, Transport, TransportError};
use keyward_service::api::{CreateKey, Decrypt, Encrypt, GenerateDataKey, Secret};
use keyward_service::{
    Audit, Authority, Call, Caller, FoundingRequest, Handler, Issuer, KeptRoot, Kms, Origin,
    Request, Response, RootKeeper, Stack, Trace, fingerprint, stack,
};
use keyward_state::{MemStore, Purpose, Timers};

const REGION: &str = "eu-west-1";
const OPERATOR: &str = "arn:aws:iam::111122223333:user/operator";
const USER: &str = "arn:aws:iam::111122223333:user/app";
const BUSY: &str = "arn:aws:iam::111122223333:user/busy";
const PATIENCE: Duration = Duration::from_secs(10);
/// Calls of each kind that are counted, at least.
const CALLS: usize = 200;

/// The system's allocator, and how often each thread has asked it for memory.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has nothing to count any more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

#[expect(
    unsafe_code,
    reason = "an allocator is an unsafe trait; this one hands all on to the system's"
)]
// SAFETY: every call goes to the system's allocator as it came; counting touches a thread's own number and allocates
// nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct NoOthers;

impl Transport for NoOthers {
    fn call(
        &self,
        node: u64,
        _: &BasicNode,
        _: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let reason = "there is one node".to_owned();
        Box::pin(std::future::ready(Err(TransportError::Unreachable { node, reason })))
    }
}

struct OneRoot(RootId);

impl OneRoot {
    fn refuse<T: Send + 'static>() -> BoxFuture<'static, Result<T, String>> {
        Box::pin(std::future::ready(Err("this root is not changed".to_owned())))
    }
}

impl RootKeeper for OneRoot {
    fn kept(&self) -> Vec<KeptRoot> {
        vec![KeptRoot { id: self.0.clone(), place: "memory".to_owned() }]
    }

    fn add(&self, _: String) -> BoxFuture<'_, Result<Arc<dyn RootProvider>, String>> {
        Self::refuse()
    }

    fn forget(&self, _: RootId) -> BoxFuture<'_, Result<(), String>> {
        Self::refuse()
    }

    fn offer(&self, _: RootId, _: SecretVec) -> BoxFuture<'_, Result<(u8, u8), String>> {
        Self::refuse()
    }

    fn next_share(&self, _: RootId) -> BoxFuture<'_, Result<(u8, String, u8), String>> {
        Self::refuse()
    }
}

fn caller(arn: &str, issuer: Issuer) -> Arc<Caller> {
    let not_after = Timestamp(RealEnv.wall_now_ms()).plus_days(1);
    Arc::new(Caller::new(arn.parse().unwrap(), vec![1; 16], not_after, issuer))
}

/// A Region of one node with a trail in that folder, two quotas on each call, and two users.
async fn region_of_one(folder: &std::path::Path) -> Arc<Kms<RealEnv>> {
    let region: Region = REGION.parse().unwrap();
    let root = MemoryRoot::new(b"allocations", RealEnv.entropy(), true).unwrap();
    let kept = Arc::new(OneRoot(root.identity().clone()));
    let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
    let config = HsmConfig { cache_max_entries: 16, arena };
    let hsm = Hsm::new(Arc::new(root), RealEnv.entropy(), &config).unwrap();
    let config = NodeConfig::new(1, "127.0.0.1:1".to_owned(), Timers::DEFAULT);
    let (log, state) = (Arc::new(MemStore::default()), Arc::new(MemStore::default()));
    let node = Node::start(config, RealEnv, log, state, Arc::new(NoOthers)).await.unwrap();
    let config = TrailConfig::new(folder.to_owned(), 1, region.clone());
    let (trail, _) = Trail::open(&RealEnv, Arc::new(RealFiles), config).unwrap();
    let audit = Audit::new(Some(trail), region.clone(), *b"allocate");
    let kms = Kms::new(node, hsm, kept, audit, true);
    kms.start();
    let now = Timestamp(RealEnv.wall_now_ms());
    let authority = Authority::generate(REGION, &OsEntropy, now).unwrap();
    let operator = caller(OPERATOR, Issuer::Own);
    let request = FoundingRequest {
        region,
        timers: Timers::DEFAULT,
        purpose: Purpose::Dev,
        operator: operator.principal.clone(),
        ca_certificate: authority.certificate().to_vec(),
        ca_private_key: authority.private_key(),
        outside_authorities: vec![authority.certificate().to_vec()],
    };
    kms.found(&operator, request, PATIENCE).await.unwrap();
    let kinds = ["administrator".to_owned(), "user".to_owned()];
    for user in [USER, BUSY] {
        kms.create_principal(&operator, user, &kinds, None, None, PATIENCE).await.unwrap();
    }
    let principal = |arn: &str| Scope::Principal(arn.parse().unwrap());
    let account = Scope::Account("111122223333".parse().unwrap());
    for (scope, limit) in
        [(account, 10_000_000), (principal(USER), 10_000_000), (principal(BUSY), 30)]
    {
        let quota = Quota {
            name: QuotaName { scope, covers: Covers::All },
            limits: vec![Limit::new(Window::Second, limit, None)],
            profile: None,
            revision: 0,
        };
        kms.put_quota(&operator, quota, PATIENCE).await.unwrap();
    }
    kms
}

/// Calls as a connection makes them.
struct Calls {
    stack: Stack<RealEnv>,
    origin: Origin,
    caller: Arc<Caller>,
}

impl Calls {
    fn new(kms: &Arc<Kms<RealEnv>>, arn: &str) -> Self {
        let suite = "TLS_AES_256_GCM_SHA384".to_owned();
        let origin = Origin::new([127, 0, 0, 1].into(), "TLSv1.3", suite);
        let facts = kms.node().state().region.clone().expect("founded");
        let caller = caller(arn, Issuer::Outside(fingerprint(&facts.ca_certificate)));
        Self { stack: stack(Arc::clone(kms)), origin, caller }
    }

    fn call(&self, request: Request) -> Call {
        let client = self.origin.client(Some("keyward-client/0.1 tonic/0.14"));
        let mut call = Call::new(Arc::clone(&self.caller), request, PATIENCE);
        call.trace = Trace { client: Some(client), request_id: [7; 16] };
        call
    }

    async fn answer(&self, request: Request) -> Result<Response, KmsError> {
        let call = self.call(request);
        self.stack.handle(call).await
    }

    /// How often a call allocates, of many that end as expected (a quota may admit one meanwhile): the usual number,
    /// and the highest. All layers and the answer count, not the request's texts and bytes, which a door has made. No
    /// call waits for anything, so nothing else is counted.
    fn counts(
        &self,
        request: impl Fn() -> Request,
        expected: impl Fn(&Result<Response, KmsError>) -> bool,
    ) -> (u64, u64) {
        let mut counts = Vec::new();
        for _ in 0..2 * CALLS {
            let request = request();
            let before = ASKED.get();
            let call = self.call(request);
            let served = pin!(self.stack.handle(call));
            let Poll::Ready(answer) = served.poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("a call waits for something")
            };
            let asked = ASKED.get() - before;
            if expected(&answer) {
                counts.push(asked);
            }
        }
        assert!(counts.len() >= CALLS, "only {} calls ended as expected", counts.len());
        counts.sort_unstable();
        (counts[counts.len() / 2], counts[counts.len() - 1])
    }
}

#[tokio::test]
async fn a_call_allocates_what_its_answer_is_made_of_and_two_more() {
    let folder = tempfile::tempdir().unwrap();
    let kms = region_of_one(folder.path()).await;
    let user = Calls::new(&kms, USER);
    let Response::Key(key) = user.answer(CreateKey::default().into()).await.unwrap() else {
        panic!("an answer of another operation")
    };
    let encrypt = || {
        let plaintext = Secret::new(vec![7; 32]);
        Encrypt { key_id: key.key_id.clone(), plaintext, ..Encrypt::default() }.into()
    };
    let data_key = || {
        let key_spec = Some("AES_256".to_owned());
        GenerateDataKey { key_id: key.arn.clone(), key_spec, ..GenerateDataKey::default() }.into()
    };
    let sealed = user.answer(encrypt()).await.unwrap();
    let Response::Encrypted { ciphertext_blob, .. } = sealed else {
        panic!("an answer of another operation")
    };
    let decrypt = || {
        let ciphertext_blob = ciphertext_blob.clone();
        Decrypt { ciphertext_blob, ..Decrypt::default() }.into()
    };
    for request in [decrypt(), data_key()] {
        user.answer(request).await.unwrap();
    }
    let busy = Calls::new(&kms, BUSY);
    while busy.answer(encrypt()).await.is_ok() {}

    let served = |answer: &Result<Response, KmsError>| answer.is_ok();
    let refused = |answer: &Result<Response, KmsError>| matches!(answer, Err(refusal) if refusal.code == ErrorCode::ThrottlingException);
    let refusals = busy.counts(encrypt, refused);
    let counts = [
        ("Encrypt", user.counts(encrypt, served)),
        ("Decrypt", user.counts(decrypt, served)),
        ("GenerateDataKey", user.counts(data_key, served)),
        // One that says another time to try again than the last one did is written down.
        ("a refusal for a quota", (refusals.0, refusals.1.max(3))),
    ];
    let limits = [
        ("Encrypt", (4, 4)),
        ("Decrypt", (5, 5)),
        ("GenerateDataKey", (6, 6)),
        ("a refusal for a quota", (2, 3)),
    ];
    assert_eq!(counts, limits);
}
