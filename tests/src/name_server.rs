//! A small DNS server: the A and AAAA records that a test gives it, and a count of what it was asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

const A: u16 = 1;
const AAAA: u16 = 28;

/// A server on a port of its own; it ends when dropped.
pub struct NameServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU32,
    ttl: AtomicU32,
    names: Mutex<BTreeMap<String, Vec<IpAddr>>>,
}

impl NameServer {
    pub fn start(ttl: u32) -> Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared { ttl: AtomicU32::new(ttl), ..Shared::default() });
        let ours = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&socket, &ours));
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// The addresses of a name from now on.
    pub fn set(&self, name: &str, addresses: &[&str]) -> Result<()> {
        let addresses = addresses.iter().map(|ip| Ok(ip.parse()?)).collect::<Result<_>>()?;
        self.shared.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), addresses);
        Ok(())
    }

    /// How many questions there were.
    pub fn asked(&self) -> u32 {
        self.shared.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut buf = [0; 512];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buf) else { continue };
        shared.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(answer) = answer(&buf[..len], shared) {
            // A resolver that is gone asks no more.
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn answer(question: &[u8], shared: &Shared) -> Option<Vec<u8>> {
    let (name, end) = name(question, 12)?;
    let of_type = u16::from_be_bytes([*question.get(end)?, *question.get(end + 1)?]);
    let names = shared.names.lock().unwrap_or_else(PoisonError::into_inner);
    let known = names.get(&name);
    let wanted = |ip: &&IpAddr| (ip.is_ipv4() && of_type == A) || (ip.is_ipv6() && of_type == AAAA);
    let found: Vec<IpAddr> = known.into_iter().flatten().filter(wanted).copied().collect();
    let mut out = question.get(..2)?.to_vec();
    // An answer, recursion available; no such name where nothing is known of it.
    out.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }]);
    out.extend([0, 1, 0, u8::try_from(found.len()).ok()?, 0, 0, 0, 0]);
    out.extend(question.get(12..end + 4)?);
    for ip in found {
        let data = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // The name is the question's.
        out.extend([0xc0, 12]);
        out.extend(of_type.to_be_bytes());
        out.extend([0, 1]);
        out.extend(shared.ttl.load(Ordering::Relaxed).to_be_bytes());
        out.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

/// The name of a question, and where it ends.
fn name(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let len = usize::from(*packet.get(at)?);
        at += 1;
        if len == 0 {
            return Some((labels.join(".").to_lowercase(), at));
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + len)?).into_owned());
        at += len;
    }
}
