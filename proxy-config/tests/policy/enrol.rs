//! The enrolment document.

use proxy_config::enrol::{Document, Name, Problem, Workload};
use proxy_config::policy::Policy;

use crate::world::parsed;

const DOCUMENT: &str = "\
workloads:
  - name: db
    cgroup: /sys/fs/cgroup/shunt/db
    netns: /run/netns/db
    policy: \"-o 5432 -b ''\"
  - name: web
    cgroup: /sys/fs/cgroup/shunt/web
    netns: /run/netns/web
    proxy_cgroup: /sys/fs/cgroup/envoy
    policy: [\"-x\", 10.0.0.0/8, --drop-invalid]
    env: { ISTIO_INBOUND_PORTS: '80' }
  - { name: plain, cgroup: /c, netns: /n, bootstrap: /etc/shunt/plain.yaml }
";

fn problems(text: &str) -> Vec<String> {
    Document::parse(text).expect_err("a problem").iter().map(Problem::to_string).collect()
}

#[test]
fn a_document_of_three() {
    let doc = Document::parse(DOCUMENT).expect("a document");
    let [db, web, plain] = &doc.workloads[..] else { panic!("three workloads") };
    assert_eq!(db.name.as_str(), "db");
    assert_eq!(db.policy, parsed("-o 5432 -b ''").policy);
    assert_eq!(web.policy, parsed("-x 10.0.0.0/8 -b 80").policy);
    assert_eq!(web.proxy_cgroup.as_deref(), Some("/sys/fs/cgroup/envoy".as_ref()));
    assert_eq!(web.notes[0].flag, "--drop-invalid");
    assert_eq!(plain.policy, Policy::default());
    assert_eq!(plain.bootstrap.as_deref(), Some("/etc/shunt/plain.yaml".as_ref()));
    assert_eq!(db.bootstrap, None);
    assert_eq!(Document::parse("workloads: []"), Ok(Document::default()));
}

#[test]
fn one_entry_inline_and_as_json() {
    let yaml = Workload::parse("{name: a, cgroup: /x, netns: /y, policy: \"-o 5432\"}");
    let json = Workload::parse(r#"{"name":"a","cgroup":"/x","netns":"/y","policy":["-o","5432"]}"#);
    assert_eq!(yaml.expect("an entry"), json.expect("an entry"));
}

#[test]
fn what_is_written_reads_back() {
    let mut doc = Document::parse(DOCUMENT).expect("a document");
    doc.workloads[1].notes.clear();
    let json = serde_json::to_string(&doc).expect("json");
    assert_eq!(Document::parse(&json), Ok(doc.clone()));
    let yaml = serde_saphyr::to_string(&doc).expect("yaml");
    assert_eq!(Document::parse(&yaml), Ok(doc));
}

#[test]
fn all_problems_with_their_places() {
    let text = "\
workloads:
  - name: ../up
    cgroup: relative
    netns: /run/../n
    policy: \"-p x -m NAT\"
  - name: twice
    cgroup: /a
    netns: /n
    env:
      ISTIO_SERVICE_CIDR: 10.0.0.1
      NONSENSE: 1
  - name: twice
    cgroup: /a
    netns: /n
    policy: -n
";
    let found = problems(text);
    for (place, reason) in [
        ("line 2 column 11, workloads[0].name", "'../up' is no name"),
        ("line 3 column 13, workloads[0].cgroup", "'relative' is not an absolute path"),
        ("line 4 column 12, workloads[0].netns", "'/run/../n' is not an absolute path"),
        ("line 5 column 13, workloads[0].policy", "-p/--envoy-port 'x'"),
        ("line 5 column 13, workloads[0].policy", "-m/--istio-inbound-interception-mode 'NAT'"),
        ("line 10 column 27, workloads[1].env.ISTIO_SERVICE_CIDR", "ISTIO_SERVICE_CIDR '10.0.0.1'"),
        ("line 11 column 17, workloads[1].env.NONSENSE", "no policy flag has this variable"),
        ("line 12 column 11, workloads[2].name", "a second workload of the name twice"),
        ("line 13 column 13, workloads[2].cgroup", "the same cgroup and netns as workload twice"),
        ("line 15 column 13, workloads[2].policy", "holds a flag about one run"),
    ] {
        let hits = found.iter().filter(|p| p.starts_with(&format!("{place}: ")) && p.contains(reason));
        assert_eq!(hits.count(), 1, "{place} {reason} in {found:#?}");
    }
    assert_eq!(found.len(), 10, "{found:#?}");
}

#[test]
fn a_bootstrap_is_a_file_of_the_daemons_own() {
    for (fields, place, reason) in [
        ("bootstrap: web.yaml", "line 1 column 45", "'web.yaml' is not an absolute path"),
        ("bootstrap: /a, proxy_cgroup: /b", "line 1 column 45", "another proxy serves this workload"),
    ] {
        let found = Workload::parse(&format!("{{name: a, cgroup: /c, netns: /n, {fields}}}")).unwrap_err();
        let [problem] = found.as_slice() else { panic!("{found:?}") };
        let text = problem.to_string();
        assert!(
            text.starts_with(&format!("{place}, workload.bootstrap: ")) && text.contains(reason),
            "{text}"
        );
    }
}

#[test]
fn unknown_fields_and_bad_syntax_have_line_and_column() {
    let found = problems("workloads:\n  - name: a\n    cgroup: /c\n    netns: /n\n    polcy: x\n");
    assert!(found[0].starts_with("line 5 column 5: ") && found[0].contains("polcy"), "{found:?}");
    let found = problems("workload: []\n");
    assert!(found[0].starts_with("line 1 column 1: ") && found[0].contains("workload"), "{found:?}");
    let found = problems("workloads:\n  - name: a\n    cgroup: /c\n");
    assert!(found[0].contains("netns"), "{found:?}");
    assert!(problems("workloads: [")[0].starts_with("line 1"));
    assert!(
        problems("workloads:\n  - {name: a, cgroup: /c, netns: /n, policy: {p: 1}}")[0]
            .contains("flags as one string")
    );
}

#[test]
fn names_are_pin_directories() {
    for good in ["a", "0", "web-1", "a_b", &"x".repeat(63)] {
        assert!(Name::new(good).is_ok(), "{good}");
    }
    for bad in ["", "-a", "_a", "A", "a.b", "..", "a/b", "a b", "é", "a\0", &"x".repeat(64)] {
        assert!(Name::new(bad).is_err(), "{bad}");
    }
    assert!(Name::new("a.b").expect_err("an error").contains("no dot"));
}
