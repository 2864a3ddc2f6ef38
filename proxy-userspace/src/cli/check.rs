//! `shunt check`: what is wrong with a configuration, all of it, without running it.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use proxy_config::load::{self, Identity, Loaded, Options};

use super::envoy::EnvoyArgs;
use super::say;
use crate::world::check;

#[derive(Args)]
pub(super) struct CheckArgs {
    /// What is accepted without effect is an error, too.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    envoy: EnvoyArgs,
}

/// The largest file that is read: far above any bootstrap, far below what would hurt.
const MOST: u64 = 256 << 20;

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode> {
    if !args.envoy.configured() {
        bail!("nothing to check: give -c FILE or --config-yaml TEXT");
    }
    verdict(&args.envoy, Some(&load(&args.envoy, args.strict)?))
}

/// Says that a configuration is good, in Envoy's words.
pub(super) fn verdict(args: &EnvoyArgs, loaded: Option<&Loaded>) -> Result<ExitCode> {
    let Some(loaded) = loaded else { bail!("nothing to validate: give -c FILE or --config-yaml TEXT") };
    let name = args.config_path.as_deref().unwrap_or(Path::new("")).display();
    let problems = check::transports(&loaded.bootstrap);
    if !problems.is_empty() {
        bail!("{name}: {}", summary(&problems));
    }
    say(format_args!("configuration '{name}' OK"))?;
    let (listeners, clusters) = (loaded.bootstrap.listeners.len(), loaded.bootstrap.clusters.len());
    let warnings = loaded.warnings.len();
    say(format_args!("{listeners} listeners, {clusters} clusters, {warnings} warnings"))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads and lowers what the flags name. Warnings go to the log; all errors come back as one.
pub(super) fn load(args: &EnvoyArgs, strict: bool) -> Result<Loaded> {
    let allow_unknown_fields = args.allow_unknown_static_fields || args.allow_unknown_fields;
    let options = Options { strict, allow_unknown_fields };
    let text = args.config_path.as_deref().map(read).transpose()?;
    let (text, overlay) = match (&text, &args.config_yaml) {
        (Some(text), overlay) => (text.as_str(), overlay.as_deref()),
        (None, Some(inline)) => (inline.as_str(), None),
        (None, None) => bail!("no configuration"),
    };
    let name = args.config_path.as_deref().unwrap_or(Path::new("--config-yaml")).display();
    let identity = Identity {
        id: args.service_node.clone(),
        cluster: args.service_cluster.clone(),
        zone: args.service_zone.clone(),
    };
    let loaded = match load::bootstrap_as(text, overlay, options, &identity) {
        Ok(loaded) => loaded,
        Err(problems) => bail!("{name}: {}", summary(&problems)),
    };
    for warning in &loaded.warnings {
        log::warn!("{name}: {warning}");
    }
    Ok(loaded)
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("{shown}"))?;
    if !size.is_file() && size.is_dir() {
        bail!("{shown}: is a directory");
    }
    if size.len() > MOST {
        bail!("{shown}: is {} MB; more than {} MB is not read", size.len() >> 20, MOST >> 20);
    }
    let bytes = std::fs::read(path).with_context(|| format!("{shown}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let (valid, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
        let line = bytes.iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        anyhow::anyhow!("{shown}: line {line}: not UTF-8")
    })
}

fn summary(problems: &[impl Display]) -> String {
    let lines: Vec<_> = problems.iter().map(|problem| format!("  {problem}")).collect();
    let count = problems.len();
    format!("{count} problem{}\n{}", if count == 1 { "" } else { "s" }, lines.join("\n"))
}
