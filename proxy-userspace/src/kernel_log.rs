//! The kernel programs' debug logs, into ours.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;

/// The ring is polled: debug logs need not be prompt, and the daemon need not wake up for them.
const POLL: Duration = Duration::from_millis(50);

/// Drains the ring of `object` on a thread of its own for as long as the process lives.
pub(crate) fn drain(mut object: Ebpf) -> anyhow::Result<()> {
    let mut logger = EbpfLogger::init(&mut object)?;
    std::thread::Builder::new().name("kernel-log".to_owned()).spawn(move || {
        // The object holds the ring.
        let _object = object;
        loop {
            logger.flush();
            std::thread::sleep(POLL);
        }
    })?;
    Ok(())
}
