//! Keeping the memory of the process where it is.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::error::HsmError;

/// Switches core dumps off for good (`RLIMIT_CORE` 0, soft and hard) and makes the process undumpable
/// (`PR_SET_DUMPABLE` 0), which also keeps other processes of the same user from attaching a debugger or
/// reading `/proc/PID/mem`. Call it first thing in `main`, before any key is read.
///
/// # Errors
/// [`HsmError::NotHardened`] when the system refuses either; a server should not go on then.
pub fn harden_process() -> Result<(), HsmError> {
    let failed = |what: &'static str| move |source: Errno| HsmError::NotHardened { what, source };
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(failed("setrlimit(RLIMIT_CORE, 0)"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("prctl(PR_SET_DUMPABLE, 0)"))
}
