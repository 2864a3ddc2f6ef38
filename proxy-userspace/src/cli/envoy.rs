//! Envoy's command line, as Envoy 1.40 has it: what means something here, and what is accepted and named.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use proxy_config::load::Options;

/// The flags that configure. `-l`, `--drain-time-s` and `--version` are the command's own.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Envoy's flags")]
pub(super) struct EnvoyArgs {
    /// A bootstrap, YAML or JSON.
    #[arg(short = 'c', long, value_name = "FILE")]
    pub(super) config_path: Option<PathBuf>,
    /// A bootstrap as text, merged over the file's.
    #[arg(long, value_name = "TEXT")]
    pub(super) config_yaml: Option<String>,
    /// `validate` checks the configuration and ends.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub(super) mode: Mode,
    /// Worker threads; 0 is one per CPU, as is the default.
    #[arg(long, value_name = "N")]
    pub(super) concurrency: Option<usize>,
    /// Levels of parts of the log: `upstream:debug,config:trace`.
    #[arg(long, value_name = "LIST")]
    pub(super) component_log_level: Option<String>,
    /// Take fields that Envoy does not know in static configuration, with a warning.
    #[arg(long)]
    pub(super) allow_unknown_static_fields: bool,
    /// The older name of the former.
    #[arg(long)]
    pub(super) allow_unknown_fields: bool,
    /// Over the bootstrap's node: its cluster.
    #[arg(long, value_name = "NAME")]
    pub(super) service_cluster: Option<String>,
    /// Over the bootstrap's node: its id.
    #[arg(long, value_name = "ID")]
    pub(super) service_node: Option<String>,
    /// Over the bootstrap's node: its zone.
    #[arg(long, value_name = "ZONE")]
    pub(super) service_zone: Option<String>,
    /// Write the address of the bootstrap's admin listener to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) admin_address_path: Option<PathBuf>,
    /// Append the log to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) log_path: Option<PathBuf>,
    /// How long access log lines may gather before they are written, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub(super) file_flush_interval_msec: u64,
    #[command(flatten)]
    pub(super) ignored: Ignored,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    #[default]
    Serve,
    Validate,
}

/// Accepted, because launchers pass them; each is named once at the start, with the reason.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Ignored {
    #[arg(long, hide = true, value_name = "FORMAT")]
    log_format: Option<String>,
    #[arg(long, hide = true)]
    log_format_escaped: bool,
    #[arg(long, hide = true)]
    enable_fine_grain_logging: bool,
    #[arg(long, hide = true)]
    log_stacktrace_single_entry: bool,
    #[arg(long, hide = true)]
    skip_deprecated_logs: bool,
    #[arg(long, hide = true)]
    reject_unknown_dynamic_fields: bool,
    #[arg(long, hide = true)]
    ignore_unknown_dynamic_fields: bool,
    #[arg(long, hide = true, value_name = "v4|v6", value_parser = ["v4", "v6"])]
    local_address_ip_version: Option<String>,
    #[arg(long, hide = true, value_parser = ["gradual", "immediate"])]
    drain_strategy: Option<String>,
    #[arg(long, hide = true)]
    parent_shutdown_time_s: Option<u64>,
    #[arg(long, hide = true)]
    disable_hot_restart: bool,
    #[arg(long, hide = true)]
    restart_epoch: Option<u64>,
    #[arg(long, hide = true)]
    base_id: Option<u64>,
    #[arg(long, hide = true)]
    use_dynamic_base_id: bool,
    #[arg(long, hide = true)]
    base_id_path: Option<String>,
    #[arg(long, hide = true)]
    skip_hot_restart_on_no_parent: bool,
    #[arg(long, hide = true)]
    skip_hot_restart_parent_stats: bool,
    #[arg(long, hide = true)]
    socket_path: Option<String>,
    #[arg(long, hide = true)]
    socket_mode: Option<String>,
    #[arg(long, hide = true)]
    file_flush_min_size_kb: Option<u64>,
    #[arg(long, hide = true)]
    enable_mutex_tracing: bool,
    #[arg(long, hide = true)]
    cpuset_threads: bool,
    #[arg(long, hide = true)]
    disable_extensions: Option<String>,
    #[arg(long, hide = true)]
    enable_core_dump: bool,
    #[arg(long, hide = true)]
    stats_tag: Vec<String>,
}

impl EnvoyArgs {
    /// Whether there is a configuration to run.
    pub(super) fn configured(&self) -> bool {
        self.config_path.is_some() || self.config_yaml.is_some()
    }

