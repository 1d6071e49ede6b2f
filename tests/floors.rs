//! The house's floors (ARCHITECTURE.md): a crate depends on crates of lower floors only.

use std::process::Command;

/// Every crate of the workspace and its floor. A new crate has to be put somewhere, here and in
/// ARCHITECTURE.md.
const FLOORS: &[(&str, u32)] = &[
    ("keyward-model", 1),
    ("keyward-env", 1),
    ("keyward-proto", 1),
    ("keyward-hsm", 2),
    ("keyward-quota", 2),
    ("keyward-check", 3),
    ("keyward-state", 3),
    ("keyward-audit", 3),
    ("keyward-raft", 4),
    ("keyward-snapshot", 4),
    ("keyward-regions", 5),
    ("keyward-service", 6),
    ("keyward-door-grpc", 7),
    ("keyward-client", 7),
    ("keyward-load", 8),
    ("keyward", 9),
    ("vault-of-files", 8),
    // Beside the house: may look at everything, nothing looks at it.
    ("keyward-sim", 10),
];

/// Arrows that are forbidden although they point downward.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("keyward-model", "tokio", "the vocabulary does no I/O"),
    ("keyward-state", "tokio", "apply is a pure function"),
    ("keyward-state", "keyward-env", "the state reads no clock"),
    ("keyward-check", "keyward-env", "a history is checked without a clock"),
    ("keyward-check", "keyward-state", "a checker knows nothing of how a Region works"),
    ("keyward-audit", "keyward-hsm", "a record can hold nothing that is secret"),
    ("keyward-hsm", "tokio", "the cryptographic boundary does no networking"),
    ("keyward-snapshot", "tokio", "a format reads no clock and no network"),
    ("keyward-regions", "keyward-hsm", "what seals material is the service's to ask"),
    ("keyward-service", "tonic", "the operations know no wire format"),
    ("keyward-service", "keyward-proto", "the operations know no wire format"),
    ("keyward-client", "keyward-service", "the client knows nothing of the server's internals"),
    ("keyward-load", "keyward-service", "a load sees of a server what any caller sees"),
    ("vault-of-files", "keyward-service", "an application sees of a server what any caller sees"),
];

#[test]
fn crates_depend_on_lower_floors_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(packages.len(), FLOORS.len(), "a crate is missing in FLOORS");
    let floor = |name: &str| FLOORS.iter().find(|(n, _)| *n == name).map(|(_, floor)| *floor);
    let mut arrows = 0;
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let own = floor(name).unwrap_or_else(|| panic!("{name} has no floor"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let target = dependency["name"].as_str().expect("a name");
            let built = dependency["kind"].as_str() != Some("dev");
            for (from, to, why) in FORBIDDEN {
                let crossed = built && name == *from && target == *to;
                assert!(!crossed, "{name} must not depend on {target}: {why}");
            }
            // Tests may look up; the house may not.
            if let Some(below) = floor(target).filter(|_| built) {
                arrows += 1;
                assert!(below < own, "{name} (floor {own}) depends on {target} (floor {below})");
            }
        }
    }
    assert!(arrows > 10, "the dependencies were not read");
}
