//! PKCS#11 roots against SoftHSM 2, each test in a process and a token folder of its own (SoftHSM reads
//! where its tokens are from an environment variable, once). Skipped where SoftHSM is not installed:
//! `deploy/setup.sh` installs it.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use common::SeededEntropy;
use keyward_env::{Entropy, Env, OsEntropy, RealEnv};
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, Hsm, HsmConfig, HsmError, PinSource, Pkcs11Config, Pkcs11Error,
    Pkcs11Mechanism, Pkcs11Root, RootClock, RootError, RootKind, RootProvider, SealedDomainKey,
    SecretVec, TokenName, leave_pkcs11_modules,
};
use parking_lot::Mutex;

const CHILD: &str = "KEYWARD_TEST_SOFTHSM_FOLDER";
const STEP: &str = "KEYWARD_TEST_STEP";
const PIN: &str = "271828";
const KEY: &str = "keyward-root";

/// Real time, with some added by the test.
#[derive(Clone, Default)]
struct TestClock(Arc<Mutex<Duration>>);

impl RootClock for TestClock {
    fn boot_now(&self) -> Duration {
        RealEnv.boot_now() + *self.0.lock()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (done, end) = (Arc::new(Mutex::new((false, Waker::noop().clone()))), duration);
        let seen = Arc::clone(&done);
        std::thread::Builder::new()
            .spawn(move || {
                // Nothing is ever sent: this is how to wait without the sleep that is forbidden.
                let (_keep, never) = channel::<()>();
                let _ = never.recv_timeout(end);
                let mut done = done.lock();
                done.0 = true;
                done.1.wake_by_ref();
            })
            .unwrap();
        Box::pin(std::future::poll_fn(move |context| {
            let mut seen = seen.lock();
            seen.1 = context.waker().clone();
            if seen.0 { Poll::Ready(()) } else { Poll::Pending }
        }))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn module() -> Option<PathBuf> {
    ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

/// What a test has in its child process.
struct Bench {
    folder: PathBuf,
    clock: TestClock,
}

/// Runs `body` in a process of its own, with a fresh token. `steps` processes, one after the other.
fn with_token(test: &str, steps: u32, body: impl FnOnce(&Bench, u32)) {
    if let Some(folder) = std::env::var_os(CHILD) {
        let step = std::env::var(STEP).unwrap().parse().unwrap();
        body(&Bench { folder: folder.into(), clock: TestClock::default() }, step);
        // As every process does that is about to exit: a root that was dropped may not have left yet.
        leave_pkcs11_modules();
        return;
    }
    if module().is_none() {
        println!("SKIPPED {test}: SoftHSM 2 is not installed (see deploy/setup.sh)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tokens")).unwrap();
    let conf = folder.path().join("softhsm2.conf");
    let tokens = folder.path().join("tokens");
    fs::write(&conf, format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()))
        .unwrap();
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "keyward",
            "--so-pin",
            "31415926",
            "--pin",
            PIN,
        ])
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    for step in 1..=steps {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("SOFTHSM2_CONF", &conf)
            .env(CHILD, folder.path())
            .env(STEP, step.to_string())
            .output()
            .unwrap();
        assert!(child.status.success(), "step {step}, {}:\n{}", child.status, text(&child));
        assert!(text(&child).contains("1 passed"), "{}", text(&child));
    }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

fn bytes(text: &str) -> PinSource {
    PinSource::Bytes(SecretVec::new(text.as_bytes().to_vec()))
}

impl Bench {
    fn config(&self, pin: PinSource) -> Pkcs11Config {
        Pkcs11Config {
            module: module().unwrap(),
            token: TokenName::Label("keyward".to_owned()),
            key_label: KEY.to_owned(),
            pin,
            pin_retry: false,
            timeout: Duration::from_secs(20),
            mechanism: None,
        }
    }

    fn create(&self, config: Pkcs11Config) -> Result<Arc<Pkcs11Root>, RootError> {
        let clock = Arc::new(self.clock.clone());
        Pkcs11Root::create(config, clock, Arc::new(OsEntropy), true).map(Arc::new)
    }

    fn open(&self, config: Pkcs11Config) -> Result<Arc<Pkcs11Root>, RootError> {
        let clock = Arc::new(self.clock.clone());
        Pkcs11Root::open(config, clock, Arc::new(OsEntropy), true).map(Arc::new)
    }

