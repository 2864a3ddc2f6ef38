//! The secrets of `examples/transport_socket-*`: a mesh's authority, and what each of its workloads has.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::bootstrap::DIR;
use crate::example::Example;
use crate::lab::Lab;
use crate::pki::{Ca, Identity, Leaf, Pki, Validity};

pub const GATEWAY: &str = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account";
pub const PRODUCTPAGE: &str = "spiffe://cluster.local/ns/istio/sa/bookinfo-productpage";

/// A workload with its certificate, as Istio's agent gives it.
pub struct Workload {
    pub identity: Identity,
    /// What is `/etc/shunt` in the examples.
    dir: PathBuf,
}

pub struct Mesh<'a> {
    pub ca: Ca<'a>,
    lab: &'a Lab,
}

impl<'a> Mesh<'a> {
    pub fn new(lab: &'a Lab) -> Result<Self> {
        Ok(Self { ca: Pki::new(lab)?.root("cluster.local")?, lab })
    }

    /// A certificate of the mesh, outside of any workload.
    pub fn issue(&self, name: &str, id: &str, validity: Validity) -> Result<Identity> {
        self.ca.issue(name, &Leaf::spiffe(id).valid(validity))
    }

    pub fn workload(&self, name: &str, id: &str) -> Result<Workload> {
        let identity = self.issue(name, id, Validity::Now)?;
        let dir = self.lab.dir().join(format!("etc-{name}"));
        for sub in ["sds", "certs", "dynamic"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        for (from, to) in [
            (identity.chain.as_path(), "certs/cert-chain.pem"),
            (&identity.key, "certs/key.pem"),
            (self.ca.file(), "certs/root-cert.pem"),
        ] {
            fs::copy(from, dir.join(to))?;
        }
        let workload = Workload { identity, dir };
        for file in ["sds/default.yaml", "sds/ROOTCA.yaml", "dynamic/lds.yaml", "dynamic/cds.yaml"] {
            fs::write(workload.dir.join(file), workload.places(Example::load(file)?)?.yaml())?;
        }
        Ok(workload)
    }
}

impl Workload {
    /// An example as this workload runs it: with its own secrets, and traces in the proxy's directory.
    pub fn example(&self, name: &str) -> Result<Example> {
        self.places(Example::load(name)?)?.free(15_000)
    }

    fn places(&self, mut example: Example) -> Result<Example> {
        let here =
            [("/etc/shunt", self.dir.display().to_string()), ("/var/lib/istio/data/", format!("{DIR}/"))];
        for (from, to) in here {
            if example.yaml().contains(from) {
                example = example.with(from, &to)?;
            }
        }
        Ok(example)
    }
}
