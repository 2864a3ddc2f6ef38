//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How TCP Fast Open is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FastOpen {
    /// `sendto(MSG_FASTOPEN)`: there is no connect() call.
    SendTo,
    /// `TCP_FASTOPEN_CONNECT`: the SYN leaves with the first write.
    Connect,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// `--to`: the destination.
    pub(crate) to: Option<SocketAddr>,
    /// `--do`: steps on the connection, in order.
    pub(crate) steps: Vec<String>,
    /// `--nonblock`: connect without blocking, then poll.
    pub(crate) nonblock: bool,
    /// `--tfo sendto|connect`
    pub(crate) fast_open: Option<FastOpen>,
    /// `--device`: SO_BINDTODEVICE
    pub(crate) device: Option<String>,
    /// `--bind`: the source address; for `udp` too.
    pub(crate) bind: Option<IpAddr>,
    /// `--mptcp`: protocol 262
    pub(crate) mptcp: bool,
    /// `--exec`: a forked and executed child does it.
    pub(crate) exec: bool,
    /// `--first`: what the same socket connects to before, whatever comes of that.
    pub(crate) first: Option<SocketAddr>,
    /// `--parallel`: so many connections that are all open at once.
    pub(crate) parallel: usize,
    /// `--session`: steps come from stdin, after the connection is open.
    pub(crate) session: bool,
    /// `--connect`: a connected datagram socket.
    pub(crate) connect: bool,
    /// `--listen`: for `serve` one port, for `udp-serve` several addresses.
    pub(crate) listen: Vec<SocketAddr>,
    /// `--timeout`, in milliseconds: of the connect, or of a datagram's answer.
    pub(crate) timeout: Option<Duration>,
    /// `--interval`, in milliseconds: between the connections of `load`.
    pub(crate) interval: Duration,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self { parallel: 1, interval: Duration::from_millis(2), ..Self::default() };
        let mut args = args.iter();
        while let Some(name) = args.next() {
            options
                .set(name, &mut || args.next().map(String::as_str).ok_or(format!("{name} needs a value")))?;
        }
        Ok(options)
    }

    fn set<'a>(
        &mut self,
        name: &str,
        value: &mut dyn FnMut() -> Result<&'a str, String>,
    ) -> Result<(), String> {
        match name {
            "--to" => self.to = Some(parse(value()?)?),
            "--do" => self.steps.push(value()?.to_owned()),
            "--nonblock" => self.nonblock = true,
            "--tfo" => self.fast_open = Some(fast_open(value()?)?),
            "--device" => self.device = Some(value()?.to_owned()),
            "--bind" => self.bind = Some(parse(value()?)?),
            "--mptcp" => self.mptcp = true,
            "--exec" => self.exec = true,
            "--first" => self.first = Some(parse(value()?)?),
            "--parallel" => self.parallel = parse(value()?)?,
            "--session" => self.session = true,
            "--connect" => self.connect = true,
            "--listen" => self.listen.push(parse(value()?)?),
            "--timeout" => self.timeout = Some(Duration::from_millis(parse(value()?)?)),
            "--interval" => self.interval = Duration::from_millis(parse(value()?)?),
            other => return Err(format!("unknown option {other}")),
        }
        Ok(())
    }

    pub(crate) fn destination(&self) -> Result<SocketAddr, String> {
        self.to.ok_or_else(|| "--to is missing".to_owned())
    }
}

fn fast_open(text: &str) -> Result<FastOpen, String> {
    match text {
        "sendto" => Ok(FastOpen::SendTo),
        "connect" => Ok(FastOpen::Connect),
        other => Err(format!("--tfo {other}: sendto or connect")),
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}
