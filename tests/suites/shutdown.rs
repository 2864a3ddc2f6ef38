//! SIGTERM to a proxy of a configuration: it accepts no more, what is in flight ends or is cut, and it exits 0.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use shunt_tests::{Bootstrap, Client, End, Kind, Proxy, Upstream, eventually, lab};

fn config(upstream: &Upstream) -> String {
    Bootstrap::new().relay("up", "up").static_cluster("up", &[upstream.address], "").yaml()
}

fn refused(proxy: &Proxy) -> Result<()> {
    let at = proxy.at("up")?;
    eventually("a refused connection", Duration::from_secs(3), || {
        let served = Client::connect(at).and_then(|mut client| client.ask("x"));
        ensure!(served.is_err(), "still served");
        Ok(())
    })
}

#[test]
fn an_idle_proxy_ends_at_once() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut proxy = Proxy::start(lab, Kind::Shunt, &config(&upstream))?;
            Client::connect(proxy.at("up")?)?.ask("hello")?;
            let start = Instant::now();
            proxy.process().signal(signal)?;
            let status = proxy.process().wait(Duration::from_secs(5))?;
            ensure!(status.code() == Some(0), "{signal}: {status}");
            ensure!(start.elapsed() < Duration::from_secs(2), "{signal}: after {:?}", start.elapsed());
        }
        Ok(())
    })
}

#[test]
fn what_is_in_flight_finishes() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let mut proxy = Proxy::start_with(lab, Kind::Shunt, &config(&upstream), &["--drain-time-s", "20"])?;
        let mut client = Client::connect(proxy.at("up")?)?;
        client.ask("before")?;
        proxy.process().signal(Signal::SIGTERM)?;
        refused(&proxy)?;
        ensure!(client.ask("during")? == "up during", "another answer");
        client.half_close()?;
        ensure!(client.end()?.1 == End::Eof, "cut");
        let status = proxy.process().wait(Duration::from_secs(4))?;
        ensure!(status.code() == Some(0), "{status}");
        Ok(())
    })
}

#[test]
fn what_does_not_finish_is_cut_at_the_deadline() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let mut proxy = Proxy::start_with(lab, Kind::Shunt, &config(&upstream), &["--drain-time-s", "1"])?;
        let mut client = Client::connect(proxy.at("up")?)?;
        client.ask("before")?;
        let start = Instant::now();
        proxy.process().signal(Signal::SIGTERM)?;
        let (_, end) = client.end()?;
        let cut = start.elapsed();
        ensure!(end != End::Open, "never cut");
        ensure!((700..2_500).contains(&cut.as_millis()), "cut after {cut:?}");
        let status = proxy.process().wait(Duration::from_secs(2))?;
        ensure!(status.code() == Some(0), "{status}");
        Ok(())
    })
}
