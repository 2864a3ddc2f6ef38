//! Texts that are made to hurt: each ends in an error, soon.

use proptest::prelude::*;
use proxy_config::load::{self, Options};

use super::{BOOTSTRAP, CLUSTER, errors, read};

#[test]
fn deep_nesting_is_refused() {
    const DEPTH: usize = 100_000;
    let deep = "nested deeper than 200 levels";
    let cases = ["[".repeat(DEPTH), "{\"a\":".repeat(DEPTH), "{a: ".repeat(DEPTH), "- ".repeat(DEPTH)];
    for text in cases {
        let errors = errors(BOOTSTRAP, &text);
        assert!(errors.len() == 1 && errors[0].ends_with(deep), "{errors:?}");
    }
    // As deep as a document may be, and deeper than protobuf may.
    let metadata = format!("node: {{metadata: {{a: {}{}}}}}", "[".repeat(190), "]".repeat(190));
    let errors = load::bootstrap(&metadata, None, Options::default()).unwrap_err();
    assert!(errors[0].to_string().contains("recursion limit"), "{errors:?}");
}

#[test]
fn alias_bombs_are_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let said = errors(BOOTSTRAP, &text);
    assert!(said[0].ends_with("aliases make this document too large"), "{said:?}");
    // Many times one long scalar.
    let long = "x".repeat(1_000_000);
    let aliases = vec!["*a"; 100_000].join(", ");
    let said = errors(BOOTSTRAP, &format!("a: &a {long}\nb: [{aliases}]"));
    assert!(said[0].ends_with("aliases make this document too large"), "{said:?}");
    // By depth.
    let mut text = String::from("a0: &a0 []\n");
    for level in 1..300 {
        text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(errors(BOOTSTRAP, &text)[0].ends_with("nested deeper than 200 levels"));
}

#[test]
fn long_lines_are_read() {
    let long = "x".repeat(1_000_000);
    assert_eq!(read(CLUSTER, &format!("name: {long}")).unwrap()["name"], long);
    let said = errors(CLUSTER, &format!("{{\"name\": \"é{long}\", \"{long}\": 1, \"nam\": 1}}"));
    assert_eq!(said.len(), 2);
    assert!(said[1].starts_with("line 1:2000022: unknown field \"nam\""), "{}", said[1]);
    // Keys that are compared with each other.
    let keys: Vec<_> = (0..50_000).map(|n| format!("k{n}: 1")).collect();
    assert_eq!(errors(CLUSTER, &keys.join("\n")).len(), 1001);
}

#[test]
fn a_bom_is_no_content() {
    for text in ["\u{feff}name: a", "\u{feff}{\"name\": \"a\"}", "\u{feff}# x\nname: a"] {
        assert_eq!(read(CLUSTER, text).unwrap()["name"], "a", "{text:?}");
    }
}

/// Pieces of configurations, put together at random.
fn mixture() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("name: a\n"),
        Just("static_resources:\n"),
        Just("  clusters:\n"),
        Just("  - "),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(", "),
        Just(": "),
        Just("\""),
        Just("'"),
        Just("&a "),
        Just("*a"),
        Just("<<: "),
        Just("\n"),
        Just("  "),
        Just("\t"),
        Just("|"),
        Just(">"),
        Just("!!str "),
        Just("? "),
        Just("- "),
        Just("#"),
        Just("'@type': type.googleapis.com/udpa.type.v1.TypedStruct\n"),
        Just("typed_config: "),
        Just("\\u"),
        Just("%"),
        Just("node: {metadata: "),
        Just("0x1"),
        Just("~"),
        Just("é"),
        Just("\u{feff}"),
        Just("---\n"),
        Just("..."),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_text_is_a_panic(text in prop_oneof![mixture(), any::<String>()]) {
        let _ = load::bootstrap(&text, None, Options::default());
        let _ = load::bootstrap("{}", Some(&text), Options { strict: true, allow_unknown_fields: true });
        let _ = proxy_config::decode::resources(&text, Options::default());
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = proxy_config::decode::text(&bytes);
        let _ = proxy_config::decode::resources_binary(&bytes);
        for name in [BOOTSTRAP, "google.protobuf.Any", "google.protobuf.Struct", "google.protobuf.Timestamp"] {
            let _ = proxy_config::dump::json(name, &bytes);
        }
        let _ = proxy_config::decode::any::unpack("x/udpa.type.v1.TypedStruct", &bytes);
    }
}