    /// `command_line_options` of `/server_info`.
    pub(super) fn shown(&self, drain_time_s: u64) -> serde_json::Value {
        let path =
            |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        serde_json::json!({
            "config_path": path(&self.config_path),
            "config_yaml": self.config_yaml.clone().unwrap_or_default(),
            "concurrency": self.workers(),
            // There is no hot restart here.
            "disable_hot_restart": true,
            "mode": match self.mode { Mode::Serve => "Serve", Mode::Validate => "Validate" },
            "drain_time": format!("{drain_time_s}s"),
            "file_flush_interval": format!("{}.{:03}s", self.file_flush_interval_msec / 1000, self.file_flush_interval_msec % 1000),
            "service_cluster": self.service_cluster.clone().unwrap_or_default(),
            "service_node": self.service_node.clone().unwrap_or_default(),
            "service_zone": self.service_zone.clone().unwrap_or_default(),
            "admin_address_path": path(&self.admin_address_path),
            "log_path": path(&self.log_path),
            "component_log_level": self.component_log_level.clone().unwrap_or_default(),
            "allow_unknown_static_fields": self.allow_unknown_static_fields,
        })
    }

    /// How bootstraps are read.
    pub(super) fn options(&self, strict: bool) -> Options {
        Options {
            strict,
            allow_unknown_fields: self.allow_unknown_static_fields || self.allow_unknown_fields,
        }
    }

    /// One per CPU unless said otherwise.
    pub(super) fn workers(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        self.concurrency.filter(|n| *n > 0).unwrap_or_else(cpus)
    }
}

impl Ignored {
    /// What was given and has no effect here: the flag and why.
    pub(super) fn named(&self) -> Vec<(&'static str, &'static str)> {
        const LOGS: &str = "the log has one format";
        const RESTART: &str = "there is no hot restart; SIGTERM drains";
        const DYNAMIC: &str = "there is no dynamic configuration yet";
        let given = [
            (self.log_format.is_some(), "--log-format", LOGS),
            (self.log_format_escaped, "--log-format-escaped", LOGS),
            (self.enable_fine_grain_logging, "--enable-fine-grain-logging", LOGS),
            (self.log_stacktrace_single_entry, "--log-stacktrace-single-entry", LOGS),
            (self.skip_deprecated_logs, "--skip-deprecated-logs", "each deprecation is named once anyway"),
            (self.reject_unknown_dynamic_fields, "--reject-unknown-dynamic-fields", DYNAMIC),
            (self.ignore_unknown_dynamic_fields, "--ignore-unknown-dynamic-fields", DYNAMIC),
            (
                self.local_address_ip_version.is_some(),
                "--local-address-ip-version",
                "nothing here depends on the machine's address",
            ),
            (
                self.drain_strategy.is_some(),
                "--drain-strategy",
                "connections are left alone until the drain time is over",
            ),
            (self.parent_shutdown_time_s.is_some(), "--parent-shutdown-time-s", RESTART),
            (self.disable_hot_restart, "--disable-hot-restart", RESTART),
            (self.restart_epoch.is_some_and(|epoch| epoch > 0), "--restart-epoch", RESTART),
            (self.base_id.is_some(), "--base-id", RESTART),
            (self.use_dynamic_base_id, "--use-dynamic-base-id", RESTART),
            (self.base_id_path.is_some(), "--base-id-path", RESTART),
            (self.skip_hot_restart_on_no_parent, "--skip-hot-restart-on-no-parent", RESTART),
            (self.skip_hot_restart_parent_stats, "--skip-hot-restart-parent-stats", RESTART),
            (self.socket_path.is_some(), "--socket-path", RESTART),
            (self.socket_mode.is_some(), "--socket-mode", RESTART),
            (
                self.file_flush_min_size_kb.is_some(),
                "--file-flush-min-size-kb",
                "lines wait by time, not by size",
            ),
            (self.enable_mutex_tracing, "--enable-mutex-tracing", "there is no mutex tracing"),
            (self.cpuset_threads, "--cpuset-threads", "the CPU set is always respected"),
            (self.disable_extensions.is_some(), "--disable-extensions", "every extension is built in"),
            (self.enable_core_dump, "--enable-core-dump", "the system decides about core dumps"),
            (!self.stats_tag.is_empty(), "--stats-tag", "stats have no universal tags yet"),
        ];
        given.into_iter().filter(|(given, ..)| *given).map(|(_, flag, why)| (flag, why)).collect()
    }
}
