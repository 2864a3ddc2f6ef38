use super::*;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

fn read(kind: Kind, text: &str) -> Result<FileResponse, Vec<String>> {
    Reader::new(kind).read(text).map_err(|found| found.iter().map(ToString::to_string).collect())
}

#[test]
fn resources_come_with_their_names_in_their_order() {
    let text = format!(
        "version_info: '7'\nresources:\n- {{'@type': {CLUSTER}, name: b, connect_timeout: 1s}}\n- name: a\n  '@type': {CLUSTER}\n"
    );
    let read = read(Kind::Cluster, &text).unwrap();
    let names: Vec<_> = read.resources.iter().map(|resource| &*resource.name).collect();
    assert_eq!((&*read.version, names), ("7", vec!["b", "a"]));
    assert!(
        read.resources.iter().all(|resource| &*resource.version == "7" && &*resource.type_url == CLUSTER)
    );
    assert_eq!(read.warnings, []);
}

#[test]
fn every_kind_has_its_name_in_its_first_field() {
    for kind in Kind::ALL {
        let field = if kind == Kind::Endpoints { "cluster_name" } else { "name" };
        let text = format!("resources: [{{'@type': {}, {field}: x}}]", kind.type_url());
        assert_eq!(&*read(kind, &text).unwrap().resources[0].name, "x");
    }
}

#[test]
fn what_is_around_a_resource_is_opened() {
    let inner = format!("{{'@type': {CLUSTER}, name: inside}}");
    let wrapper = "'@type': type.googleapis.com/envoy.service.discovery.v3.Resource";
    let typed = "'@type': type.googleapis.com/xds.type.v3.TypedStruct";
    let text = format!(
        "version_info: '1'\nresources:\n- {{{wrapper}, name: outside, version: '9', ttl: 2.5s, resource: {inner}}}\n\
         - {{{typed}, type_url: {CLUSTER}, value: {{name: struct}}}}\n- {{{wrapper}, resource: {inner}}}\n"
    );
    let read = read(Kind::Cluster, &text).unwrap();
    let names: Vec<_> = read.resources.iter().map(|resource| &*resource.name).collect();
    assert_eq!(names, ["outside", "struct", "inside"]);
    assert_eq!(read.resources[0].ttl, Some(std::time::Duration::from_millis(2500)));
    assert_eq!(&*read.resources[0].version, "1", "as in Envoy");
    assert_eq!(read.resources[0].value, read.resources[2].value);
}

#[test]
fn what_cannot_be_used_is_named_with_its_place() {
    let cases = [
        (
            format!("resources:\n- {{'@type': {CLUSTER}, name: a}}\n"),
            "line 2:3 at resources[0]: envoy.config.cluster.v3.Cluster where envoy.config.listener.v3.Listener is expected",
        ),
        (
            "resources:\n- {'@type': type.googleapis.com/envoy.config.listener.v3.Listener, name: [1]}\n"
                .into(),
            "line 2:74 at resources[0]<Listener>.name: expected a string, found a list",
        ),
        ("resources:\n- {}\n".into(), "line 2:3 at resources[0]: \"\" names no type"),
        (
            "resources:\n- '@type': type.googleapis.com/envoy.service.discovery.v3.Resource\n  name: x\n"
                .into(),
            "line 2:3 at resources[0]: envoy.service.discovery.v3.Resource \"x\" has no resource",
        ),
        ("resources: [".into(), "line 2:1: while parsing a node"),
        (String::new(), "line 1:1: the document is empty"),
    ];
    for (text, expected) in cases {
        let found = read(Kind::Listener, &text).unwrap_err();
        assert!(found.len() == 1 && found[0].starts_with(expected), "{text}: {found:?}");
    }
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let text =
        format!("type_url: x/y\nno_such: 1\nresources: {{'@type': {CLUSTER}, name: a, no_such_field: 1}}\n");
    let found: Vec<_> =
        read(Kind::Cluster, &text).unwrap().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "line 1:1 at type_url: is not of envoy.config.cluster.v3.Cluster",
            "line 2:1: unknown field \"no_such\"",
            "line 3:12 at resources: expected a list, found a mapping: taken as its one element",
            "line 3:84 at resources[0]<Cluster>: unknown field \"no_such_field\"",
        ]
    );
}

#[test]
fn binary_is_the_same() {
    let text = format!("version_info: '7'\nresources: [{{'@type': {CLUSTER}, name: a}}]\n");
    let options = crate::load::Options::default();
    let bytes = crate::decode::message(RESPONSE, &text, options).unwrap().bytes;
    let mut reader = Reader::new(Kind::Cluster);
    assert_eq!(reader.read_binary(&bytes), reader.read(&text));
    assert!(Reader::new(Kind::Listener).read_binary(&bytes).is_err());
    assert!(reader.read_binary(b"\xff").is_err());
}

