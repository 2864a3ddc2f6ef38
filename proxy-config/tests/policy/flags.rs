//! Command lines, environments, and back to text.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

use proptest::prelude::*;
use proxy_config::policy::{
    FlagError, OutboundTrafficPolicy, Parsed, Policy, RunOptions, Select, take, words,
};

use crate::world::{cidr, ip, parsed, policies};

fn with_env(args: &str, env: &[(&str, &str)]) -> Result<Parsed, Vec<FlagError>> {
    let env: HashMap<_, _> = env.iter().copied().collect();
    Policy::parse(&words(args).expect("words"), &|name| env.get(name).map(|s| s.to_string()))
}

fn errors(args: &str) -> Vec<String> {
    let errors = Policy::parse_words(args).expect_err("an error");
    errors.iter().map(FlagError::to_string).collect()
}

#[test]
fn nothing_given_is_what_istio_init_passes() {
    let p = parsed("");
    assert_eq!(p.policy, Policy::default());
    assert_eq!(p.rest, RunOptions::default());
    assert!(p.notes.is_empty());
    let istio_init = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020";
    assert_eq!(parsed(istio_init).policy, Policy::default());
}

#[test]
fn every_spelling_of_cobra() {
    let want = parsed("-p 2000").policy;
    for text in ["-p2000", "-p=2000", "--envoy-port 2000", "--envoy-port=2000", "-p 1 -p 2000"] {
        assert_eq!(parsed(text).policy, want, "{text}");
    }
    for text in ["-n", "--dry-run", "-n=true", "--dry-run=true", "--dry-run=1", "-n -n"] {
        assert!(parsed(text).rest.dry_run, "{text}");
    }
    assert!(!parsed("--dry-run=false").rest.dry_run);
    let bundled = parsed("-np2000");
    assert!(bundled.rest.dry_run);
    assert_eq!(bundled.policy, want);
}

#[test]
fn an_empty_value_is_a_value() {
    for text in ["-b ''", "-b=", "--istio-inbound-ports=", "--istio-inbound-ports \"\"", "-b ,"] {
        assert!(parsed(text).policy.inbound_ports.is_none(), "{text}");
    }
    assert!(!parsed("-i ''").policy.captures_outbound());
    assert!(parsed("-i '' -q 80").policy.captures_outbound());
    assert!(parsed("-d ''").policy.inbound_exclude.is_empty());
}

#[test]
fn each_flag_reaches_its_field() {
    let text = "-p 1 -z 2 -e 3 -u 7,5 -g 8 -m TPROXY -b 80,443 -c net1,eth+ -i 10.0.0.0/8,fd00::/8 \
                -x 10.1.0.0/16 -q 90 -o 91,25 --redirect-dns --capture-all-dns=true --wait-for-proxy=5s \
                --outbound-traffic-policy REGISTRY_ONLY --dns-servers 8.8.8.8,::1 --dns-port 4 \
                --istio-outbound-owner-groups 5 --istio-outbound-ipv4-loopback-cidr 127.0.0.0/8";
    let p = parsed(text).policy;
    assert_eq!((p.envoy_port, p.inbound_port, p.tunnel_port, p.dns_port), (1, 2, 3, 4));
    assert_eq!((p.proxy_uids, p.proxy_gids), (vec![5, 7], vec![8]));
    assert_eq!(p.inbound_ports, Select::Only(vec![80, 443]));
    assert_eq!(p.exclude_interfaces, ["eth+", "net1"]);
    assert_eq!(p.include, Select::Only(vec![cidr("10.0.0.0/8"), cidr("fd00::/8")]));
    assert_eq!(p.exclude, [cidr("10.1.0.0/16")]);
    assert_eq!((p.outbound_ports, p.outbound_exclude), (vec![90], vec![25, 91]));
    assert!(p.redirect_dns && p.capture_all_dns);
    assert_eq!(p.wait_for_proxy, Duration::from_secs(5));
    assert_eq!(p.outbound_traffic_policy, OutboundTrafficPolicy::RegistryOnly);
    assert_eq!(p.dns_servers, [ip("8.8.8.8"), ip("::1")]);
    assert_eq!(p.owner_groups, Select::Only(vec![5]));
    assert_eq!(p.loopback, cidr("127.0.0.0/8"));
}

