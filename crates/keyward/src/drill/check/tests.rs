use crate::drill::definition::Drill;

const GOOD: &str = r#"
name = "leader-kill"
lasts = "10s"
topology = { regions = ["us-east-1"], nodes = 3 }
[[key]]
name = "orders"
regions = ["us-east-1"]
[[load]]
name = "app"
region = "us-east-1"
key = "orders"
rate = 50
[[step]]
at = "3s"
run = "dev fault kill us-east-1/{leader}"
[[step]]
name = "named"
at = "1s"
run = "key set-description {orders} 'two words'"
[[promise]]
name = "nobody notices"
load = "app"
outage_max = "1s"
[[principal]]
name = "clerk"
[[file]]
name = "a.tar"
bytes = 10
"#;

const ATTACHED: &str = r#"
name = "ours"
lasts = "10s"
[attach]
allow = ["key disable", "pull-plug"]
[[attach.command]]
name = "pull-plug"
run = "ssh kms-2 poweroff -f"
[[attach.region]]
name = "us-east-1"
endpoints = ["kms-1:7100", "kms-2:7100"]
ca = "ca.pem"
certificate = "app.pem"
private_key = "app.key"
operator_certificate = "op.pem"
operator_key = "op.key"
[[key]]
name = "orders"
id = "alias/rehearsal"
regions = ["us-east-1"]
[[load]]
name = "app"
region = "us-east-1"
key = "orders"
rate = 5
[[step]]
at = "1s"
run = "key disable {orders}"
[[step]]
at = "2s"
do = "pull-plug"
"#;

fn told(text: &str) -> String {
    Drill::parse("x.toml", text).map(|_| ()).expect_err("it is wrong").to_string()
}

