//! Both proxies on one configuration: the same traffic through each, and what was observed compared.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cases::Cases;
use crate::deviations;
use crate::lab::Lab;
use crate::proxy::{Kind, Proxy};

/// How long shunt may take to count what Envoy has counted.
const SETTLE: Duration = Duration::from_secs(3);

/// Envoy and shunt, each with its own ports and directory.
pub struct Pair {
    pub envoy: Proxy,
    pub shunt: Proxy,
}

impl Pair {
    pub fn start(lab: &Lab, config: &str) -> Result<Self> {
        Self::start_with(lab, config, &[])
    }

    pub fn start_with(lab: &Lab, config: &str, args: &[&str]) -> Result<Self> {
        let start = |kind: Kind| Proxy::start_with(lab, kind, config, args).with_context(|| kind.name());
        Ok(Self { envoy: start(Kind::Envoy)?, shunt: start(Kind::Shunt)? })
    }

    pub fn both(&self) -> [&Proxy; 2] {
        [&self.envoy, &self.shunt]
    }

    /// A case: what is observed of each must be the same, but for a deviation of this id.
    pub fn same(
        &self,
        cases: &mut Cases,
        id: impl Display,
        mut observe: impl FnMut(&Proxy) -> Result<Value>,
    ) {
        let id = id.to_string();
        cases.case(&id, || {
            let [envoy, shunt] = self.both().map(|proxy| observe(proxy).context(proxy.kind.name()));
            deviations::check(&id, &envoy?, &shunt?)
        });
    }

    /// As [`Pair::same`], of what the traffic adds to some stats. See [`crate::proxy::Stats::since`] for the names.
    pub fn same_stats(
        &self,
        cases: &mut Cases,
        id: impl Display,
        names: &[&str],
        mut traffic: impl FnMut(&Proxy) -> Result<()>,
    ) {
        let id = id.to_string();
        cases.case(&id, || {
            let mut run = |proxy: &Proxy, wanted: Option<&Value>| -> Result<Value> {
                let before = proxy.stats()?;
                traffic(proxy)?;
                let delta = || Ok(proxy.stats()?.since(&before, names));
                settled(delta, wanted)
            };
            let envoy = run(&self.envoy, None).context("envoy")?;
            let shunt = run(&self.shunt, Some(&envoy)).context("shunt")?;
            deviations::check(&id, &envoy, &shunt)
        });
    }
}

/// A value that has stopped changing, or is the wanted one.
fn settled(read: impl Fn() -> Result<Value>, wanted: Option<&Value>) -> Result<Value> {
    let start = Instant::now();
    let mut last = read()?;
    let mut since = Instant::now();
    loop {
        if wanted == Some(&last) || start.elapsed() > SETTLE {
            return Ok(last);
        }
        if wanted.is_none() && since.elapsed() > Duration::from_millis(120) {
            return Ok(last);
        }
        std::thread::sleep(Duration::from_millis(20));
        let next = read()?;
        if next != last {
            (last, since) = (next, Instant::now());
        }
    }
}
