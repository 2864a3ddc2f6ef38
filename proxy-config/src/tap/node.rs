//! A trace as a tree of protobuf fields, in the order of their declaration: what both kinds of text are printed from.

use std::borrow::Cow;

use super::{Body, Buffered, Connection, Event, Piece, Trace, What, timestamp};
use crate::model::{Address, FractionalPercent};

pub(super) enum Node<'a> {
    Message(Vec<Field<'a>>),
    List(Vec<Node<'a>>),
    Uint32(u32),
    Uint64(u64),
    Bool(bool),
    /// Not always UTF-8: bodies are strings only because the format says so.
    String(Cow<'a, [u8]>),
    Bytes(&'a [u8]),
    Enum(&'static str, u32),
    Timestamp(i64, i32),
}

pub(super) struct Field<'a> {
    pub(super) name: &'static str,
    pub(super) value: Node<'a>,
    /// Part of a oneof: printed as text even where it is the default.
    pub(super) presence: bool,
}

/// Where a body is: in `as_bytes` or in `as_string`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bodies {
    Bytes,
    Strings,
}

pub(super) fn of(trace: &Trace, bodies: Bodies) -> Vec<Field<'_>> {
    let id = || field("trace_id", Node::Uint64(trace.id));
    let segment = |piece| message("socket_streamed_trace_segment", vec![id(), piece]);
    let wrapped = match &trace.piece {
        Piece::Buffered(whole) => message("socket_buffered_trace", buffered(id(), whole, bodies)),
        // Envoy asks this segment for its event, to make the event's body a string. That sets one, and what was
        // in its place is gone.
        Piece::Connection(_) if bodies == Bodies::Strings => {
            segment(message("event", vec![field("seq_num", Node::Uint64(0))]))
        }
        Piece::Connection(connection) => segment(message("connection", addresses(connection))),
        Piece::Event(one) => segment(message("event", event(one, bodies))),
        Piece::Events(many) => segment(message("events", vec![events(many, bodies)])),
    };
    let rate = trace.sample_rate.map(|rate| message("configured_sample_rate", percent(rate)));
    std::iter::once(wrapped).chain(rate).collect()
}

fn field<'a>(name: &'static str, value: Node<'a>) -> Field<'a> {
    Field { name, value, presence: false }
}

fn message<'a>(name: &'static str, fields: Vec<Field<'a>>) -> Field<'a> {
    field(name, Node::Message(fields))
}

fn string<'a>(name: &'static str, text: impl Into<Cow<'a, str>>) -> Field<'a> {
    let bytes = match text.into() {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
    field(name, Node::String(bytes))
}

fn buffered<'a>(id: Field<'a>, whole: &'a Buffered, bodies: Bodies) -> Vec<Field<'a>> {
    vec![
        id,
        message("connection", addresses(&whole.connection)),
        events(&whole.events, bodies),
        field("read_truncated", Node::Bool(whole.read_truncated)),
        field("write_truncated", Node::Bool(whole.write_truncated)),
    ]
}

fn events(list: &[Event], bodies: Bodies) -> Field<'_> {
    let each = list.iter().map(|one| Node::Message(event(one, bodies)));
    field("events", Node::List(each.collect()))
}

fn event(event: &Event, bodies: Bodies) -> Vec<Field<'_>> {
    let (seconds, nanos) = timestamp(event.at);
    let what = match &event.what {
        What::Read(content) => message("read", vec![body(content, bodies)]),
        What::Write { body: content, end_stream } => {
            message("write", vec![body(content, bodies), field("end_stream", Node::Bool(*end_stream))])
        }
        What::Closed => message("closed", Vec::new()),
    };
    let mut fields = vec![field("timestamp", Node::Timestamp(seconds, nanos)), what];
    fields.extend(event.connection.as_ref().map(|connection| message("connection", addresses(connection))));
    fields.push(field("seq_num", Node::Uint64(event.seq_num)));
    fields
}

fn body(body: &Body, bodies: Bodies) -> Field<'_> {
    let content = match bodies {
        Bodies::Bytes => Field { name: "as_bytes", value: Node::Bytes(&body.bytes), presence: true },
        Bodies::Strings => {
            let value = Node::String(Cow::Borrowed(body.bytes.as_slice()));
            Field { name: "as_string", value, presence: true }
        }
    };
    message("data", vec![content, field("truncated", Node::Bool(body.truncated))])
}

fn addresses(connection: &Connection) -> Vec<Field<'_>> {
    let local = connection.local.as_ref().map(|local| message("local_address", vec![address(local)]));
    let remote = connection.remote.as_ref().map(|remote| message("remote_address", vec![address(remote)]));
    local.into_iter().chain(remote).collect()
}

fn address(address: &Address) -> Field<'_> {
    let socket = |host: Cow<'static, str>, port: u16| {
        let port = Field { name: "port_value", value: Node::Uint32(port.into()), presence: true };
        let fields = vec![
            field("protocol", Node::Enum("TCP", 0)),
            string("address", host),
            port,
            string("resolver_name", ""),
            field("ipv4_compat", Node::Bool(false)),
            string("network_namespace_filepath", ""),
        ];
        message("socket_address", fields)
    };
    match address {
        Address::Ip(address) => socket(address.ip().to_string().into(), address.port()),
        Address::Host(at) => socket(at.host.to_string().into(), at.port),
        Address::Pipe { path, mode } => {
            let path = path.to_string_lossy();
            message("pipe", vec![string("path", path), field("mode", Node::Uint32(*mode))])
        }
    }
}

fn percent<'a>(rate: FractionalPercent) -> Vec<Field<'a>> {
    let (name, number) = denominator(rate);
    vec![field("numerator", Node::Uint32(rate.numerator)), field("denominator", Node::Enum(name, number))]
}

/// `type.v3.FractionalPercent.DenominatorType`.
pub(super) fn denominator(rate: FractionalPercent) -> (&'static str, u32) {
    match rate.denominator {
        10_000 => ("TEN_THOUSAND", 1),
        1_000_000 => ("MILLION", 2),
        _ => ("HUNDRED", 0),
    }
}
