//! Access logs: the built-in line of JSON, and the loggers that a configuration asks for.
//!
//! A [`Logger`] is one compiled entry of an `access_log` list: filter, format, file. [`Sinks`] owns the files, one
//! writing thread each, shared by all loggers of the same path. Nothing here ever blocks the data path: what does
//! not fit is dropped and counted.

mod builtin;
mod file;
mod filter;
mod format;
pub(crate) mod http;
mod operator;
mod time;
mod tls;
pub(in crate::telemetry) mod value;
mod write;

pub use builtin::{AccessLog, Sink, open};
pub use file::{File, Sinks};
pub(crate) use filter::Filter;
pub use format::{Format, Text};
pub(crate) use tls::url_encoded_pem;

use std::cell::RefCell;
use std::sync::Arc;

use proxy_config::model;

use super::Entry;

/// Of a line's buffer; one that was longer is given back.
const LINE_KEPT: usize = 4 * 1024;

thread_local! {
    /// Lines are written here before they go to their files.
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Why an `access_log` entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("access log format: {0}")]
    Format(String),
    #[error("access log {path}: {source}")]
    Open { path: String, source: std::io::Error },
}

/// One entry of an `access_log` list.
#[derive(Debug)]
pub struct Logger {
    filter: Option<Filter>,
    format: Format,
    file: Arc<File>,
}

impl Logger {
    /// Compiles the format and opens the file, if no other logger has.
    pub fn new(model: &model::AccessLog, sinks: &Sinks) -> Result<Self, Error> {
        let format = Format::new(&model.format)?;
        let file = sinks.open(&model.sink)?;
        Ok(Self { filter: model.filter.as_ref().map(Filter::new), format, file })
    }

    /// Writes the line of `entry`, unless the filter is against it.
    pub fn log(&self, entry: &Entry) {
        if self.filter.as_ref().is_none_or(|filter| filter.accepts(entry)) {
            LINE.with_borrow_mut(|line| {
                line.clear();
                self.format.write_line(entry, line);
                self.file.write(line.as_bytes());
                line.shrink_to(LINE_KEPT);
            });
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
