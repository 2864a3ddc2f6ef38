//! Those that measure, asked for few requests: each of them must be answered well.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Nginx, Place, Proxy, eventually, lab, ports};

use super::clients::{config, nginx};
use super::rig::{Keys, Pages, fields, listeners, manager, route};

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

/// Requests that a server has refused, or has not answered, go elsewhere.
const AGAIN: &str = "retry_policy: { retry_on: 'refused-stream,reset,connect-failure', num_retries: 20 }";
const RETRIES: &str = "circuit_breakers: { thresholds: [ { max_retries: 1000 } ] }";

/// A route for each upstream.
fn front(lab: &Lab, upstreams: &[(&str, std::net::SocketAddr, bool)]) -> Result<Proxy> {
    let route_to = |name: &&str| {
        route(&format!("/{name}/"), &format!("route: {{ cluster: {name}, prefix_rewrite: \"/\", {AGAIN} }}"))
    };
    let routes: Vec<String> = upstreams.iter().map(|(name, ..)| route_to(name)).collect();
    let all = upstreams.iter().fold(Bootstrap::new(), |all, (name, at, http2)| {
        all.static_cluster(name, &[*at], &(fields(*http2, None) + RETRIES))
    });
    let keys = Keys::make(lab)?;
    Proxy::start(lab, Kind::Shunt, &listeners(all, &manager(&routes, ""), &keys).yaml())
}

/// So many requests by several clients at a time: each is answered well.
fn h2load_all(lab: &Lab, proxy: &Proxy, path: &str, count: u64) -> Result<()> {
    let url = format!("http://{}{path}", proxy.at("plain")?);
    let args = [&format!("-n{count}"), "-c5", "-t1", "-m20", "--no-tls-proto=h2c", &url].map(str::to_owned);
    let (said, answered) = load(lab, proxy, "h2load", &args)?;
    ensure!(before(&said, "2xx")? == count && answered == count, "{answered} answered: {said}");
    Ok(())
}

/// nginx ends each connection after so many requests: by GOAWAY, or by `Connection: close`.
#[test]
fn a_server_that_often_says_goodbye() -> Result<()> {
    lab(|lab| {
        let pages = Pages::make(lab)?;
        let block = format!("root {}; keepalive_requests 20;", pages.root.display());
        let start = |name, words| Nginx::listening(lab, name, words, &block);
        let (h1, h2) = (start("few1", "")?, start("few2", "http2")?);
        let proxy = front(lab, &[("h1", h1.address, false), ("h2", h2.address, true)])?;
        let mut cases = Cases::new();
        for name in ["h1", "h2"] {
            cases.case(format_args!("20 requests a connection, {name}"), || {
                h2load_all(lab, &proxy, &format!("/{name}/index.html"), 1_000)?;
                let made = proxy.stat(&format!("cluster.{name}.upstream_cx_total"))?;
                ensure!(made >= 50, "{made} connections");
                Ok(())
            });
        }
        cases.finish()
    })
}

/// A reload gives each connection to its end, and takes new ones at once.
#[test]
fn a_server_that_is_reloaded() -> Result<()> {
    lab(|lab| {
        let pages = Pages::make(lab)?;
        let (one, two) = (ports::free()?, ports::free()?);
        let dir = lab.dir().join("reloaded");
        fs::create_dir_all(&dir)?;
        let (own, root) = (dir.display(), pages.root.display());
        let file = dir.join("nginx.conf");
        fs::write(
            &file,
            format!(
                "user root;\ndaemon off;\nworker_processes 1;\npid {own}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
                 http {{ access_log off; client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
                   fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
                   keepalive_requests 1000000; root {root};\n\
                   server {{ listen {one}; }} server {{ listen {two} http2; }} }}\n"
            ),
        )?;
        let program = lab.program("nginx", &Place::default())?.arg("-c").arg(&file).arg("-p").arg(&dir);
        // Its workers end when it is asked to end, and outlive it when it is killed.
        let mut nginx = program.gentle().spawn()?;
        eventually("nginx", Duration::from_secs(10), || {
            ensure!(nginx.exited()?.is_none(), "nginx has ended: {}", nginx.stderr());
            Ok(std::net::TcpStream::connect(two)?)
        })?;
        let proxy = front(lab, &[("h1", one, false), ("h2", two, true)])?;
        let mut cases = Cases::new();
        for name in ["h1", "h2"] {
            cases.case(format_args!("reloads, {name}"), || {
                let pid = nix::unistd::Pid::from_raw(nginx.pid());
                let reloads = std::thread::spawn(move || {
                    (0..6).try_for_each(|_| {
                        std::thread::sleep(Duration::from_millis(150));
                        kill(pid, Signal::SIGHUP)
                    })
                });
                let loaded = h2load_all(lab, &proxy, &format!("/{name}/big.bin"), 300);
                reloads.join().map_err(|_| anyhow::anyhow!("panicked"))??;
                loaded?;
                let made = proxy.stat(&format!("cluster.{name}.upstream_cx_total"))?;
                ensure!(made > 1, "no reload under load");
                Ok(())
            });
        }
        cases.finish()
    })
}
