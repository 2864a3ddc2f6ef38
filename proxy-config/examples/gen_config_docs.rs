//! Writes the list of all configuration fields: `cargo run -p proxy-config --example gen_config_docs -- OUTDIR`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: gen_config_docs OUTDIR");
        return ExitCode::from(2);
    };
    let page = dir.join("config-support.md");
    match std::fs::write(&page, proxy_config::lower::markdown()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", page.display());
            ExitCode::FAILURE
        }
    }
}
