//! Floods of HTTP/2: the connection ends, the proxy does not grow, and another client does not notice.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::{Cases, Kind, Place, Proxy, lab};

use crate::http2_common::{backend, config};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/suites/http2/abuse.py");

/// Of the proxy's memory at its most, in KiB.
const GROWTH: u64 = 5 * 1024;
/// Of the other client's requests half take no longer, in milliseconds, in any build. On a machine that is busy with
/// something else they are slow without a flood, too: then it is so many times as long as before the flood.
const USUAL: f64 = 50.0;
const TIMES: f64 = 5.0;
/// And none takes so long.
const SLOWEST: f64 = 1_000.0;

/// Each, and the stat that counts it where Envoy has one for it that we have too.
const FLOODS: &[(&str, Option<&str>)] = &[
    ("rapid reset", None),
    ("made you reset", None),
    ("CONTINUATION", None),
    ("empty CONTINUATION", Some("http2.inbound_empty_frames_flood")),
    ("SETTINGS", Some("http2.outbound_control_flood")),
    ("PING", Some("http2.outbound_control_flood")),
    ("PRIORITY", Some("http2.inbound_priority_frames_flood")),
    ("empty DATA", Some("http2.inbound_empty_frames_flood")),
    ("padded DATA", Some("http2.inbound_empty_frames_flood")),
    ("WINDOW_UPDATE", Some("http2.inbound_window_update_frames_flood")),
    ("HPACK bomb", None),
    ("zero window", None),
];

#[test]
fn floods_end_their_connection_and_touch_nothing_else() -> Result<()> {
    lab(|lab| {
        let config = config(backend()?, "stream_idle_timeout: 2s");
        let proxy = Proxy::start(lab, Kind::Shunt, &config)?;
        let address = proxy.at("h2")?.to_string();
        let mut cases = Cases::new();
        for (flood, stat) in FLOODS {
            cases.case(flood, || {
                let (before, counted) = (peak(&proxy)?, stat.map(|name| proxy.stat(name)).transpose()?);
                let python = lab.program("python", &Place::default())?.limit(Duration::from_secs(60));
                let seen = python.args([SCRIPT, &address, flood, "6"]).json()?;
                ensure!(
                    seen["error"].is_null() && seen["answered"].as_u64() > Some(10),
                    "the other client: {seen}"
                );
                let of = |name: &str| seen[name].as_f64().with_context(|| format!("no {name}: {seen}"));
                let usual = USUAL.max(TIMES * of("quiet")?);
                ensure!(of("median")? < usual && of("slowest")? < SLOWEST, "too slow: {seen}");
                let grown = peak(&proxy)?.saturating_sub(before);
                ensure!(grown <= GROWTH, "{grown} KiB: {seen}");
                // Streams that nobody takes end; their connection may have others.
                ensure!(*flood == "zero window" || seen["closed"] == true, "still open: {seen}");
                if let (Some(name), Some(counted)) = (stat, counted) {
                    proxy.expect_stat(name, counted + 1)?;
                }
                proxy.expect_stat("http.h2.downstream_rq_active", 0)
            });
        }
        cases.finish()
    })
}

/// The most memory that the proxy has had, in KiB.
fn peak(proxy: &Proxy) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    line.trim().trim_end_matches(" kB").parse().context("VmHWM")
}