    fn pkcs11_tool(&self, arguments: &[&str]) -> String {
        let module = module().unwrap();
        let tool = Command::new("pkcs11-tool")
            .args(["--module", module.to_str().unwrap(), "--token-label", "keyward"])
            .args(["--login", "--pin", PIN])
            .args(arguments)
            .output()
            .unwrap();
        assert!(tool.status.success(), "{}", text(&tool));
        text(&tool)
    }

    fn tokens(&self) -> PathBuf {
        self.folder.join("tokens")
    }

    /// The folder of the token.
    fn token(&self) -> PathBuf {
        fs::read_dir(self.tokens()).unwrap().next().unwrap().unwrap().path()
    }

    /// Past any pause after a failure.
    fn rest(&self) {
        *self.clock.0.lock() += Duration::from_secs(11);
    }
}

fn hsm(root: Arc<dyn RootProvider>) -> Arc<Hsm> {
    let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
    let entropy: Arc<dyn Entropy> = SeededEntropy::shared(1);
    Hsm::new(root, entropy, &HsmConfig { cache_max_entries: 16, arena }).unwrap()
}

fn reopens(hsm: &Hsm, sealed: &SealedDomainKey) -> Result<(), HsmError> {
    hsm.forget_domain_key(sealed.id);
    block_on(hsm.open_domain_key(sealed))
}

fn pkcs11_error<T>(outcome: Result<T, RootError>) -> Pkcs11Error {
    match outcome {
        Err(RootError::Pkcs11(error)) => error,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn the_root_key_is_made_in_the_token_and_never_leaves_it() {
    with_token("the_root_key_is_made_in_the_token_and_never_leaves_it", 2, |bench, step| {
        let kept = bench.folder.join("sealed");
        if step == 1 {
            let missing = bench.open(bench.config(bytes(PIN)));
            assert!(
                matches!(pkcs11_error(missing), Pkcs11Error::KeyMissing(label) if label == KEY)
            );
            let root = bench.create(bench.config(bytes(PIN))).unwrap();
            assert_eq!(root.kind(), RootKind::Pkcs11);
            block_on(root.health()).unwrap();
            let exists = bench.create(bench.config(bytes(PIN)));
            assert!(matches!(pkcs11_error(exists), Pkcs11Error::KeyExists(label) if label == KEY));

            let listed = bench.pkcs11_tool(&["--list-objects", "--type", "secrkey"]);
            let id = root.identity().as_str().strip_prefix("pkcs11:").unwrap();
            for expected in [
                "AES length 32",
                "label:      keyward-root",
                &format!("ID:         {id}"),
                "Usage:      encrypt, decrypt\n",
                "Access:     sensitive, always sensitive, never extractable, local",
            ] {
                assert!(listed.contains(expected), "{expected:?} is missing in\n{listed}");
            }
            assert_eq!(listed.matches("Secret Key Object").count(), 1);

            let hsm = hsm(root);
            let sealed = block_on(hsm.generate_domain_key()).unwrap();
            assert_eq!(sealed.copies[0].sealed[..2], [1, 1]);
            reopens(&hsm, &sealed).unwrap();
            fs::write(kept, postcard::to_allocvec(&sealed).unwrap()).unwrap();
        } else {
            let root = bench.open(bench.config(bytes(PIN))).unwrap();
            let sealed: SealedDomainKey = postcard::from_bytes(&fs::read(kept).unwrap()).unwrap();
            assert_eq!(sealed.copies[0].root, *root.identity());
            reopens(&hsm(root), &sealed).unwrap();
        }
    });
}

/// With each mechanism: what was altered, or belongs to another id or root, does not open, and says so.
#[test]
fn altered_and_foreign_copies_are_refused_with_every_mechanism() {
    with_token("altered_and_foreign_copies_are_refused_with_every_mechanism", 1, |bench, _| {
        for (label, mechanism, code) in [
            ("gcm", None, 1),
            ("wrap", Some(Pkcs11Mechanism::AesKeyWrap), 2),
            ("pad", Some(Pkcs11Mechanism::AesKeyWrapPad), 3),
        ] {
            let config = |label: &str| {
                let key_label = label.to_owned();
                Pkcs11Config { key_label, mechanism, ..bench.config(bytes(PIN)) }
            };
            let root = bench.create(config(label)).unwrap();
            let other = bench.create(config(&format!("{label}-other"))).unwrap();
            assert_ne!(root.identity(), other.identity());
            let hsm = hsm(root.clone());
            let sealed = block_on(hsm.generate_domain_key()).unwrap();
            assert_eq!(sealed.copies[0].sealed[..2], [1, code]);
            reopens(&hsm, &sealed).unwrap();

            let refused = |sealed: &SealedDomainKey| {
                let outcome = reopens(&hsm, sealed);
                assert!(
                    matches!(outcome, Err(HsmError::Root(RootError::DoesNotUnwrap(_)))),
                    "{label}: {outcome:?}"
                );
            };
            for at in 0..sealed.copies[0].sealed.len() {
                let mut altered = sealed.clone();
                altered.copies[0].sealed[at] ^= 1;
                refused(&altered);
            }
            for len in [0, 1, 2, 3, 14, 15, 40] {
                let mut cut = sealed.clone();
                cut.copies[0].sealed.truncate(len);
                refused(&cut);
            }
            let mut renamed = sealed.clone();
            renamed.id = keyward_model::DomainKeyId::new([9; 16]);
            refused(&renamed);
            let mut foreign = block_on(self::hsm(other).generate_domain_key()).unwrap();
            foreign.copies[0].root = root.identity().clone();
            refused(&foreign);
            reopens(&hsm, &sealed).unwrap();

            let listed = bench.pkcs11_tool(&["--list-objects", "--type", "secrkey"]);
            assert_eq!(
                listed.matches("Secret Key Object").count(),
                2 * usize::from(code),
                "leaked"
            );
            let usage = if code == 1 { "encrypt, decrypt\n" } else { "wrap, unwrap\n" };
            assert!(listed.contains(usage), "{listed}");
        }
    });
}

#[test]
fn a_wrong_pin_is_tried_once_and_the_right_one_works_afterwards() {
    with_token("a_wrong_pin_is_tried_once_and_the_right_one_works_afterwards", 1, |bench, _| {
        for round in 0..10 {
            let refused = pkcs11_error(bench.open(bench.config(bytes("161803"))));
            assert!(matches!(refused, Pkcs11Error::PinRefused), "{round}: {refused}");
            assert!(!refused.to_string().contains("161803"));
        }
        bench.create(bench.config(bytes(PIN))).unwrap();
    });
}

/// The token's own count is what a process finds that knows nothing of an earlier one.
#[test]
fn after_a_restart_no_pin_is_tried_while_the_count_is_low_but_on_the_operators_word() {
    let test = "after_a_restart_no_pin_is_tried_while_the_count_is_low_but_on_the_operators_word";
    with_token(test, 4, |bench, step| match step {
        1 => {
            let refused = pkcs11_error(bench.open(bench.config(bytes("161803"))));
            assert!(matches!(refused, Pkcs11Error::PinRefused), "{refused}");
        }
        2 => {
            for pin in ["161803", PIN] {
                let refused = pkcs11_error(bench.open(bench.config(bytes(pin))));
                assert!(matches!(refused, Pkcs11Error::PinCountLow), "{refused}");
            }
        }
        3 => {
            let config = Pkcs11Config { pin_retry: true, ..bench.config(bytes(PIN)) };
            bench.create(config).unwrap();
        }
        _ => drop(bench.open(bench.config(bytes(PIN))).unwrap()),
    });
}

#[test]
fn a_pin_that_is_corrected_in_its_file_is_tried() {
    with_token("a_pin_that_is_corrected_in_its_file_is_tried", 1, |bench, _| {
        let path = bench.folder.join("pin");
        fs::write(&path, "161803\n").unwrap();
        let config = || bench.config(PinSource::File(path.clone()));
        for _ in 0..3 {
            assert!(matches!(pkcs11_error(bench.create(config())), Pkcs11Error::PinRefused));
        }
        fs::write(&path, format!("{PIN}\n")).unwrap();
        bench.create(config()).unwrap();
    });
}

#[test]
fn a_token_that_goes_away_fails_with_an_error_and_works_by_itself_when_it_is_back() {
    let test = "a_token_that_goes_away_fails_with_an_error_and_works_by_itself_when_it_is_back";
    with_token(test, 1, |bench, _| {
        let root = bench.create(bench.config(bytes(PIN))).unwrap();
        let hsm = hsm(root.clone());
        let sealed = block_on(hsm.generate_domain_key()).unwrap();
        let (here, away) = (bench.token(), bench.folder.join("away"));
        for _ in 0..2 {
            fs::rename(&here, &away).unwrap();
            for _ in 0..5 {
                assert!(block_on(root.health()).is_err());
                assert!(matches!(reopens(&hsm, &sealed), Err(HsmError::Root(_))));
            }
            // It is let rest, and says until when.
            let resting = pkcs11_error(block_on(root.health()));
            assert!(
                matches!(&resting, Pkcs11Error::Resting { wait, .. }
                if *wait <= Duration::from_secs(10)),
                "{resting}"
            );
            fs::rename(&away, &here).unwrap();
            bench.rest();
            block_on(root.health()).unwrap();
            reopens(&hsm, &sealed).unwrap();
        }
    });
}

/// Another root in the same module loses its sessions when the module is restarted for this one.
#[test]
fn roots_that_share_a_module_do_not_disturb_each_other() {
    with_token("roots_that_share_a_module_do_not_disturb_each_other", 1, |bench, _| {
        let roots = ["a", "b"].map(|label| {
            let key_label = label.to_owned();
            bench.create(Pkcs11Config { key_label, ..bench.config(bytes(PIN)) }).unwrap()
        });
        let nodes = roots.clone().map(|root| hsm(root));
        let keys = nodes.each_ref().map(|hsm| block_on(hsm.generate_domain_key()).unwrap());
        let (here, away) = (bench.token(), bench.folder.join("away"));
        for broken in [0, 1, 0] {
            fs::rename(&here, &away).unwrap();
            assert!(block_on(roots[broken].health()).is_err());
            fs::rename(&away, &here).unwrap();
            bench.rest();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    for (hsm, sealed) in nodes.iter().zip(&keys) {
                        scope.spawn(|| {
                            (0..20).for_each(|_| {
                                block_on(hsm.open_domain_key(sealed)).unwrap();
                                hsm.forget_domain_key(sealed.id);
                            })
                        });
                    }
                }
            });
        }
    });
}

