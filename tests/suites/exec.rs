//! `shunt exec`: a developer's way in. A workload's namespace stands for the developer's machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use shunt_tests::access_log::AccessLog;
use shunt_tests::probe::Connect;
use shunt_tests::process::Spawn;
use shunt_tests::{Cases, Lab, Place, Pod, eventually, lab};

use crate::peers::web_server;

/// A machine with something to connect to.
struct Machine<'l> {
    lab: &'l Lab,
    pod: Pod,
    log: PathBuf,
}

impl<'l> Machine<'l> {
    fn new(lab: &'l Lab) -> Result<Self> {
        Ok(Self { lab, pod: lab.pod("dev")?, log: lab.dir().join("log/exec-access.log") })
    }

    /// `shunt exec OPTIONS -- COMMAND`
    fn exec(&self, options: &[&str], command: &[&str]) -> Result<Spawn> {
        let spawn = self.lab.shunt(self.pod.place())?.args(["exec", "--access-log"]).arg(&self.log);
        Ok(spawn.gentle().args(options).arg("--").args(command))
    }

    fn carried(&self, to: SocketAddr) -> Result<Value> {
        let to = to.to_string();
        let log = AccessLog::new(self.log.clone());
        log.wait(&to, 0, Duration::from_secs(5), |line| line["original_dst"] == to.as_str())
    }
}

#[test]
fn a_command_is_captured_and_its_neighbours_are_not() -> Result<()> {
    lab(|lab| {
        let machine = Machine::new(lab)?;
        let (pod, (_server, port)) = (&machine.pod, web_server(lab, &lab.outside())?);
        let mut cases = Cases::new();
        for host in [pod.gateway4.to_string(), format!("[{}]", pod.gateway6)] {
            cases.case(format_args!("curl {host}"), || {
                let url = format!("http://{host}:{port}/");
                let out = machine.exec(&[], &["curl", "-sSfg", "--noproxy", "*", &url])?.run()?;
                ensure!(out.stdout == "hello\n", "{out:?}");
                let line = machine.carried(format!("{host}:{port}").parse()?)?;
                ensure!(line["direction"] == "outbound" && line["response_flags"] == "-", "{line}");
                Ok(())
            });
        }
        cases.case("a neighbour", || {
            let backend = lab.serve(&lab.outside())?;
            let mut running = machine.exec(&[], &["sh", "-c", "echo '{}'; exec sleep 30"])?.spawn()?;
            running.wait_event("start", 0, Duration::from_secs(10), |event| Some(event.clone()))?;
            let outside = pod.place().in_cgroup(&lab.cgroup().child("neighbour")?);
            let report = Connect::new(&outside, backend.address(pod.gateway4)).steps("addr").run(lab)?;
            ensure!(report.server_peer()? == report.local()?, "captured, too: {report:?}");
            Ok(())
        });
        cases.finish()
    })
}

const ASYNCIO: &str = r#"
import asyncio, sys
async def fetch(host, port, i):
    r, w = await asyncio.open_connection(host, port)
    peer = w.get_extra_info("peername")
    assert peer[:2] == (host, port), peer
    w.write(b"echo:%d:0\n" % 50000)
    data = bytes([i % 256]) * 50000
    w.write(data)
    await w.drain()
    assert await r.readexactly(50000) == data
    w.close()
    await w.wait_closed()
async def main(port, hosts):
    await asyncio.gather(*[fetch(host, port, i) for host in hosts for i in range(50)])
asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
print("done")
"#;

#[test]
fn an_asyncio_client_with_a_hundred_connections() -> Result<()> {
    lab(|lab| {
        let machine = Machine::new(lab)?;
        let backend = lab.serve(&lab.outside())?;
        let python = shunt_tests::peer::find("python3")?;
        let (python, port) = (python.to_string_lossy(), backend.port.to_string());
        let (v4, v6) = (machine.pod.gateway4.to_string(), machine.pod.gateway6.to_string());
        let out = machine.exec(&[], &[&python, "-c", ASYNCIO, &port, &v4, &v6])?.run()?;
        ensure!(out.stdout == "done\n", "{out:?}");
        let lines = || AccessLog::new(machine.log.clone()).lines().len();
        eventually("their lines", Duration::from_secs(5), || {
            ensure!(lines() == 100, "{} lines", lines());
            Ok(())
        })
    })
}

