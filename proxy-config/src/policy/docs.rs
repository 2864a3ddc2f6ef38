//! What the flag table says, for a terminal and for the documentation.

use std::fmt::Write;

use super::flags::{FLAGS, Flag, Kind, Origin, Status};

/// The flags for `--help`, one paragraph each, lines of at most 100 characters.
pub fn help() -> String {
    let mut out = String::new();
    for origin in [Origin::Ours, Origin::Istio, Origin::IstioEnv, Origin::Legacy] {
        let _ = writeln!(out, "Policy flags ({}):", origin.label());
        for flag in FLAGS.iter().filter(|f| f.origin == origin) {
            help_of(flag, &mut out);
        }
        out.push('\n');
    }
    out
}

fn help_of(flag: &Flag, out: &mut String) {
    let short = flag.short.map_or("    ".into(), |c| format!("-{c}, "));
    let value = match flag.kind {
        Kind::Bool => String::new(),
        Kind::OptionalDuration => "[=DURATION]".into(),
        Kind::Port | Kind::Number | Kind::Duration | Kind::List | Kind::ListOrAll | Kind::Word => {
            format!(" <{}>", flag.kind.label())
        }
    };
    let _ = writeln!(out, "  {short}--{}{value}", flag.long);
    let default = match flag.default {
        "" | "false" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let text = format!("{}{default} [env: {}]. {}", flag.help, flag.env().join(", "), outcome(flag.status));
    for line in wrapped(text.trim_end(), 90) {
        let _ = writeln!(out, "          {line}");
    }
}

/// The table of every flag, as a page of Markdown.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Policy flags\n\n\
         <!-- Generated: cargo run -p proxy-config --example gen_docs -- docs -->\n\n\
         The flags of istio-iptables, its variables of the environment, and shunt's own. A flag wins over the \
         environment, the environment over the default. An empty value of a list (`-b ''`) is a value: it \
         switches the list off. A bad value is an error that names it; nothing is ignored in silence.\n\n\
         | Flag | Value | Default | Environment | From | Status | What it says |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for flag in FLAGS {
        let env: Vec<_> = flag.env().iter().map(|e| format!("`{e}`")).collect();
        let default = if flag.default.is_empty() { "none".into() } else { format!("`{}`", flag.default) };
        let short = flag.short.map(|c| format!("`-{c}` ")).unwrap_or_default();
        let _ = writeln!(
            out,
            "| {short}`--{}` | {} | {default} | {} | {} | {} | {} |",
            flag.long,
            flag.kind.label(),
            env.join(" "),
            flag.origin.label(),
            status(flag.status),
            cell(flag),
        );
    }
    out
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Honoured => "honoured",
        Status::NoMeaning(_) => "no effect",
        Status::Refused(_) => "refused",
    }
}

fn outcome(status: Status) -> String {
    match status {
        Status::Honoured => String::new(),
        Status::NoMeaning(why) => format!("No effect: {why}."),
        Status::Refused(why) => format!("Refused unless empty: {why}."),
    }
}

fn cell(flag: &Flag) -> String {
    format!("{}. {}", flag.help, outcome(flag.status)).trim_end().to_string()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_in_the_help_and_in_the_page() {
        let (help, page) = (help(), markdown());
        for flag in FLAGS {
            assert!(help.contains(&format!("--{}", flag.long)), "{}", flag.long);
            assert!(page.contains(&format!("`--{}`", flag.long)), "{}", flag.long);
        }
        assert!(help.lines().all(|l| l.len() <= 100));
        assert_eq!(page.lines().filter(|l| l.starts_with("| ")).count(), FLAGS.len() + 1);
    }

    /// The committed page is the generated one.
    #[test]
    fn the_committed_page_is_up_to_date() {
        let committed = include_str!("../../../docs/policy-flags.md");
        let fix = "run: cargo run -p proxy-config --example gen_docs -- docs";
        assert!(committed == markdown(), "docs/policy-flags.md is stale; {fix}");
    }
}