#[test]
fn a_key_that_is_deleted_or_replaced_is_noticed() {
    with_token("a_key_that_is_deleted_or_replaced_is_noticed", 1, |bench, _| {
        let root = bench.create(bench.config(bytes(PIN))).unwrap();
        block_on(root.health()).unwrap();
        bench.pkcs11_tool(&["--delete-object", "--type", "secrkey", "--label", KEY]);
        assert!(block_on(root.health()).is_err());
        bench.rest();
        let replaced = bench.create(bench.config(bytes(PIN))).unwrap();
        assert_ne!(replaced.identity(), root.identity());
        bench.rest();
        let other = pkcs11_error(block_on(root.health()));
        assert!(matches!(other, Pkcs11Error::OtherKey { expected, found, .. }
            if expected == *root.identity() && found == *replaced.identity()));
    });
}

#[test]
fn keys_that_must_not_be_a_root_are_refused() {
    with_token("keys_that_must_not_be_a_root_are_refused", 1, |bench, _| {
        let generate = |label: &str, kind: &str, more: &[&str]| {
            let base = ["--keygen", "--key-type", kind, "--label", label];
            bench.pkcs11_tool(&[&base, more].concat());
        };
        let id = "000102030405060708090a0b0c0d0e0f";
        generate("short", "AES:16", &["--id", id, "--sensitive"]);
        generate("bare", "AES:32", &["--sensitive"]);
        generate("open", "AES:32", &["--id", id, "--extractable", "--sensitive"]);
        generate("twice", "AES:32", &["--id", id, "--sensitive"]);
        generate("twice", "AES:32", &["--id", id, "--sensitive"]);
        generate("good", "AES:32", &["--id", id, "--sensitive", "--usage-decrypt"]);
        let open = |label: &str| {
            let key_label = label.to_owned();
            bench.open(Pkcs11Config { key_label, ..bench.config(bytes(PIN)) })
        };
        for label in ["short", "bare", "open"] {
            let refused = pkcs11_error(open(label));
            assert!(matches!(refused, Pkcs11Error::KeyUnfit { .. }), "{label}: {refused}");
        }
        assert!(matches!(pkcs11_error(open("twice")), Pkcs11Error::KeyAmbiguous(_)));
        assert_eq!(open("good").unwrap().identity().as_str(), format!("pkcs11:{id}"));
    });
}

