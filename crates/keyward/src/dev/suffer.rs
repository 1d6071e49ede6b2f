//! What a node of `dev up --regions` suffers by itself: its wall clock is put wrong as a file says, which the supervisor
//! writes (`keyward dev fault skew`). Its full disk is a limit that the kernel holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyward_env::{Env, RealEnv, skew_wall_clock};

/// Names the file. Only the supervisor of `dev up --regions` sets it.
pub const SKEW_FILE: &str = "KEYWARD_DEV_SKEW_FILE";
/// Between looks at it.
const LOOK: Duration = Duration::from_millis(100);

/// Milliseconds that are asked for; none where there is no such file.
fn asked(file: &Path) -> i64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Begins, in a node that is a rehearsal's.
pub fn begin() {
    let Some(file) = std::env::var_os(SKEW_FILE).map(PathBuf::from) else { return };
    skew_wall_clock(asked(&file));
    RealEnv.spawn(async move {
        loop {
            RealEnv.sleep(LOOK).await;
            let file = file.clone();
            skew_wall_clock(RealEnv.blocking(move || asked(&file)).await);
        }
    });
}
