//! Both proxies on a control plane whose protocol is of published crates, not of this project's tests.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::pki::hex;
use shunt_tests::ports::free;
use shunt_tests::xds::Resource;
use shunt_tests::{Cases, Kind, Lab, Pair, Place, Process, Upstream, bootstrap, lab, xds};

use crate::xds_common::{Held, Protocol, answers, cluster, eds_cluster, endpoints, named, relay, who};

/// A running one. It answers what it is asked, and tells nobody of a snapshot that comes later: another one is given to
/// a server that takes its place.
struct Public {
    process: Process,
}

impl Public {
    fn start(lab: &Lab, at: SocketAddr) -> Result<Self> {
        let spawn = lab.program("control-plane", &Place::default())?.arg(at.port().to_string());
        Ok(Self { process: spawn.args(Kind::BOTH.map(Kind::name)).with_stdin().spawn()? })
    }

    fn snapshot(&mut self, version: &str, resources: &[Resource]) -> Result<()> {
        let all: Vec<_> = resources
            .iter()
            .map(|r| json!({ "type_url": r.of.url(), "name": r.name, "value": hex(r.value()) }))
            .collect();
        let said = self.process.ask(&json!({ "version": version, "resources": all }).to_string())?;
        ensure!(said["version"] == version, "{said}");
        Ok(())
    }
}

#[test]
fn a_life_of_updates_by_someone_elses_server() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for protocol in Protocol::BOTH {
            let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
            let at = free()?;
            let mut public = Public::start(lab, at)?;
            let first = [
                eds_cluster("service", "")?,
                cluster("static", two.address)?,
                endpoints("service", &[one.address])?,
                relay("in", "service")?,
            ];
            public.snapshot("v1", &first)?;
            let ads = "{ ads: {}, resource_api_version: V3 }";
            let api = protocol.api();
            let address = bootstrap::address("127.0.0.1", at.port());
            let endpoint = format!("{{ lb_endpoints: [ {{ endpoint: {{ address: {address} }} }} ] }}");
            let config = named()
                .top(&format!("dynamic_resources: {{ ads_config: {api}, lds_config: {ads}, cds_config: {ads} }}"))
                .cluster("xds", &format!("type: STATIC, {}, load_assignment: {{ cluster_name: xds, endpoints: [ {endpoint} ] }}", xds::HTTP2));
            let pair = Pair::start(lab, &config.yaml())?;
            let mut held = Held::through(&pair, "in")?;
            let id = |what: &str| format!("{}, someone else's server: {what}", protocol.name());
            pair.same(&mut cases, id("v1"), |proxy| Ok(json!([who(proxy, "in")?, proxy.addresses()?.len()])));
            let second = [
                eds_cluster("service", "")?,
                cluster("static", two.address)?,
                endpoints("service", &[two.address])?,
                relay("in", "service")?,
                relay("more", "static")?,
            ];
            drop(public);
            let mut public = Public::start(lab, at)?;
            public.snapshot("v2", &second)?;
            pair.same(&mut cases, id("v2"), |proxy| {
                answers(proxy, "in", "two")?;
                answers(proxy, "more", "two")?;
                Ok(json!([held.who(proxy)?, proxy.stat("listener_manager.listener_modified")?]))
            });
            drop(public);
            let mut public = Public::start(lab, at)?;
            public.snapshot("v3", &first)?;
            pair.same(&mut cases, id("v3"), |proxy| {
                answers(proxy, "in", "one")?;
                // A delta of this server does not tell what went while nobody was connected.
                if protocol == Protocol::Sotw {
                    proxy.expect_stat("listener_manager.total_listeners_active", 1)?;
                }
                let stats = proxy.stats()?;
                let counted = ["listener_manager.lds.update_rejected", "cluster_manager.cds.update_rejected"];
                Ok(json!([held.who(proxy)?, counted.map(|name| stats.of(name))]))
            });
        }
        cases.finish()
    })
}