#[test]
fn gid_follows_uid() {
    assert_eq!(parsed("-u 5,6").policy.proxy_gids, [5, 6]);
    assert_eq!(parsed("-g '' -u 5").policy.proxy_gids, [5]);
    assert_eq!(parsed("-u ''").policy.proxy_uids, [1337]);
}

#[test]
fn wait_for_proxy_may_stand_alone() {
    assert_eq!(parsed("--wait-for-proxy").policy.wait_for_proxy, Duration::from_secs(30));
    assert_eq!(parsed("--wait-for-proxy=0").policy.wait_for_proxy, Duration::ZERO);
    let why = errors("--wait-for-proxy 5s");
    assert_eq!(why, ["5s: not a flag; a flag that may stand alone takes its value after ="]);
}

#[test]
fn run_options() {
    let rest =
        parsed("-n --skip-rule-apply --cleanup-only --iptables-trace-logging --network-namespace /n").rest;
    let netns = Some("/n".into());
    assert_eq!(rest, RunOptions { dry_run: true, skip_apply: true, cleanup_only: true, trace: true, netns });
}

#[test]
fn flags_win_over_the_environment_and_that_over_defaults() {
    let env = [
        ("ENVOY_PORT", "1000"),
        ("INBOUND_CAPTURE_PORT", "1001"),
        ("ISTIO_SERVICE_CIDR", ""),
        ("PROXY_UID", ""),
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "202"),
        ("HOST_IPV4_LOOPBACK_CIDR", "127.0.0.0/8"),
        ("SHUNT_FAIL_OPEN", "true"),
        ("FAIL_OPEN", "nonsense"),
    ];
    let p = with_env("-p 2000", &env).expect("flags").policy;
    assert_eq!((p.envoy_port, p.inbound_port), (2000, 1001));
    assert!(p.include.is_none());
    assert_eq!(p.proxy_uids, [1337]);
    assert!(p.redirect_dns && p.fail_open);
    assert_eq!(p.owner_groups_exclude, [202]);
    assert_eq!(p.loopback, cidr("127.0.0.0/8"));
}

#[test]
fn all_problems_at_once_each_with_flag_value_and_reason() {
    assert_eq!(
        errors("-p 0 --bogus -b 80,http -x 10.0.0.1 -m NAT stray -k eth0 -o"),
        [
            "--bogus: no such flag",
            "stray: not a flag; a flag that may stand alone takes its value after =",
            "-o/--istio-local-outbound-ports-exclude: needs a value",
            "-p/--envoy-port '0': not a port, 1 to 65535",
            "-m/--istio-inbound-interception-mode 'NAT': neither REDIRECT nor TPROXY",
            "-b/--istio-inbound-ports '80,http': http: not a port, 1 to 65535",
            "-x/--istio-service-exclude-cidr '10.0.0.1': 10.0.0.1: no prefix length: write 10.0.0.1/32",
            "-k/--kube-virt-interfaces 'eth0': packets forwarded for a virtual machine never reach a socket \
             hook, so its traffic would bypass the proxy",
        ]
    );
    let env = with_env("", &[("PROXY_GID", "istio-proxy")]).expect_err("an error");
    assert!(env[0].to_string().starts_with("PROXY_GID 'istio-proxy': istio-proxy: use the numeric gid"));
    assert!(errors("-x '*'")[0].contains("'*' is not a range here"));
    assert!(parsed("-k ''").notes.is_empty());
}

