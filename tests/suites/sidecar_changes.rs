//! What changes in the configurations of workloads, and what theirs alone is.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::bootstrap::{address, chain, says};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Client, Daemon, Leaf, Pki, Pod, TlsClient, TlsContext, eventually, lab};

use crate::sidecars::{File, answering, bringing, configuration, expect};

const SOON: Duration = Duration::from_secs(10);
const FRONT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 18_080);

/// What a client inside of a workload is told by the listener `front`.
fn told(pod: &Pod) -> Result<String> {
    pod.netns.inside(|| Client::connect(FRONT)?.line())
}

#[test]
fn the_only_socket_of_an_address_goes_to_the_next_configuration() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let text = |word: &str, fields: &str| {
            let chain = chain("", &[says(&format!("{word}\n"))]);
            let fields = format!("enable_reuse_port: false, {fields} filter_chains: [ {chain} ]");
            answering(word, word).listener_at("front", &address("0.0.0.0", FRONT.port()), &fields).yaml()
        };
        let file = File::new(lab, "a", &text("zero", ""))?;
        let mut daemon = Daemon::start(lab, &[bringing(&pod, &file.0, "-b 1")?])?;
        let admin = daemon.admin();
        ensure!(told(&pod)? == "zero");
        let mut last = "zero";
        for (word, fields) in [("one", ""), ("two", "tcp_backlog_size: 64,"), ("three", "")] {
            file.write(&text(word, fields))?;
            eventually(word, SOON, || {
                let shown = configuration(&admin, &pod)?;
                // Nobody is refused on the way.
                let told = told(&pod).with_context(|| format!("between {last} and {word}: {shown}"))?;
                ensure!(told == last || told == word, "{told} between {last} and {word}");
                ensure!(shown["state"] == "ready" && shown["node"] == word, "{shown}");
                ensure!(told == word, "{told}");
                Ok(())
            })?;
            expect(lab, &pod, word)?;
            last = word;
        }
        // What another configuration does not have is closed.
        file.write(&answering("none", "none").yaml())?;
        eventually("the end of the listener", SOON, || {
            ensure!(told(&pod).is_err(), "it is open");
            Ok(())
        })?;
        daemon.interrupt()?;
        Ok(())
    })
}

#[test]
fn secrets_of_one_name_are_each_workloads_own() -> Result<()> {
    lab(|lab| {
        let pods = [lab.pod("a")?, lab.pod("b")?];
        let pki = Pki::new(lab)?;
        let root = pki.root("root")?;
        let mut files = Vec::new();
        let mut identities = Vec::new();
        let write = |round: usize, pod: &Pod| {
            let name = format!("{}-{round}", pod.name);
            let identity = root.issue(&name, &Leaf::new().dns(&format!("{name}.example.com")))?;
            let (chain, key) = (identity.chain.display(), identity.key.display());
            let secret = format!(
                "secrets: [ {{ name: server, tls_certificate: {{ certificate_chain: {{ filename: {:?} }}, \
                 private_key: {{ filename: {:?} }} }} }} ]",
                chain.to_string(),
                key.to_string()
            );
            let context =
                TlsContext::new().common("tls_certificate_sds_secret_configs: [ { name: server } ]");
            let chain = tls_chain("", &context.downstream(), &[says(&format!("{name}\n"))]);
            let fields = format!("filter_chains: [ {chain} ]");
            let yaml = answering(&name, &name)
                .listener_at("front", &address("0.0.0.0", FRONT.port()), &fields)
                .yaml()
                .replace("static_resources:\n", &format!("static_resources:\n  {secret}\n"));
            anyhow::Ok((identity, yaml))
        };
        for pod in &pods {
            let (identity, yaml) = write(0, pod)?;
            files.push(File::new(lab, &pod.name, &yaml)?);
            identities.push(identity);
        }
        let entries = pods.iter().zip(&files).map(|(pod, file)| bringing(pod, &file.0, "-b 1"));
        let mut daemon = Daemon::start(lab, &entries.collect::<Result<Vec<_>>>()?)?;
        let served = |pod: &Pod| -> Result<(String, Vec<u8>)> {
            pod.netns.inside(|| {
                let mut stream = TlsClient::new().connect(FRONT)?;
                let leaf = stream.agreed()?.chain.swap_remove(0);
                Ok((stream.line()?, leaf))
            })
        };
        for (pod, identity) in pods.iter().zip(&identities) {
            let (word, leaf) = served(pod)?;
            ensure!(word == format!("{}-0", pod.name) && leaf == identity.der(), "{word}: not its own");
        }
        // The one that changes is no other's.
        let (identity, yaml) = write(1, &pods[0])?;
        files[0].write(&yaml)?;
        eventually("the new certificate of a", SOON, || {
            let (word, leaf) = served(&pods[0])?;
            ensure!(word == "a-1" && leaf == identity.der(), "{word}");
            Ok(())
        })?;
        let (word, leaf) = served(&pods[1])?;
        ensure!(word == "b-0" && leaf == identities[1].der(), "{word}: not its own");
        let admin = daemon.admin();
        for (pod, other) in [(&pods[0], "\"b-0\""), (&pods[1], "\"a-1\"")] {
            let dump = admin.ok(&format!("/workloads/{}/config_dump", pod.name))?;
            ensure!(!dump.contains(other), "{} shows what is another's", pod.name);
        }
        daemon.interrupt()?;
        Ok(())
    })
}
