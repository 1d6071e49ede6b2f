//! The program says what is missing. What it does with a Region is shown by `deploy/drills/vault-of-files.toml`.

use std::process::Command;

#[test]
fn without_a_region_it_says_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = Command::new(env!("CARGO_BIN_EXE_vault-of-files"))
        .args(["get", "a", "b"])
        .env_clear()
        .current_dir(&folder)
        .output()
        .expect("it runs");
    assert!(!told.status.success());
    let told = String::from_utf8_lossy(&told.stderr);
    assert!(told.contains("KEYWARD_ENDPOINTS is not set"), "{told}");
}