#[test]
fn contradictions_are_errors() {
    assert!(errors("-p 15006")[0].contains("the same port as --envoy-port"));
    assert!(errors("--dns-port 15001")[0].contains("the same port as --envoy-port"));
    assert!(errors("--fail-open --wait-for-proxy")[0].contains("contradicts --fail-open"));
}

#[test]
fn flags_without_effect_are_named_with_their_reason() {
    let notes = |text: &str| -> Vec<String> { parsed(text).notes.iter().map(|n| n.to_string()).collect() };
    assert_eq!(
        notes("--drop-invalid -t 1337"),
        [
            "-t/--istio-inbound-tproxy-mark: has no effect: no packet mark and no route table is needed: the \
             inbound hook picks the listener itself",
            "--drop-invalid: has no effect: connections are not tracked, so none of their packets is INVALID",
        ]
    );
    assert!(notes("--drop-invalid=false").is_empty());
    assert_eq!(notes("-b 80 -d 90").len(), 1);
    assert_eq!(notes("--capture-all-dns").len(), 1);
    let env = [("ISTIO_OUTBOUND_OWNER_GROUPS", "1"), ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "2")];
    let both = with_env("", &env).expect("flags");
    assert_eq!(both.policy.owner_groups, Select::Only(vec![1]));
    assert_eq!(both.notes[0].flag, "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE");
    assert_eq!(with_env("", &[("ENVOY_USER", "x")]).expect("flags").notes[0].flag, "ENVOY_USER");
}

#[test]
fn take_separates_policy_flags_from_a_command_line() {
    let args = [
        "attach",
        "-p",
        "2000",
        "--cgroup",
        "/c",
        "-b=",
        "-vn",
        "--fail-open",
        "-i",
        "-odd",
        "-o",
        "80",
        "--",
        "-p",
        "1",
    ];
    let (ours, others) = take(args.iter().map(OsString::from).collect());
    assert_eq!(ours, ["-p", "2000", "-b=", "--fail-open", "-i", "-odd", "-o", "80"]);
    assert_eq!(others, ["attach", "--cgroup", "/c", "-vn", "--", "-p", "1"]);
    let (ours, others) = take(vec!["-p".into()]);
    assert_eq!((ours, others), (vec!["-p".to_string()], vec![]));
}

#[test]
fn words_as_a_shell_splits_them() {
    let want = vec!["-i".to_string(), "10.0.0.0/8".into(), "-x".into(), String::new(), "a b'c".into()];
    assert_eq!(words("  -i 10.0.0.0/8\n-x '' \"a b'c\""), Ok(want));
    assert_eq!(words("a\\ b 'c\\d'"), Ok(vec!["a b".into(), "c\\d".into()]));
    assert!(words("-i 'open").is_err());
    assert!(words("end\\").is_err());
}

#[test]
fn a_policy_serialises_readably() {
    let json = serde_json::to_value(parsed("-b 80 -x 10.0.0.0/8 --wait-for-proxy").policy).expect("json");
    assert_eq!(json["inbound_ports"], serde_json::json!([80]));
    assert_eq!(json["include"], "*");
    assert_eq!(json["exclude"], serde_json::json!(["10.0.0.0/8"]));
    assert_eq!(json["wait_for_proxy"], "30s");
    assert_eq!(json["outbound_traffic_policy"], "ALLOW_ANY");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn a_policy_reads_back_what_it_prints(policy in policies()) {
        let text = policy.to_string();
        let back = Policy::parse_words(&text);
        prop_assert_eq!(back.map(|p| p.policy), Ok(policy), "{}", text);
    }

    /// Whatever is given: an answer, no panic, and every argument is on one side.
    #[test]
    fn any_arguments(args in prop::collection::vec("-{0,2}[pbnxi]{0,2}=?.{0,4}", 0..5)) {
        let _ = Policy::parse(&args, &|_| args.first().cloned());
        let _ = words(&args.join(" "));
        let count = args.len();
        let (ours, others) = take(args.into_iter().map(OsString::from).collect());
        prop_assert_eq!(ours.len() + others.len(), count);
    }
}
