//! What several suites check of a connection.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::access_log::AccessLog;
use shunt_tests::backend::Backend;
use shunt_tests::cases::canonical;
use shunt_tests::probe::{Connect, Report};
use shunt_tests::{Cases, Family, Lab, Place};

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

/// Both ends of a connection, each ending first, by FIN and by RST. `line` finds a connection's log line.
pub(crate) struct Ends<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) client: &'a Place,
    pub(crate) server: &'a mut Backend,
    pub(crate) to: SocketAddr,
    pub(crate) line: &'a dyn Fn(&Report) -> Result<Value>,
}

impl Ends<'_> {
    pub(crate) fn check(&mut self, cases: &mut Cases, family: Family) {
        cases.case(format_args!("client says FIN first, {family}"), || self.run("hash:300000").map(drop));
        cases.case(format_args!("server says FIN first, {family}"), || {
            let (_, end) = self.run_to_end("gen:300000", "gen")?;
            ensure!(end["answer_ok"] == true && end["end"] == "EOF", "{end}");
            Ok(())
        });
        cases.case(format_args!("server resets, {family}"), || {
            let line = (self.line)(&self.run("rst:1000")?)?;
            ensure!(line["connection_termination_details"] == "upstream_reset", "{line}");
            Ok(())
        });
        cases.case(format_args!("client resets, {family}"), || {
            let (report, end) = self.run_to_end("echo:10 reset", "echo")?;
            ensure!(end["end"] == "ECONNRESET", "{end}");
            let line = (self.line)(&report)?;
            ensure!(line["connection_termination_details"] == "downstream_reset", "{line}");
            Ok(())
        });
        cases.case(format_args!("server speaks first, {family}"), || {
            let to = SocketAddr::new(self.to.ip(), self.server.greeting_port);
            Connect::new(self.client, to).steps("greet echo:5").run(self.lab).map(drop)
        });
    }

    fn run(&self, steps: &str) -> Result<Report> {
        Connect::new(self.client, self.to).steps(steps).run(self.lab)
    }

    /// The client's report and what the server saw.
    fn run_to_end(&mut self, steps: &str, command: &str) -> Result<(Report, Value)> {
        let mark = self.server.mark();
        let report = self.run(steps)?;
        Ok((report, self.server.ended(mark, command)?))
    }
}
