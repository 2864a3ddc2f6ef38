//! `config.core.v3`: what other messages are made of.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as pb;

use crate::model;

lower! { "envoy.config.core.v3.TcpKeepalive" pb::TcpKeepalive => model::TcpKeepalive, cx;
    read { keepalive_probes, keepalive_time, keepalive_interval }
    {
        let _ = cx;
        let seconds = |value: u32| Duration::from_secs(value.into());
        Some(model::TcpKeepalive {
            probes: keepalive_probes.map(|v| v.value),
            time: keepalive_time.map(|v| seconds(v.value)),
            interval: keepalive_interval.map(|v| seconds(v.value)),
        })
    }
}
