//! The kernel programs' debug logs, into ours.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use proxy_common::verdict::Rule;

/// The ring is polled: debug logs need not be prompt, and the daemon need not wake up for them.
const POLL: Duration = Duration::from_millis(50);

/// Drains the ring of `object` on a thread of its own for as long as the process lives.
pub(crate) fn drain(mut object: Ebpf) -> anyhow::Result<()> {
    let mut logger = EbpfLogger::init_with_logger(&mut object, Named)?;
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

/// The programs send a rule's number: its name would cost them more than the rest of the line.
struct Named;

impl Log for Named {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        log::logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        log::logger().log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{}", named(&record.args().to_string())))
                .build(),
        );
    }

    fn flush(&self) {
        log::logger().flush();
    }
}

fn named(line: &str) -> String {
    let rule = line.rsplit_once("by rule ").and_then(|(head, number)| {
        let rule = Rule::ALL.get(number.trim().parse::<usize>().ok()?)?;
        Some(format!("{head}by rule {}", rule.name()))
    });
    rule.unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rules_number_becomes_its_name() {
        let n = Rule::OutAll as u32;
        assert_eq!(
            named(&format!("netns 7 port 80 -> 15001 by rule {n}")),
            "netns 7 port 80 -> 15001 by rule out_all"
        );
        assert_eq!(named("by rule 9999"), "by rule 9999");
        assert_eq!(named("anything"), "anything");
    }
}
