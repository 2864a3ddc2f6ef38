//! From the text of an expression to its tree. Bounded in length and in depth: it comes from a control plane.

use regex::Regex;

use super::{Expression, Function, Malformed, Operator, Pattern};

const LONGEST: usize = 4096;
const DEEPEST: usize = 64;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Int(i64),
    Double(f64),
    Sign(&'static str),
}

/// The longer first.
const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}",
];

/// By how tightly they bind; those of one level go from left to right.
const LEVELS: [&[(&str, Operator)]; 5] = [
    &[("||", Operator::Or)],
    &[("&&", Operator::And)],
    &[
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ],
    &[("+", Operator::Add), ("-", Operator::Subtract)],
    &[("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)],
];

/// The level of `in`.
const RELATIONS: usize = 2;

fn wrong(why: impl Into<String>) -> Malformed {
    Malformed(why.into())
}

pub(super) fn parse(text: &str) -> Result<Expression, Malformed> {
    if text.len() > LONGEST {
        return Err(wrong(format!("is longer than {LONGEST} bytes")));
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let expression = parser.expression()?;
    match parser.peek() {
        None => Ok(expression),
        Some(token) => Err(wrong(format!("{} is not expected", shown(token)))),
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Name(name) => format!("\"{name}\""),
        Token::Text(text) => format!("the text '{text}'"),
        Token::Int(number) => number.to_string(),
        Token::Double(number) => number.to_string(),
        Token::Sign(sign) => format!("\"{sign}\""),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, Malformed> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '\'' | '"' => quoted(rest, first, false)?,
            'r' if rest.starts_with("r'") || rest.starts_with("r\"") => {
                let quote = if rest.starts_with("r'") { '\'' } else { '"' };
                let (token, length) = quoted(rest.get(1..).unwrap_or_default(), quote, true)?;
                (token, length + 1)
            }
            '0'..='9' => number(rest)?,
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
                (Token::Name(rest.get(..length).unwrap_or_default().to_owned()), length)
            }
            _ => match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
                Some(sign) => (Token::Sign(sign), sign.len()),
                None => return Err(wrong(format!("'{first}' is not understood"))),
            },
        };
        found.push(token);
        rest = rest.get(length..).unwrap_or_default().trim_start();
    }
    Ok(found)
}

fn quoted(text: &str, quote: char, raw: bool) -> Result<(Token, usize), Malformed> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        if char == quote {
            return Ok((Token::Text(out), at + 1));
        }
        if char != '\\' || raw {
            out.push(char);
            continue;
        }
        let Some((_, escaped)) = chars.next() else { break };
        out.push(match escaped {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '\\' | '\'' | '"' | '`' | '?' => escaped,
            'x' | 'u' => {
                let digits = if escaped == 'x' { 2 } else { 4 };
                let code: String = chars.by_ref().take(digits).map(|(_, digit)| digit).collect();
                let char = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                char.ok_or_else(|| wrong(format!("\\{escaped}{code} is no character")))?
            }
            _ => return Err(wrong(format!("\\{escaped} is not understood"))),
        });
    }
    Err(wrong("a text does not end"))
}

