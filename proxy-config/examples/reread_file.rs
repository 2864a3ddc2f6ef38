//! Reads a file of listeners, changes one of them, and says how long each reading took:
//! `cargo run --release -p proxy-config --example reread_file -- [COUNT]`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use proxy_config::model::Listener;
use proxy_config::xds::file::{FileResponse, Reader};
use proxy_config::xds::{Decoder, Kind, Store};

fn main() -> ExitCode {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(5000);
    let mut reader = Reader::new(Kind::Listener);
    let decoder = Decoder::default().with_store(Store::default().into());
    let mut held = Vec::new();
    for (what, changed) in [("at first", None), ("unchanged", None), ("one changed", Some(count / 2))] {
        let text = file(count, changed);
        let start = Instant::now();
        let Ok(FileResponse { resources, .. }) = reader.read(&text) else { return ExitCode::FAILURE };
        let read = start.elapsed();
        let start = Instant::now();
        let decoded: Vec<_> =
            resources.iter().filter_map(|raw| decoder.decode::<Listener>(raw).ok()).collect();
        let decode = start.elapsed();
        println!(
            "{what}: {} of {} bytes read in {read:?}, {} decoded in {decode:?}",
            resources.len(),
            text.len(),
            decoded.len()
        );
        held = decoded;
    }
    if held.len() == count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Of which one may have another cluster.
fn file(count: usize, changed: Option<usize>) -> String {
    let mut text = "version_info: '1'\nresources:\n".to_owned();
    for index in 0..count {
        let cluster = if changed == Some(index) { "changed" } else { "outbound|80||svc" };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: 10.{}.{}.{}_80
  address: {{socket_address: {{address: 10.{}.{}.{}, port_value: 80}}}}
  bind_to_port: false
  traffic_direction: OUTBOUND
  filter_chains:
  - filters:
    - name: istio.stats
      typed_config: {{'@type': type.googleapis.com/stats.PluginConfig}}
    - name: envoy.filters.network.tcp_proxy
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: {cluster}-{index}
        cluster: {cluster}-{index}
        idle_timeout: 3600s
        access_log:
        - name: envoy.access_loggers.file
          typed_config:
            '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
            path: /dev/stdout
",
            index >> 16,
            (index >> 8) & 255,
            index & 255,
            index >> 16,
            (index >> 8) & 255,
            index & 255,
        );
    }
    text
}
