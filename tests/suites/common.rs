//! What several suites check of a connection.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::access_log::AccessLog;
use shunt_tests::cases::canonical;
use shunt_tests::probe::Report;

/// The line of a connection from the workload, which must name where it was going and who carried it.
pub(crate) fn outbound_line(
    log: &AccessLog,
    workload: &str,
    report: &Report,
    to: SocketAddr,
) -> Result<Value> {
    let line = log.of(report, "outbound")?;
    check(&line, workload, to)?;
    ensure!(line["upstream_cluster"] == "PassthroughCluster", "{line}");
    Ok(line)
}

/// The line of a connection to the workload, whose source is genuine.
pub(crate) fn inbound_line(
    log: &AccessLog,
    workload: &str,
    report: &Report,
    to: SocketAddr,
) -> Result<Value> {
    let line = log.of(report, "inbound")?;
    check(&line, workload, to)?;
    let local = address(&line, "upstream_local_address")?;
    ensure!(is_passthrough_source(local.ip()), "{line}");
    Ok(line)
}

fn check(line: &Value, workload: &str, to: SocketAddr) -> Result<()> {
    let to = canonical(to).to_string();
    ensure!(line["workload"] == workload, "{line}");
    ensure!(line["original_dst"] == to.as_str(), "not to {to}: {line}");
    ensure!(line["downstream_local_address"] == to.as_str(), "not to {to}: {line}");
    ensure!(line["upstream_host"] == to.as_str(), "not to {to}: {line}");
    Ok(())
}

pub(crate) fn address(line: &Value, key: &str) -> Result<SocketAddr> {
    let text = line[key].as_str().with_context(|| format!("no {key} in {line}"))?;
    Ok(canonical(text.parse()?))
}

/// 127.0.0.6 and ::6
pub(crate) fn is_passthrough_source(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets() == [127, 0, 0, 6],
        IpAddr::V6(v6) => v6.segments() == [0, 0, 0, 0, 0, 0, 0, 6],
    }
}

/// At least so many bytes each way, and no flag.
pub(crate) fn ended_well(line: &Value, bytes: u64) -> Result<()> {
    let at_least = |key: &str| line[key].as_u64().is_some_and(|n| n >= bytes);
    ensure!(at_least("bytes_received") && at_least("bytes_sent"), "fewer than {bytes} bytes: {line}");
    ensure!(line["response_flags"] == "-", "{line}");
    Ok(())
}