/// Texts of resources that are cut well, badly, or not at all.
const ITEMS: &[&str] = &[
    "- '@type': CLUSTER\n  name: NAME\n",
    "- '@type': CLUSTER\n  name: NAME\n  connect_timeout: 1s\n\n",
    "# about NAME\n- {'@type': CLUSTER, name: NAME}\n",
    "- name: NAME # it is\n  '@type': CLUSTER\n  # more\n# and less\n",
    "- '@type': CLUSTER\n  name: NAME\n  no_such_field: 1\n  metadata: {filter_metadata: {a: {b: 'x\n\n    y'}}}\n",
    "- '@type': CLUSTER\n  name: NAME\n  metadata:\n    filter_metadata:\n      a:\n        b: |\n          - one\n\n          # two\n",
    "- '@type': CLUSTER\n  name: NAME\n  metadata: {filter_metadata: {a: {b: \"x\n- y\"}}}\n",
    "-\n  '@type': CLUSTER\n  name: NAME\n",
    "- &anchor\n  '@type': CLUSTER\n  name: NAME\n",
    "- '@type': CLUSTER\n  name: NAME\n  alt_stat_name: !!str 1\n",
    "- '@type': CLUSTER\n  name: NAME\n  alt_stat_name: \u{e4}\u{20ac}\n  bad: 1\n",
    "- *anchor\n",
    "- '@type': CLUSTER\n  name: [NAME]\n",
    "- name: NAME\n",
    "- '@type': CLUSTER\n\tname: NAME\n",
    "  - nested\n",
    "name: x\n",
    "---\n",
    "-\n",
];
const HEADS: &[&str] = &[
    "version_info: '1'\nresources:\n",
    "resources:\n",
    "# x\nnonce: a\nversion_info: 2\nresources:\n\n# y\n",
    "no_such: 1\nresources:\n",
    "version_info: \"\nresources:\n",
];
const TAILS: &[&str] = &["", "version_info: '3'\n", "# end\n", "nonce: \"\"\n", "resources: []\n", "...\n"];
const JSON_ITEMS: &[&str] = &[
    "{\"@type\": \"CLUSTER\", \"name\": \"NAME\"}",
    "\n  {\"name\": \"NAME\", \"@type\": \"CLUSTER\",\n   \"no_such_field\": [1, {\"]\": \"},{\\\"\"}]}\n",
    "{\"@type\": \"CLUSTER\", \"name\": \"NAME\", \"\u{e4}\": {\"resources\": []}}",
    "{\"@type\": \"CLUSTER\", \"name\": [\"NAME\"]}",
    "{'@type': CLUSTER, name: 'NAME, ]'}",
    "",
];
const JSON_FRAMES: &[(&str, &str)] = &[
    ("{\"resources\": [", "]}"),
    ("{\"version_info\": \"1\", \"resources\":\n[", "], \"nonce\": \"[\"}\n"),
    ("{\"x\": [\"resources\"], \"resources\": [", "]}"),
    ("{resources: [", "]}"),
    ("{\"resources\": [", "], \"resources\": []}"),
    ("{\"resources\": [", "]"),
];

fn yaml(head: usize, tail: usize, indent: usize, items: &[(usize, u8)]) -> String {
    let mut text = HEADS[head].to_owned();
    for (item, name) in items {
        for line in ITEMS[*item].split_inclusive('\n') {
            text.push_str(&" ".repeat(indent));
            text.push_str(line);
        }
        text = text.replace("NAME", &format!("n{name}")).replace("CLUSTER", CLUSTER);
    }
    text + TAILS[tail]
}

fn json(frame: usize, items: &[(usize, u8)]) -> String {
    let items: Vec<_> =
        items.iter().map(|(item, name)| JSON_ITEMS[*item].replace("NAME", &name.to_string())).collect();
    let (before, after) = JSON_FRAMES[frame];
    [before, &items.join(","), after].concat().replace("CLUSTER", CLUSTER)
}

/// A reader of one file after the other says what one says that has read nothing before, and not by parts.
fn same_by_parts(texts: &[String]) {
    let mut reader = Reader::new(Kind::Cluster);
    for text in texts {
        assert_eq!(reader.read(text), whole(Kind::Cluster, text), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn by_parts_is_as_the_whole(
        // Mostly what is good, so that all of a text often is.
        files in proptest::collection::vec(
            (0..HEADS.len(), 0..TAILS.len(), 0_usize..4,
             proptest::collection::vec((proptest::prop_oneof![4 => 0_usize..6, 1 => 6..ITEMS.len()], 0_u8..4), 0..6)),
            1..5,
        ),
    ) {
        let texts: Vec<_> = files.iter().map(|(head, tail, indent, items)| yaml(*head, *tail, *indent, items)).collect();
        same_by_parts(&texts);
    }

    #[test]
    fn json_by_parts_is_as_the_whole(
        files in proptest::collection::vec(
            (0..JSON_FRAMES.len(), proptest::collection::vec((proptest::prop_oneof![4 => 0_usize..3, 1 => 3..JSON_ITEMS.len()], 0_u8..4), 0..6)),
            1..5,
        ),
    ) {
        let texts: Vec<_> = files.iter().map(|(frame, items)| json(*frame, items)).collect();
        same_by_parts(&texts);
    }
}

#[test]
fn only_what_has_changed_is_read_again() {
    for (one, two) in [
        (yaml(1, 1, 2, &[(0, 1), (4, 2), (5, 3)]), yaml(0, 0, 2, &[(4, 2), (1, 4), (0, 1)])),
        (json(1, &[(0, 1), (1, 2)]), json(0, &[(2, 3), (1, 2), (0, 1)])),
    ] {
        let mut reader = Reader::new(Kind::Cluster);
        let first = reader.read(&one).unwrap();
        let second = reader.read(&two).unwrap();
        let of = |read: &FileResponse, name: &str| {
            let found = read.resources.iter().find(|resource| resource.name.ends_with(name));
            found.map(|resource| resource.value.as_ptr()).unwrap()
        };
        assert_eq!(of(&first, "1"), of(&second, "1"), "the same bytes in memory");
        assert_eq!(of(&first, "2"), of(&second, "2"));
        assert_eq!(second, whole(Kind::Cluster, &two).unwrap());
        assert!(!second.warnings.is_empty(), "of a resource that was not read again");
        // What is broken for a moment forgets nothing.
        assert!(reader.read("resources: [").is_err());
        assert_eq!(of(&first, "1"), of(&reader.read(&two).unwrap(), "1"));
    }
}