/// Each change of a good file is told as expected.
fn all_told(good: &str, cases: &[(&str, &str, &str)]) {
    let mut wrong = String::new();
    for (from, to, expected) in cases {
        assert!(good.contains(from), "{from}");
        let told = told(&good.replacen(from, to, 1));
        if !told.contains(expected) {
            wrong += &format!("\n{from} -> {to}: {told}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_good_one_is_read_with_its_steps_in_order() {
    let drill = Drill::parse("x.toml", GOOD).unwrap_or_else(|faults| panic!("{faults}"));
    let steps = drill.steps();
    assert_eq!(steps.len(), 2);
    assert_eq!(steps[0].name.as_deref(), Some("named"));
    let drill = Drill::parse("x.toml", ATTACHED).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(drill.regions(), ["us-east-1"]);
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_what_would_do() {
    all_told(
        GOOD,
        &[
            ("rate = 50", "rates = 50", "12:1: unknown field `rates`"),
            ("rate = 50", "rate = -1", "-1 calls a second"),
            (
                "rate = 50",
                "rate = 50\n[[changes]]\nname = \"c\"\nregion = \"us-east-1\"\nkey = \"orders\"\nrate = 1\nuntil = \"1h\"",
                "18:9: 1h is after the drill's end",
            ),
            ("rate = 50", "", "9:8: a load has a rate, or a command"),
            ("rate = 50", "rate = 50\ncommand = [\"x\"]", "a program has its own rate"),
            ("rate = 50", "rate = 50\nnodes = [4]", "us-east-1 has no node 4"),
            ("rate = 50", "rate = 50\nprincipal = \"clerc\"", "did you mean clerk?"),
            ("\"3s\"", "\"30s\"", "14:6: 30s is after the drill's end"),
            ("\"3s\"", "\"soon\"", "14:6:"),
            ("us-east-1/{leader}", "us-east-1/4", "15:7: us-east-1 has no node 4"),
            ("us-east-1/{leader}", "us-east-2/1", "there is no Region us-east-2"),
            ("fault kill", "fault kil", "15:7: unrecognized subcommand 'kil'"),
            ("fault kill us-east-1/{leader}", "up", "15:7: this is no step of a drill"),
            ("{orders}", "{order}", "did you mean {orders}?"),
            (
                "run = \"dev fault kill us-east-1/{leader}\"",
                "do = \"pull-plug\"",
                "for an attached deployment",
            ),
            ("run = \"dev fault kill us-east-1/{leader}\"", "", "a step does one thing"),
            ("at = \"3s\"", "at = \"3s\"\nsave = \"/etc/x\"", "a plain name"),
            (
                "at = \"3s\"",
                "at = \"3s\"\nrefused_with = \"X\"\nfails_with = \"y\"",
                "or fails_with a text",
            ),
            ("load = \"app\"", "load = \"ap\"", "did you mean app?"),
            ("load = \"app\"", "region = \"us-east-1\"", "give load, and no region"),
            ("key = \"orders\"", "key = \"order\"", "11:7: there is no key 'order'"),
            ("nodes = 3", "nodes = 9", "9 nodes: 1 to 5"),
            ("nodes = 3", "nodes = 3, root_grace = \"0s\"", "at least 1 s"),
            ("outage_max = \"1s\"", "until = \"1s\"", "a promise has one limit"),
            (
                "outage_max = \"1s\"",
                "outage_max = \"1s\"\np99_max = \"1s\"",
                "a promise has one limit",
            ),
            (
                "outage_max = \"1s\"",
                "from = \"3s\"\nuntil = \"2s\"\noutage_max = \"1s\"",
                "it ends before it begins",
            ),
            ("outage_max = \"1s\"", "last_success_max = \"1s\"", "counted from a step's end"),
            (
                "outage_max = \"1s\"",
                "after = \"name\"\nlast_success_max = \"1s\"",
                "did you mean named?",
            ),
            (
                "load = \"app\"\noutage_max = \"1s\"",
                "region = \"us-east-1\"\nrpo_max = 0",
                "nothing is changed in that Region",
            ),
            ("lasts = \"10s\"", "lasts = \"2h\"", "3:9:"),
            ("\"a.tar\"", "\"../a.tar\"", "a plain name"),
            ("name = \"clerk\"", "name = \"orders\"", "a second name 'orders'"),
            (
                "regions = [\"us-east-1\"]\n[[load]]",
                "regions = []\n[[load]]",
                "one Region at least",
            ),
            ("topology = { regions = [\"us-east-1\"], nodes = 3 }", "", "nothing to play on"),
        ],
    );
}

#[test]
fn an_attached_deployment_allows_what_is_listed_and_nothing_else() {
    all_told(
        ATTACHED,
        &[
            (
                "run = \"key disable",
                "run = \"key enable",
                "this deployment does not allow 'key enable'",
            ),
            ("run = \"key disable", "run = \"key enable", "28:7:"),
            (
                "run = \"key disable",
                "run = \"key enable",
                "add \"key enable\" to allow in [attach]",
            ),
            ("\"key disable\", \"pull-plug\"", "\"key disable\"", "does not allow 'pull-plug'"),
            (
                "\"key disable\", \"pull-plug\"",
                "\"key disabel\", \"pull-plug\"",
                "5:10: 'key disabel' is no command",
            ),
            (
                "\"key disable\", \"pull-plug\"",
                "\"key disabel\", \"pull-plug\"",
                "did you mean key disable?",
            ),
            ("\"key disable\", \"pull-plug\"", "\"\", \"pull-plug\"", "would allow everything"),
            ("do = \"pull-plug\"", "do = \"pull-plugs\"", "did you mean pull-plug?"),
            ("do = \"pull-plug\"", "run = \"dev fault heal\"", "its owner's own commands"),
            ("id = \"alias/rehearsal\"\n", "", "makes no keys in a deployment that is not its own"),
            ("ca = \"ca.pem\"\n", "", "is not all told"),
            (
                "ca = \"ca.pem\"\n",
                "ca = \"ca.pem\"\nenv_prefix = \"X_\"\n",
                "by env_prefix or by its files",
            ),
            ("operator_key = \"op.key\"\n", "", "nobody signs the report"),
            ("rate = 5", "rate = 5\nnodes = [3]", "us-east-1 has no node 3"),
            (
                "rate = 5",
                "rate = 5\n[[changes]]\nname = \"c\"\nregion = \"us-east-1\"\nkey = \"orders\"\nrate = 1",
                "does not allow 'key enable-rotation'",
            ),
            ("[[step]]", "[[principal]]\nname = \"clerk\"\n[[step]]", "makes no principals"),
            (
                "lasts = \"10s\"",
                "lasts = \"10s\"\ntopology = { regions = [\"eu-west-1\"], nodes = 1 }",
                "a drill brings up, or attaches",
            ),
            (
                "[[step]]\nat = \"1s\"\nrun = \"key disable {orders}\"",
                "[[step]]\nat = \"1s\"\nmetric = \"x\"",
                "is not known of an attached",
            ),
        ],
    );
}
