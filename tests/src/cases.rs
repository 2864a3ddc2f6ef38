//! Tables of cases: all of them run, and the failures are told together.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};

/// How a program names its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// IPv4 by an AF_INET6 socket.
    Mapped,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    /// The address as the program writes it.
    pub fn address(self, v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> SocketAddr {
        let ip = match self {
            Self::V4 => IpAddr::V4(v4),
            Self::V6 => IpAddr::V6(v6),
            Self::Mapped => IpAddr::V6(v4.to_ipv6_mapped()),
        };
        SocketAddr::new(ip, port)
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Mapped => "v4-mapped",
        })
    }
}

/// An address without its v4-mapped form.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Collects the failures of a table.
#[derive(Default)]
pub struct Cases {
    run: usize,
    failures: Vec<String>,
}

impl Cases {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs one case.
    pub fn case(&mut self, name: impl Display, body: impl FnOnce() -> Result<()>) {
        self.run += 1;
        if let Err(error) = body() {
            self.failures.push(format!("{name}: {error:#}"));
        }
    }

    /// One case per family.
    pub fn each_family(&mut self, name: impl Display, mut body: impl FnMut(Family) -> Result<()>) {
        for family in Family::ALL {
            self.case(format_args!("{name}, {family}"), || body(family));
        }
    }

    /// Fails if a case did.
    pub fn finish(self) -> Result<()> {
        if self.run == 0 {
            bail!("no case ran");
        }
        if !self.failures.is_empty() {
            let (failed, run) = (self.failures.len(), self.run);
            bail!("{failed} of {run} cases failed:\n  {}", self.failures.join("\n  "));
        }
        Ok(())
    }
}
