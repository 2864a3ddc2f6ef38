//! Paths: at least 500 of them, each by every way of normalizing.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};
use shunt_tests::http_echo::{HttpEcho, ask};
use shunt_tests::{Cases, Pair, lab};

use super::config;

/// What paths are made of.
const PIECES: &[&str] = &[
    "/",
    "/",
    "/",
    ".",
    "..",
    "a",
    "%2e",
    "%2E",
    "\\",
    "%",
    "%4",
    "41",
    "%41",
    "%25",
    "%2f",
    "%2F",
    "%5C",
    "%5c",
    "%00",
    "%7e",
    "..;x",
    ".;",
    "x.y",
    "//",
    "%zz",
    "^",
    "%%",
    "25",
    "2e",
    "?",
    "#",
    "~b",
    "!$&'()*+,:=@[]",
];

/// The same in each run.
fn generated(count: usize) -> Vec<String> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap_or_default()
    };
    let mut path = || {
        let pieces = next(8);
        (0..pieces).fold("/".to_owned(), |path, _| path + PIECES[next(PIECES.len())])
    };
    (0..count).map(|_| path()).collect()
}

/// Each printable character by itself and escaped.
fn characters() -> Vec<String> {
    let printable = (0x21..0x7f).map(|byte: u8| format!("/a{}b", char::from(byte)));
    let escaped = (0..=0xff).map(|byte: u8| format!("/a%{byte:02X}b"));
    printable.chain(escaped).collect()
}

#[test]
fn every_path_goes_upstream_as_envoys_does() -> Result<()> {
    lab(|lab| {
        let echo = HttpEcho::start("echo")?;
        let action = |action: &str| format!("path_with_escaped_slashes_action: {action}");
        let managers = [
            ("plain", String::new()),
            ("normalize", "normalize_path: true".to_owned()),
            ("merge", "merge_slashes: true".to_owned()),
            ("both", "normalize_path: true, merge_slashes: true".to_owned()),
            ("reject", action("REJECT_REQUEST")),
            ("redirect", action("UNESCAPE_AND_REDIRECT")),
            ("forward", action("UNESCAPE_AND_FORWARD")),
            ("all", format!("normalize_path: true, merge_slashes: true, {}", action("UNESCAPE_AND_FORWARD"))),
            ("all-redirect", format!("normalize_path: true, {}", action("UNESCAPE_AND_REDIRECT"))),
        ];
        let pair = Pair::start(lab, &config(&managers, echo.address))?;
        let (characters, generated) = (characters(), generated(320));
        let mut cases = Cases::new();
        let mut asked = 0;
        for (name, _) in &managers {
            let characters = characters.iter().filter(|_| *name == "normalize");
            for paths in [characters.collect::<Vec<_>>(), generated.iter().collect()] {
                for (n, some) in paths.chunks(40).enumerate() {
                    asked += some.len();
                    pair.same(&mut cases, format!("http-paths-{name}-{}-{n}", paths.len()), |proxy| {
                        let at = proxy.at(name)?;
                        let mut all = Map::new();
                        for path in some {
                            let answer = ask(at, &format!("GET {path}"), &[("host", "a")])?;
                            let echoed = answer.echoed()["line"].clone();
                            let location = answer.header("location").map(str::to_owned);
                            all.insert((*path).clone(), json!([answer.status, echoed, location]));
                        }
                        Ok(Value::Object(all))
                    });
                }
            }
        }
        cases.case("the table", || {
            let _: () = ensure!(asked >= 500, "{asked} paths");
            Ok(())
        });
        cases.finish()
    })
}
