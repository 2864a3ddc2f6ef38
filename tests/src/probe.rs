//! The client side of the probe: one connection, its options, and what became of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::cases::canonical;
use crate::lab::Lab;
use crate::process::{Place, Process};

/// One client run: `shunt-probe connect`.
pub struct Connect {
    args: Vec<String>,
    place: Place,
    limit: Duration,
}

impl Connect {
    pub fn new(place: &Place, to: SocketAddr) -> Self {
        let args = vec!["connect".to_owned(), "--to".to_owned(), to.to_string()];
        Self { args, place: place.clone(), limit: Duration::from_secs(60) }
    }

    /// Further options of the probe, separated by spaces.
    pub fn with(mut self, options: &str) -> Self {
        self.args.extend(options.split_whitespace().map(str::to_owned));
        self
    }

    /// What to do on the connection: `addr`, `echo:N`, `hash:N`, …
    pub fn steps(mut self, steps: &str) -> Self {
        self.args.extend(steps.split_whitespace().flat_map(|step| ["--do".to_owned(), step.to_owned()]));
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it; the report may be of a failure.
    pub fn report(&self, lab: &Lab) -> Result<Report> {
        Ok(Report(lab.probe(&self.place)?.args(&self.args).limit(self.limit).json()?))
    }

    /// Runs it; everything must go well.
    pub fn run(&self, lab: &Lab) -> Result<Report> {
        let report = self.report(lab)?;
        ensure!(report.ok(), "{}: {}", self.args.join(" "), report.0);
        Ok(report)
    }

    /// Starts it, to be told steps one by one.
    pub fn session(&self, lab: &Lab) -> Result<Session> {
        let spawn = lab.probe(&self.place)?.args(&self.args).arg("--session").with_stdin();
        let mut process = spawn.spawn()?;
        let opened =
            process.wait_event("connection", 0, Duration::from_secs(20), |event| Some(event.clone()))?;
        ensure!(opened["ok"] == true, "{}: {opened}", self.args.join(" "));
        Ok(Session { process, opened: Report(opened) })
    }
}

/// A connection that stays open while the world around it changes.
pub struct Session {
    process: Process,
    pub opened: Report,
}

impl Session {
    /// Does one step, which must go well.
    pub fn step(&mut self, step: &str) -> Result<Value> {
        let answer = self.process.ask(step)?;
        ensure!(answer["ok"] == true, "{step}: {answer}");
        Ok(answer)
    }

    /// Does one step, which may fail.
    pub fn attempt(&mut self, step: &str) -> Result<Value> {
        self.process.ask(step)
    }
}

/// The JSON line that a client prints.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    pub fn ok(&self) -> bool {
        self.0["ok"] == true
    }

    /// The client's own getsockname(), without its v4-mapped form.
    pub fn local(&self) -> Result<SocketAddr> {
        self.address("local")
    }

    /// The client's own getpeername().
    pub fn peer(&self) -> Result<SocketAddr> {
        self.address("peer")
    }

    /// Who the server saw, where the steps had `addr`.
    pub fn server_peer(&self) -> Result<SocketAddr> {
        self.step_address("peer")
    }

    /// Where the server was reached.
    pub fn server_local(&self) -> Result<SocketAddr> {
        self.step_address("local")
    }

    fn step_address(&self, key: &str) -> Result<SocketAddr> {
        let steps = self.0["steps"].as_array().context("no steps")?;
        let text = steps
            .iter()
            .find_map(|step| step[key].as_str())
            .with_context(|| format!("no addr step in {}", self.0))?;
        Ok(canonical(text.parse()?))
    }

    fn address(&self, key: &str) -> Result<SocketAddr> {
        let text = self.0[key].as_str().with_context(|| format!("no {key} in {}", self.0))?;
        Ok(canonical(text.parse().with_context(|| format!("{key}: {text}"))?))
    }

    /// Whether the connection went to the proxy on the loopback address.
    pub fn redirected(&self) -> Result<bool> {
        Ok(self.local()?.ip().is_loopback())
    }

    /// Fails unless the connection failed with one of these error names.
    pub fn expect_errno(&self, names: &[&str]) -> Result<()> {
        let errno = self.0["errno"].as_str().unwrap_or_default();
        if self.ok() || !names.contains(&errno) {
            bail!("expected {names:?}, got {}", self.0);
        }
        Ok(())
    }
}
