//! `control-plane PORT NODE…`: serves the snapshots that come line by line on its standard input, each for all nodes.
//!
//! A snapshot is `{ "version": …, "resources": [ { "type_url": …, "name": …, "value": HEX } ] }`. Each is confirmed on
//! standard output. The protocol, both the state of the world and deltas, is the crates' own.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::BufRead as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde_json::{Value, json};
use xds_cache::{Cache as _, ShardedCache, Snapshot};
use xds_core::{BoxResource, NodeHash, Resource, TypeUrl};
use xds_server::XdsServerBuilder;

type Fault = Box<dyn Error + Send + Sync>;

/// A resource that is encoded already.
#[derive(Debug)]
struct Encoded {
    type_url: String,
    name: String,
    value: Vec<u8>,
}

impl Resource for Encoded {
    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn encode(&self) -> Result<prost_types::Any, Fault> {
        Ok(prost_types::Any { type_url: self.type_url.clone(), value: self.value.clone() })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Fault> {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().ok_or("no port")?.parse()?;
    let nodes: Vec<NodeHash> = args.map(|id| NodeHash::from_id(&id)).collect();
    let cache = Arc::new(ShardedCache::new());
    let server =
        XdsServerBuilder::new().cache(Arc::clone(&cache)).enable_sotw().enable_delta().build()?;
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let answer = match snapshot(&line) {
                Ok(snapshot) => {
                    nodes.iter().for_each(|node| cache.set_snapshot(*node, snapshot.clone()));
                    json!({ "version": snapshot.version() })
                }
                Err(error) => json!({ "error": error.to_string() }),
            };
            println!("{answer}");
        }
    });
    server.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    Ok(())
}

fn snapshot(line: &str) -> Result<Snapshot, Fault> {
    let said: Value = serde_json::from_str(line)?;
    let text = |value: &Value, key: &str| -> Result<String, Fault> {
        Ok(value[key].as_str().ok_or_else(|| format!("no {key}"))?.to_owned())
    };
    let mut types: BTreeMap<String, Vec<BoxResource>> = BTreeMap::new();
    for resource in said["resources"].as_array().ok_or("no resources")? {
        let type_url = text(resource, "type_url")?;
        let encoded = Encoded {
            type_url: type_url.clone(),
            name: text(resource, "name")?,
            value: bytes(&text(resource, "value")?)?,
        };
        types.entry(type_url).or_default().push(Arc::new(encoded));
    }
    let builder = Snapshot::builder().version(text(&said, "version")?);
    Ok(types.into_iter().fold(builder, |b, (url, all)| b.resources(TypeUrl::new(url), all)).build())
}

fn bytes(hex: &str) -> Result<Vec<u8>, Fault> {
    let pair = |at| {
        let digits = hex.get(at..at + 2).ok_or("half a byte")?;
        u8::from_str_radix(digits, 16).map_err(Fault::from)
    };
    (0..hex.len()).step_by(2).map(pair).collect()
}