#[test]
fn the_status_is_the_commands() -> Result<()> {
    lab(|lab| {
        let machine = Machine::new(lab)?;
        let mut cases = Cases::new();
        let table: [(&[&str], i32); 6] = [
            (&["true"], 0),
            (&["sh", "-c", "exit 7"], 7),
            (&["sh", "-c", "kill -9 $$"], 137),
            (&["sh", "-c", "kill -TERM $$"], 143),
            (&["/no/such/program"], 127),
            (&["/etc/passwd"], 126),
        ];
        for (command, status) in table {
            cases.case(format_args!("{command:?}"), || {
                let out = machine.exec(&[], command)?.output()?;
                ensure!(out.code() == status, "{out:?}");
                Ok(())
            });
        }
        cases.case("SIGTERM is passed on", || {
            let mut running = machine.exec(&[], &["sh", "-c", "echo '{}'; exec sleep 30"])?.spawn()?;
            running.wait_event("start", 0, Duration::from_secs(10), |event| Some(event.clone()))?;
            running.signal(Signal::SIGTERM)?;
            let out = running.finish()?;
            ensure!(out.code() == 143, "{out:?}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn the_command_runs_as_it_is_told() -> Result<()> {
    lab(|lab| {
        let machine = Machine::new(lab)?;
        let mut cases = Cases::new();
        cases.case("stdin, stdout and the user are its own", || {
            let mut running = machine
                .exec(&["--user", "12345:12346"], &["sh", "-c", "read x; echo got $x; id -u; id -g"])?
                .with_stdin()
                .spawn()?;
            running.send("this")?;
            let out = running.finish()?;
            ensure!(out.stdout == "got this\n12345\n12346\n", "{out:?}");
            Ok(())
        });
        cases.case("policy flags", || {
            let backend = lab.serve(&lab.outside())?;
            let probe = shunt_tests::peer::built("shunt-probe")?;
            let to = backend.address(machine.pod.gateway4).to_string();
            let port = backend.port.to_string();
            let command = [&*probe.to_string_lossy(), "connect", "--to", &to, "--do", "addr"];
            for (flags, loopback) in [(&["-o", &*port] as &[&str], false), (&[], true)] {
                let report = machine.exec(flags, &command)?.json()?;
                let local = report["local"].as_str().unwrap_or_default();
                ensure!(local.starts_with("127.") == loopback, "{flags:?}: {report}");
            }
            Ok(())
        });
        cases.finish()
    })
}

/// What is left of a run, by the name that carries its pid.
fn leftovers(pid: i32) -> Result<Vec<PathBuf>> {
    let paths = [
        format!("/sys/fs/bpf/shunt-exec-{pid}"),
        format!("{}/shunt/exec-{pid}", shunt_tests::cgroup::mount()?.display()),
        format!("{}/shunt/proxy-{pid}", shunt_tests::cgroup::mount()?.display()),
        format!("/run/shunt/exec-{pid}"),
        format!("/run/netns/shunt-exec-{pid}"),
    ];
    Ok(paths.iter().map(PathBuf::from).filter(|path| path.exists()).collect())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    lab(|lab| {
        let machine = Machine::new(lab)?;
        let mut cases = Cases::new();
        let table: [(&[&str], &[&str]); 4] = [
            (&[], &["true"]),
            (&["--netns", "new"], &["true"]),
            (&[], &["sh", "-c", "sleep 60 & exit 3"]),
            (&[], &["/no/such/program"]),
        ];
        for (options, command) in table {
            cases.case(format_args!("{options:?} {command:?}"), || {
                let mut running = machine.exec(options, command)?.spawn()?;
                let pid = running.pid();
                running.wait(Duration::from_secs(20))?;
                let left = leftovers(pid)?;
                ensure!(left.is_empty(), "{left:?}: {}", running.stderr());
                Ok(())
            });
        }
        cases.case("of one that was killed, after the next one", || {
            let mut running = machine.exec(&[], &["sh", "-c", "echo '{}'; exec sleep 1"])?.spawn()?;
            running.wait_event("start", 0, Duration::from_secs(10), |event| Some(event.clone()))?;
            running.signal(Signal::SIGKILL)?;
            running.wait(Duration::from_secs(5))?;
            let pid = running.pid();
            eventually("it is swept", Duration::from_secs(10), || {
                machine.exec(&[], &["true"])?.run()?;
                let left = leftovers(pid)?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
        });
        cases.finish()
    })
}

#[test]
fn a_namespace_of_its_own_is_captured_both_ways() -> Result<()> {
    lab(|lab| {
        let machine = Machine::new(lab)?;
        let (_server, port) = web_server(lab, &lab.outside())?;
        let mut cases = Cases::new();
        cases.case("outbound", || {
            let url = format!("http://{}:{port}/", machine.pod.gateway4);
            let out = machine.exec(&["--netns", "new"], &["curl", "-sSf", "--noproxy", "*", &url])?.run()?;
            ensure!(out.stdout == "hello\n", "{out:?}");
            machine.carried((machine.pod.gateway4, port).into()).map(drop)
        });
        cases.case("inbound", || {
            let probe = shunt_tests::peer::built("shunt-probe")?;
            let script = format!("ip -4 -o addr show eth0 >&2; exec {} serve", probe.display());
            let mut running = machine.exec(&["--netns", "new"], &["sh", "-c", &script])?.spawn()?;
            let port =
                running.wait_event("port", 0, Duration::from_secs(15), |event| event["port"].as_u64())?;
            let text = running.stderr();
            let ip =
                text.split("inet ").nth(1).and_then(|rest| rest.split('/').next()).context("no address")?;
            let to: SocketAddr = format!("{ip}:{port}").parse()?;
            let report = Connect::new(machine.pod.place(), to).steps("addr echo:1000").run(lab)?;
            ensure!(report.server_peer()?.ip().to_string() == "127.0.0.6", "{report:?}");
            let line = machine.carried(to)?;
            ensure!(line["direction"] == "inbound", "{line}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn without_root_it_says_what_is_missing() -> Result<()> {
    lab(|lab| {
        let out = lab.shunt(&Place::default().user(12_345))?.args(["exec", "--", "true"]).output()?;
        ensure!(out.code() == 125, "{out:?}");
        let text = out.stderr.to_lowercase();
        ensure!(text.contains("root") || text.contains("cap_"), "{text}");
        Ok(())
    })
}