#[test]
fn a_token_or_module_that_is_not_there_is_named() {
    with_token("a_token_or_module_that_is_not_there_is_named", 1, |bench, _| {
        let token = TokenName::Serial("0000".to_owned());
        let missing = bench.open(Pkcs11Config { token, ..bench.config(bytes(PIN)) });
        assert!(matches!(pkcs11_error(missing), Pkcs11Error::TokenMissing(text)
            if text.contains("0000")));
        for path in ["/nonexistent.so", "/etc/hostname", "/lib/x86_64-linux-gnu/libm.so.6"] {
            let module = PathBuf::from(path);
            let refused = bench.open(Pkcs11Config { module, ..bench.config(bytes(PIN)) });
            let error = pkcs11_error(refused);
            assert!(
                matches!(&error, Pkcs11Error::Module { module, .. }
                if module == Path::new(path)),
                "{error}"
            );
        }
    });
}

/// A lock that another process holds on the token's files makes SoftHSM wait inside its calls.
#[test]
fn a_token_that_hangs_costs_each_call_its_time_and_no_more_threads() {
    let test = "a_token_that_hangs_costs_each_call_its_time_and_no_more_threads";
    with_token(test, 1, |bench, _| {
        let timeout = Duration::from_secs(2);
        let root = bench.create(bench.config(bytes(PIN))).unwrap();
        drop(root);
        let root = bench.open(Pkcs11Config { timeout, ..bench.config(bytes(PIN)) }).unwrap();
        block_on(root.health()).unwrap();
        let (mut holder, _lines) = hold_locks(&bench.token());
        let threads = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
            let names = tasks.filter_map(|task| fs::read_to_string(task.join("comm")).ok());
            names.filter(|name| name.starts_with("keyward-pkcs11")).count()
        };
        // Those of the root that was dropped end by themselves.
        let mut tries = 0;
        while threads() != 2 {
            tries += 1;
            assert!(tries < 1000, "{} threads", threads());
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let mut timed_out = 0;
        let calls: Vec<_> = (0..40).map(|_| Box::pin(root.health())).collect();
        let answers = block_on(all(calls));
        for answer in answers {
            match answer {
                Err(RootError::Timeout { limit }) if limit == timeout => timed_out += 1,
                Err(RootError::Pkcs11(Pkcs11Error::Busy { queued: 16 })) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!((16..=18).contains(&timed_out), "{timed_out} calls waited");
        assert_eq!(threads(), 2, "threads were started");
        holder.kill().unwrap();
        holder.wait().unwrap();
        // What was given up is passed over; the next call is answered.
        let mut tries = 0;
        while let Err(error) = block_on(root.health()) {
            tries += 1;
            assert!(tries < 1000, "the root does not recover: {error}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    });
}

async fn all<T>(mut futures: Vec<Pin<Box<impl Future<Output = T>>>>) -> Vec<T> {
    let mut answers: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, answer) in futures.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *answer = Some(value);
            }
        }
        if answers.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.into_iter().flatten().collect()
}

const HOLD: &str = "KEYWARD_TEST_HOLD_LOCKS";

fn hold_locks(folder: &Path) -> (Child, impl Sized + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_locks_when_it_is_told_to", "--nocapture"])
        .env(HOLD, folder)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("LOCKED")), "no locks");
    (child, lines)
}

/// No test: the other process of the one above.
#[test]
fn holds_locks_when_it_is_told_to() {
    let Some(folder) = std::env::var_os(HOLD) else { return };
    let files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let file = fs::File::options().read(true).write(true).open(path).unwrap();
            let operation = rustix::fs::FlockOperation::LockExclusive;
            rustix::fs::fcntl_lock(&file, operation).unwrap();
            file
        })
        .collect();
    println!("\nLOCKED {}", files.len());
    // Until it is killed, or half a minute.
    let (_keep, never) = channel::<()>();
    let _ = never.recv_timeout(Duration::from_secs(30));
}
