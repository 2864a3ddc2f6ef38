//! OpenSSL's own client and server, and what they say of a connection.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::Lab;
use crate::process::{Place, Process};
use crate::wait::until;

const LIMIT: Duration = Duration::from_secs(15);

/// What `s_client` printed.
#[derive(Clone, Debug)]
pub struct Said {
    pub text: String,
    pub code: i32,
}

impl Said {
    /// `(New | Reused, version, cipher)`, where a handshake was done.
    fn session(&self) -> Option<(&str, &str, &str)> {
        let line =
            self.text.lines().rev().find(|line| line.contains(", Cipher is ") && !line.contains("(NONE)"))?;
        let (kind, rest) = line.split_once(", ")?;
        let (version, cipher) = rest.split_once(", Cipher is ")?;
        Some((kind, version, cipher))
    }

    pub fn version(&self) -> Option<&str> {
        self.session().map(|(_, version, _)| version)
    }

    pub fn cipher(&self) -> Option<&str> {
        self.session().map(|(_, _, cipher)| cipher)
    }

    pub fn resumed(&self) -> bool {
        self.session().is_some_and(|(kind, ..)| kind == "Reused")
    }

    /// What follows a label at the start of a line.
    pub fn after(&self, label: &str) -> Option<&str> {
        self.text.lines().find_map(|line| Some(line.trim_start().strip_prefix(label)?.trim()))
    }

    pub fn alpn(&self) -> Option<&str> {
        self.after("ALPN protocol:")
    }

    /// `0 (ok)`
    pub fn verified(&self) -> Option<&str> {
        self.after("Verify return code:")
    }

    /// How many certificates the server sent; needs `-showcerts`.
    pub fn certificates(&self) -> usize {
        let shown = self.text.split("Certificate chain\n").nth(1).unwrap_or_default();
        shown.split("---\nServer certificate").next().unwrap_or_default().matches("BEGIN CERTIFICATE").count()
    }

    /// The subject of the server's certificate.
    pub fn subject(&self) -> Option<&str> {
        self.after("subject=")
    }
}

/// Runs `s_client`, sends a line, and waits for a line that ends so, or for the end.
pub fn ask(lab: &Lab, to: SocketAddr, args: &[&str], line: &str, answer: &str) -> Result<Said> {
    let mut client = start(lab, to, args)?;
    // It fails where the client has ended already.
    let _ = client.send(line);
    until("answer to s_client", LIMIT, || {
        Ok((client.stdout().contains(answer) || client.exited()?.is_some()).then_some(()))
    })
    .with_context(|| format!("{}{}", client.stdout(), client.stderr()))?;
    // A ticket of TLS 1.3 comes after the handshake, maybe after the answer.
    if args.contains(&"-sess_out") {
        std::thread::sleep(Duration::from_millis(100));
    }
    said(client)
}

/// As [`ask`], with an answer that must come.
pub fn hello(lab: &Lab, to: SocketAddr, args: &[&str]) -> Result<Said> {
    let said = ask(lab, to, args, "hello", " hello")?;
    ensure!(said.text.contains(" hello"), "no answer: {}", said.text);
    Ok(said)
}

/// `s_client` with its input open.
pub fn start(lab: &Lab, to: SocketAddr, args: &[&str]) -> Result<Process> {
    let spawn = lab.program("openssl", &Place::default())?.args(["s_client", "-connect", &to.to_string()]);
    // A name of 127.0.0.1 is none.
    let named = args.contains(&"-servername");
    let spawn = if named { spawn } else { spawn.arg("-noservername") };
    spawn.args(args).with_stdin().spawn()
}

/// Ends a client's input, and waits for its end.
pub fn said(client: Process) -> Result<Said> {
    let out = client.finish()?;
    Ok(Said { code: out.code(), text: out.stdout + &out.stderr })
}

/// `s_server -rev`: answers each line with the line reversed.
pub struct Server {
    pub address: SocketAddr,
    process: Process,
}

impl Server {
    pub fn start(lab: &Lab, chain: &Path, key: &Path, args: &[&str]) -> Result<Self> {
        let spawn = lab.program("openssl", &Place::default())?;
        let spawn = spawn.args(["s_server", "-accept", "127.0.0.1:0", "-rev", "-cert_chain"]).arg(chain);
        let spawn = spawn.arg("-cert").arg(chain).arg("-key").arg(key).args(args);
        let mut process = spawn.with_stdin().spawn()?;
        let address = until("address of s_server", LIMIT, || {
            if let Some(status) = process.exited()? {
                bail!("s_server ended ({status}): {}{}", process.stdout(), process.stderr());
            }
            let text = process.stdout();
            Ok(text.lines().find_map(|line| line.strip_prefix("ACCEPT ")?.trim().parse().ok()))
        })?;
        Ok(Self { address, process })
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.stdout() + &self.process.stderr()
    }

    /// Waits until it has printed something.
    pub fn says(&self, what: &str) -> Result<()> {
        until(&format!("{what:?} of s_server"), LIMIT, || Ok(self.log().contains(what).then_some(())))
            .with_context(|| self.log())
    }
}
