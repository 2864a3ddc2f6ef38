//! CEL, as much of it as Istio's Telemetry API makes use of: attributes, literals, operators and a few functions.
//!
//! An expression is parsed once, when the configuration is read; what it says of a stream is the daemon's to find out.

mod parse;

use std::sync::Arc;

use regex::Regex;

#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Arc<str>),
    List(Vec<Expression>),
    /// An attribute, such as `request`.
    Name(Arc<str>),
    /// `of.field`, and `of['field']` where that is a literal.
    Field {
        of: Box<Expression>,
        field: Arc<str>,
    },
    Index {
        of: Box<Expression>,
        at: Box<Expression>,
    },
    /// `has(of.field)`.
    Has(Box<Expression>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Binary {
        operator: Operator,
        left: Box<Expression>,
        right: Box<Expression>,
    },
    If {
        condition: Box<Expression>,
        then: Box<Expression>,
        other: Box<Expression>,
    },
    Call {
        function: Function,
        on: Box<Expression>,
        argument: Option<Box<Expression>>,
    },
    Matches {
        on: Box<Expression>,
        regex: Pattern,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Size,
    ToString,
    ToInt,
    StartsWith,
    EndsWith,
    Contains,
}

/// A regular expression that is known from the start.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Why an expression is none, or none that is understood here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) String);

/// What an expression may ask about.
pub const ATTRIBUTES: [&str; 10] = [
    "request",
    "response",
    "connection",
    "upstream",
    "source",
    "destination",
    "metadata",
    "filter_state",
    "node",
    "xds",
];

impl Expression {
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        parse::parse(text)
    }

    /// Names that are no attribute: what is asked of them is never known.
    pub fn strangers(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.walk(&mut |expression| {
            if let Self::Name(name) = expression
                && !ATTRIBUTES.contains(&&**name)
            {
                found.push(&**name);
            }
        });
        found
    }

    fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Self)) {
        visit(self);
        match self {
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Double(_) | Self::Text(_) | Self::Name(_) => {}
            Self::List(list) => list.iter().for_each(|one| one.walk(visit)),
            Self::Field { of, .. } => of.walk(visit),
            Self::Has(of) | Self::Not(of) | Self::Negative(of) => of.walk(visit),
            Self::Index { of, at } => [of, at].into_iter().for_each(|one| one.walk(visit)),
            Self::Binary { left, right, .. } => [left, right].into_iter().for_each(|one| one.walk(visit)),
            Self::If { condition, then, other } => {
                [condition, then, other].into_iter().for_each(|one| one.walk(visit));
            }
            Self::Call { on, argument, .. } => {
                on.walk(visit);
                argument.iter().for_each(|one| one.walk(visit));
            }
            Self::Matches { on, .. } => on.walk(visit),
        }
    }
}
