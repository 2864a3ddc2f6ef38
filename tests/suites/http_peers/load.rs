//! Those that measure, asked for few requests: each of them must be answered well.

use anyhow::{Context as _, Result, ensure};
use shunt_tests::{Cases, Kind, Lab, Place, Proxy, lab};

use super::clients::{config, nginx};
use super::rig::{Keys, Pages};

const ANSWERED: &str = "http.ing.downstream_rq_2xx";
const ALL: &str = "http.ing.downstream_rq_total";

/// Runs it, and says how many requests the proxy has answered meanwhile; all of them well.
fn load(lab: &Lab, proxy: &Proxy, program: &str, args: &[String]) -> Result<(String, u64)> {
    let before = proxy.stats()?;
    let said = lab.program(program, &Place::default())?.args(args).run()?.stdout;
    proxy.expect_stat("http.ing.downstream_rq_active", 0)?;
    let after = proxy.stats()?;
    for wrong in
        ["http.ing.downstream_rq_4xx", "http.ing.downstream_rq_5xx", "http.ing.downstream_cx_protocol_error"]
    {
        ensure!(after.of(wrong) == before.of(wrong), "{wrong}: {said}");
    }
    Ok((said, after.of(ANSWERED) - before.of(ANSWERED)))
}

/// The number before a word.
fn before(text: &str, word: &str) -> Result<u64> {
    let end = text.find(word).with_context(|| format!("no {word:?} in {text}"))?;
    let number = text[..end].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next();
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no number before {word:?} in {text}"))
}

fn over(run: impl FnOnce(&Lab, &Proxy, &mut Cases) -> Result<()>) -> Result<()> {
    lab(|lab| {
        let (keys, pages) = (Keys::make(lab)?, Pages::make(lab)?);
        let servers = nginx(lab, &keys, &pages)?;
        let proxy = Proxy::start(lab, Kind::Shunt, &config(&servers, &keys))?;
        let mut cases = Cases::new();
        run(lab, &proxy, &mut cases)?;
        cases.finish()
    })
}

#[test]
fn h2load() -> Result<()> {
    over(|lab, proxy, cases| {
        let at = proxy.at("plain")?;
        for (protocol, upstream, page) in [
            ("--no-tls-proto=h2c", "h1", "index.html"),
            ("--no-tls-proto=h2c", "h2c", "big.bin"),
            ("--no-tls-proto=h2c", "h2-tls", "index.html"),
            ("--h1", "h2c", "index.html"),
            ("--h1", "h1-tls", "big.bin"),
        ] {
            cases.case(format_args!("h2load, {protocol}, {upstream}, {page}"), || {
                let count = if page == "big.bin" { 60 } else { 1_000 };
                let mut args =
                    vec![format!("-n{count}"), "-c5".to_owned(), "-t1".to_owned(), protocol.to_owned()];
                args.push(if protocol == "--h1" { "-m1" } else { "-m20" }.to_owned());
                args.push(format!("http://{at}/{upstream}/{page}"));
                let (said, answered) = load(lab, proxy, "h2load", &args)?;
                let succeeded =
                    (before(&said, "succeeded")?, before(&said, "failed")?, before(&said, "errored")?);
                ensure!(succeeded == (count, 0, 0), "{said}");
                ensure!(before(&said, "2xx")? == count && answered == count, "{answered} answered: {said}");
                Ok(())
            });
        }
        Ok(())
    })
}

#[test]
fn hey() -> Result<()> {
    over(|lab, proxy, cases| {
        let at = proxy.at("plain")?;
        let ways: [(&str, &[&str]); 3] = [
            ("get", &[]),
            ("without keep-alive", &["-disable-keepalive"]),
            ("put", &["-m", "PUT", "-d", "a body"]),
        ];
        for (what, more) in ways {
            for upstream in ["h1", "h2c", "h2-tls"] {
                cases.case(format_args!("hey, {what}, {upstream}"), || {
                    let page = if what == "put" { "put/hey" } else { "index.html" };
                    let mut args: Vec<String> = ["-n", "300", "-c", "10"].map(str::to_owned).to_vec();
                    args.extend(more.iter().map(|&arg| arg.to_owned()));
                    args.push(format!("http://{at}/{upstream}/{page}"));
                    let (said, answered) = load(lab, proxy, "hey", &args)?;
                    let lines = said
                        .lines()
                        .filter(|line| line.trim_start().starts_with("[2") && line.ends_with("responses"));
                    let good = lines
                        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                        .sum::<u64>();
                    ensure!(good == 300 && answered == 300, "{good}, {answered}: {said}");
                    ensure!(!said.contains("Error distribution"), "{said}");
                    Ok(())
                });
            }
        }
        Ok(())
    })
}

#[test]
fn wrk() -> Result<()> {
    over(|lab, proxy, cases| {
        let at = proxy.at("plain")?;
        for upstream in ["h1", "h2c", "h1-tls"] {
            cases.case(format_args!("wrk, {upstream}"), || {
                let started = proxy.stat(ALL)?;
                let args =
                    ["-t1", "-c16", "-d1s", &format!("http://{at}/{upstream}/index.html")].map(str::to_owned);
                let (said, answered) = load(lab, proxy, "wrk", &args)?;
                let counted = before(&said, "requests in")?;
                ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
                // It leaves while some are on their way.
                let all = proxy.stat(ALL)? - started;
                ensure!(
                    counted > 0 && answered >= counted && all <= counted + 16,
                    "{answered} of {all}: {said}"
                );
                Ok(())
            });
        }
        Ok(())
    })
}