fn number(text: &str) -> Result<(Token, usize), Malformed> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(text);
    let rest = text.get(whole..).unwrap_or_default();
    let fraction = rest.strip_prefix('.').map(digits).filter(|length| *length > 0);
    let failed = || wrong("a number is too large");
    if let Some(fraction) = fraction {
        let length = whole + 1 + fraction;
        let number = text.get(..length).and_then(|text| text.parse().ok()).ok_or_else(failed)?;
        return Ok((Token::Double(number), length));
    }
    let number = text.get(..whole).and_then(|text| text.parse().ok()).ok_or_else(failed)?;
    // `1u` is an unsigned 1.
    let length = whole + usize::from(rest.starts_with(['u', 'U']));
    Ok((Token::Int(number), length))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, sign: &str) -> bool {
        let there = matches!(self.peek(), Some(Token::Sign(found)) if *found == sign);
        self.at += usize::from(there);
        there
    }

    fn need(&mut self, sign: &str) -> Result<(), Malformed> {
        if self.take(sign) {
            return Ok(());
        }
        let found = self.peek().map_or_else(|| "its end".to_owned(), shown);
        Err(wrong(format!("\"{sign}\" is expected, not {found}")))
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<T, Malformed> {
        if self.depth == DEEPEST {
            return Err(wrong(format!("is nested deeper than {DEEPEST}")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn expression(&mut self) -> Result<Expression, Malformed> {
        self.deeper(|parser| {
            let condition = parser.level(0)?;
            if !parser.take("?") {
                return Ok(condition);
            }
            let then = parser.level(0)?;
            parser.need(":")?;
            let other = parser.expression()?;
            Ok(Expression::If { condition: condition.into(), then: then.into(), other: other.into() })
        })
    }

    fn level(&mut self, level: usize) -> Result<Expression, Malformed> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.level(level + 1)?;
        let mut chained = 0;
        while let Some(operator) = self.operator(operators, level) {
            chained += 1;
            if chained > DEEPEST {
                return Err(wrong(format!("has more than {DEEPEST} operators in a row")));
            }
            let right = self.level(level + 1)?;
            left = Expression::Binary { operator, left: left.into(), right: right.into() };
        }
        Ok(left)
    }

    fn operator(&mut self, operators: &[(&str, Operator)], level: usize) -> Option<Operator> {
        if level == RELATIONS && matches!(self.peek(), Some(Token::Name(name)) if name == "in") {
            self.at += 1;
            return Some(Operator::In);
        }
        operators.iter().find(|(sign, _)| self.take(sign)).map(|(_, operator)| *operator)
    }

    fn unary(&mut self) -> Result<Expression, Malformed> {
        if self.take("!") {
            return Ok(Expression::Not(self.deeper(Self::unary)?.into()));
        }
        if self.take("-") {
            return Ok(Expression::Negative(self.deeper(Self::unary)?.into()));
        }
        self.member()
    }

    fn member(&mut self) -> Result<Expression, Malformed> {
        let mut of = self.primary()?;
        let mut chained = 0;
        loop {
            chained += 1;
            if chained > DEEPEST {
                return Err(wrong(format!("asks deeper than {DEEPEST}")));
            }
            if self.take(".") {
                let field = self.name()?;
                of = match self.take("(") {
                    true => {
                        let arguments = self.arguments(")")?;
                        method(of, &field, arguments)?
                    }
                    false => Expression::Field { of: of.into(), field: field.into() },
                };
            } else if self.take("[") {
                let at = self.expression()?;
                self.need("]")?;
                of = if let Expression::Text(field) = at {
                    Expression::Field { of: of.into(), field }
                } else {
                    Expression::Index { of: of.into(), at: at.into() }
                };
            } else {
                return Ok(of);
            }
        }
    }

    fn name(&mut self) -> Result<String, Malformed> {
        match self.peek() {
            Some(Token::Name(name)) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            found => Err(wrong(format!(
                "a name is expected, not {}",
                found.map_or_else(|| "its end".to_owned(), shown)
            ))),
        }
    }

    fn primary(&mut self) -> Result<Expression, Malformed> {
        if self.take("(") {
            let inner = self.expression()?;
            self.need(")")?;
            return Ok(inner);
        }
        if self.take("[") {
            return self.arguments("]").map(Expression::List);
        }
        let Some(token) = self.peek().cloned() else { return Err(wrong("ends too early")) };
        self.at += 1;
        Ok(match token {
            Token::Text(text) => Expression::Text(text.into()),
            Token::Int(number) => Expression::Int(number),
            Token::Double(number) => Expression::Double(number),
            Token::Name(name) => match name.as_str() {
                "true" => Expression::Bool(true),
                "false" => Expression::Bool(false),
                "null" => Expression::Null,
                "in" => return Err(wrong("\"in\" is not expected")),
                _ if self.take("(") => {
                    let arguments = self.arguments(")")?;
                    return call(&name, arguments);
                }
                _ => Expression::Name(name.into()),
            },
            Token::Sign(_) => return Err(wrong(format!("{} is not expected", shown(&token)))),
        })
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Expression>, Malformed> {
        let mut arguments = Vec::new();
        if self.take(end) {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.expression()?);
            if self.take(end) {
                return Ok(arguments);
            }
            self.need(",")?;
        }
    }
}

fn call(name: &str, arguments: Vec<Expression>) -> Result<Expression, Malformed> {
    let given = arguments.len();
    let mut arguments = arguments.into_iter();
    let (Some(first), 1) = (arguments.next(), given) else {
        return Err(wrong(format!("the function \"{name}\" with {given} arguments is not implemented")));
    };
    let function = match name {
        "has" if matches!(first, Expression::Field { .. }) => return Ok(Expression::Has(first.into())),
        "size" => Function::Size,
        "string" => Function::ToString,
        "int" | "uint" => Function::ToInt,
        _ => return Err(wrong(format!("the function \"{name}\" is not implemented"))),
    };
    Ok(Expression::Call { function, on: first.into(), argument: None })
}

fn method(on: Expression, name: &str, arguments: Vec<Expression>) -> Result<Expression, Malformed> {
    let given = arguments.len();
    let mut arguments = arguments.into_iter();
    let argument = arguments.next();
    let call = |function, argument: Option<Expression>| {
        Ok(Expression::Call { function, on: on.clone().into(), argument: argument.map(Box::new) })
    };
    match (name, argument, given) {
        ("size", None, _) => call(Function::Size, None),
        ("startsWith", Some(argument), 1) => call(Function::StartsWith, Some(argument)),
        ("endsWith", Some(argument), 1) => call(Function::EndsWith, Some(argument)),
        ("contains", Some(argument), 1) => call(Function::Contains, Some(argument)),
        ("matches", Some(Expression::Text(pattern)), 1) => {
            let regex = Regex::new(&pattern).map_err(|error| wrong(format!("{pattern}: {error}")))?;
            Ok(Expression::Matches { on: on.into(), regex: Pattern(regex) })
        }
        (_, _, _) => Err(wrong(format!("the function \"{name}\" of {given} arguments is not implemented"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Box<Expression> {
        Expression::Name(name.into()).into()
    }

    fn field(of: Box<Expression>, field: &str) -> Box<Expression> {
        Expression::Field { of, field: field.into() }.into()
    }

    #[test]
    fn paths_and_literals() {
        let labels = field(field(name("filter_state"), "upstream_peer"), "labels");
        let role = *field(labels, "role");
        assert_eq!(parse("filter_state.upstream_peer.labels['role']"), Ok(role.clone()));
        assert_eq!(parse(" filter_state['upstream_peer'].labels[\"role\"] "), Ok(role));
        assert_eq!(parse("'it\\'s'"), Ok(Expression::Text("it's".into())));
        assert_eq!(parse("r'\\d'"), Ok(Expression::Text("\\d".into())));
        assert_eq!(parse("1"), Ok(Expression::Int(1)));
        assert_eq!(parse("1.5"), Ok(Expression::Double(1.5)));
    }

    #[test]
    fn operators_bind_as_in_cel() {
        let text = "!a && b == 'x' + 'y' || c ? d : e";
        let Ok(Expression::If { condition, then, .. }) = parse(text) else { panic!("{:?}", parse(text)) };
        assert_eq!(then, name("d"));
        let Expression::Binary { operator: Operator::Or, left, right } = *condition else { panic!() };
        assert_eq!(right, name("c"));
        let Expression::Binary { operator: Operator::And, left, right } = *left else { panic!() };
        assert_eq!(left, Expression::Not(name("a")).into());
        assert!(matches!(*right, Expression::Binary { operator: Operator::Equal, .. }));
    }

    #[test]
    fn what_is_no_expression_or_not_understood_is_an_error() {
        for text in [
            "",
            "cannot _ parse | 1",
            "a.",
            "'open",
            "a[1",
            "(a",
            "a ? b",
            "unknown(1)",
            "a.map(x, x)",
            "a.matches('(')",
            "99999999999999999999",
            "{'a': 1}",
            "\\",
            "é",
        ] {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
        assert!(parse(&"(".repeat(2000)).is_err());
        assert!(parse(&"!".repeat(2000)).is_err());
        assert!(parse(&format!("a{}", ".b".repeat(1000))).is_err());
        assert!(parse(&"a".repeat(5000)).is_err());
    }

    #[test]
    fn names_that_are_no_attribute() {
        let parsed = parse("cannot_evaluate + request.host").unwrap();
        assert_eq!(parsed.strangers(), ["cannot_evaluate"]);
    }
}
