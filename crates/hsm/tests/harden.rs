//! `harden_process`, in a process of its own: it cannot be undone.

use rustix::process::{DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit};

#[test]
fn a_hardened_process_dumps_no_core_and_cannot_be_attached_to() {
    keyward_hsm::harden_process().expect("hardening");
    assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    keyward_hsm::harden_process().expect("hardening twice is no error");
}
