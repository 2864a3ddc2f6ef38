//! The server side of the probe, in some place; what it saw of each connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lab::Lab;
use crate::process::{Place, Process};

/// A running multi-command server.
pub struct Backend {
    process: Process,
    pub port: u16,
    /// This port speaks first.
    pub greeting_port: u16,
}

impl Backend {
    /// Starts a server; `args` are further options of `shunt-probe serve`.
    pub fn start(lab: &Lab, place: &Place, args: &[&str]) -> Result<Self> {
        let mut process = lab.probe(place)?.arg("serve").args(args).spawn()?;
        let ports = |event: &Value| {
            let port = |key: &str| u16::try_from(event[key].as_u64()?).ok();
            Some((port("port")?, port("greeting_port")?))
        };
        let (port, greeting_port) =
            process.wait_event("listening port", 0, Duration::from_secs(10), ports).context("the backend")?;
        Ok(Self { process, port, greeting_port })
    }

    /// How many events there are, to look only at later ones.
    pub fn mark(&self) -> usize {
        self.process.events().len()
    }

    /// Waits for the end of a connection that ran `command`.
    pub fn ended(&mut self, from: usize, command: &str) -> Result<Value> {
        self.process.wait_event(
            &format!("end of a {command} connection"),
            from,
            Duration::from_secs(20),
            |event| (event["event"] == "end" && event["command"] == command).then(|| event.clone()),
        )
    }

    pub fn address(&self, ip: impl Into<IpAddr>) -> SocketAddr {
        SocketAddr::new(ip.into(), self.port)
    }
}
