//! `shunt check`: what is wrong with a configuration, all of it, without running it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use proxy_config::load::{self, Identity, Loaded};

use super::envoy::EnvoyArgs;
use super::say;
use crate::sidecar::bootstrap;
use crate::world::check;

#[derive(Args)]
pub(super) struct CheckArgs {
    /// What is accepted without effect is an error, too.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    envoy: EnvoyArgs,
}

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
        bail!("{name}: {}", bootstrap::summary(&problems));
    }
    say(format_args!("configuration '{name}' OK"))?;
    let (listeners, clusters) = (loaded.bootstrap.listeners.len(), loaded.bootstrap.clusters.len());
    let warnings = loaded.warnings.len();
    say(format_args!("{listeners} listeners, {clusters} clusters, {warnings} warnings"))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads and lowers what the flags name. Warnings go to the log; all errors come back as one.
pub(super) fn load(args: &EnvoyArgs, strict: bool) -> Result<Loaded> {
    let options = args.options(strict);
    let text = args.config_path.as_deref().map(bootstrap::read).transpose()?;
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
        Err(problems) => bail!("{name}: {}", bootstrap::summary(&problems)),
    };
    for warning in &loaded.warnings {
        log::warn!("{name}: {warning}");
    }
    Ok(loaded)
}
