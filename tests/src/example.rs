//! The files of `examples/`, with their ports and addresses replaced by a test's.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// One example's text.
#[derive(Clone, Debug)]
pub struct Example {
    name: String,
    text: String,
}

impl Example {
    pub fn load(name: &str) -> Result<Self> {
        let path = directory().join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
        Ok(Self { name: name.to_owned(), text })
    }

    /// The names of all examples, those of subdirectories with their path.
    pub fn names() -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory()).context("no examples/")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.ends_with(".yaml").then_some(name));
        }
        names.sort();
        Ok(names)
    }

    /// Replaces a part that must be there.
    pub fn with(mut self, from: &str, to: &str) -> Result<Self> {
        ensure!(self.text.contains(from), "examples/{} has no {from:?}", self.name);
        self.text = self.text.replace(from, to);
        Ok(self)
    }

    /// Puts a listener or the admin on a free port.
    pub fn free(self, port: u16) -> Result<Self> {
        self.port(port, 0)
    }

    /// Replaces a port, however its field is spelt.
    pub fn port(mut self, from: u16, to: u16) -> Result<Self> {
        let spelt = ["port_value: ", "portValue: ", "\"port_value\": ", "\"portValue\": "];
        let before = self.text.clone();
        for key in spelt {
            for end in ["\n", " ", ","] {
                self.text = self.text.replace(&format!("{key}{from}{end}"), &format!("{key}{to}{end}"));
            }
        }
        ensure!(self.text != before || from == to, "examples/{} has no port {from}", self.name);
        Ok(self)
    }

    /// Replaces a port by a backend's.
    pub fn backend(self, port: u16, to: SocketAddr) -> Result<Self> {
        self.port(port, to.port())
    }

    pub fn yaml(&self) -> &str {
        &self.text
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}
