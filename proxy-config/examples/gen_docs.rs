//! Writes the generated documentation: `cargo run -p proxy-config --example gen_docs -- OUTDIR`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: gen_docs OUTDIR");
        return ExitCode::from(2);
    };
    let page = dir.join("policy-flags.md");
    match std::fs::write(&page, proxy_config::policy::markdown()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", page.display());
            ExitCode::FAILURE
        }
    }
}
