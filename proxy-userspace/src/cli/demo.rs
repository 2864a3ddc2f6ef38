//! placeholder
use std::process::ExitCode;
#[derive(clap::Args)]
pub(super) struct DemoArgs {}
pub(super) fn run(_args: DemoArgs, _flags: &[String]) -> anyhow::Result<ExitCode> { Ok(ExitCode::SUCCESS) }
