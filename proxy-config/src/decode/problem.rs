//! Collects what is wrong with a text, up to a number that somebody will still read.

use crate::diagnostic::{Diagnostic, Path, Position, Severity};

/// So many errors and so many warnings are kept, and the others counted.
const KEPT: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct Problems {
    errors: Kept,
    warnings: Kept,
}

#[derive(Debug, Default)]
struct Kept {
    diagnostics: Vec<Diagnostic>,
    left_off: usize,
}

/// What ends the reading of a text.
#[derive(Debug)]
pub(crate) struct Fatal {
    position: Position,
    why: String,
}

impl Fatal {
    pub(crate) fn new(position: Position, why: impl Into<String>) -> Self {
        Self { position, why: why.into() }
    }
}

impl From<Fatal> for Diagnostic {
    fn from(Fatal { position, why }: Fatal) -> Self {
        Self { severity: Severity::Error, position: Some(position), path: Path::default(), why }
    }
}

impl Problems {
    pub(crate) fn error(&mut self, position: Option<Position>, path: Path, why: impl Into<String>) {
        self.push(Diagnostic { severity: Severity::Error, position, path, why: why.into() });
    }

    pub(crate) fn warning(&mut self, position: Option<Position>, path: Path, why: impl Into<String>) {
        self.push(Diagnostic { severity: Severity::Warning, position, path, why: why.into() });
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        match diagnostic.severity {
            Severity::Error => self.errors.push(diagnostic),
            Severity::Warning => self.warnings.push(diagnostic),
        }
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.errors.extend(other.errors);
        self.warnings.extend(other.warnings);
    }

    /// Whether further problems are only counted, so that no words need to be found for them.
    pub(crate) fn full(&self) -> bool {
        self.errors.diagnostics.len() >= KEPT || self.warnings.diagnostics.len() >= KEPT
    }

    pub(crate) fn failed(&self) -> bool {
        !self.errors.diagnostics.is_empty()
    }

    /// The errors and the warnings, each in the order of the text.
    pub(crate) fn finish(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        (self.errors.finish(Severity::Error, "errors"), self.warnings.finish(Severity::Warning, "warnings"))
    }
}

impl Kept {
    fn push(&mut self, diagnostic: Diagnostic) {
        if self.diagnostics.len() < KEPT {
            self.diagnostics.push(diagnostic);
        } else {
            self.left_off += 1;
        }
    }

    fn extend(&mut self, other: Self) {
        self.left_off += other.left_off;
        for diagnostic in other.diagnostics {
            self.push(diagnostic);
        }
    }

    fn finish(mut self, severity: Severity, what: &str) -> Vec<Diagnostic> {
        // Without a position: at the end.
        self.diagnostics.sort_by_key(|d| (d.position.is_none(), d.position));
        if self.left_off > 0 {
            let why = format!("and {} more {what}", self.left_off);
            self.diagnostics.push(Diagnostic { severity, position: None, path: Path::default(), why });
        }
        self.diagnostics
    }
}
