//! A trace in protobuf's own format.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::data::tap::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::Timestamp;
use prost::Message as _;

use super::node::denominator;
use super::{Body, Connection, Event, Piece, Trace, What, timestamp};
use crate::model::Address;

pub(super) fn binary(trace: &Trace) -> Vec<u8> {
    wrapper(trace).encode_to_vec()
}

/// Behind its length, as a varint.
pub(super) fn length_delimited(trace: &Trace) -> Vec<u8> {
    wrapper(trace).encode_length_delimited_to_vec()
}

fn wrapper(trace: &Trace) -> pb::TraceWrapper {
    use pb::socket_streamed_trace_segment::MessagePiece;
    let segment = |piece| {
        let segment = pb::SocketStreamedTraceSegment { trace_id: trace.id, message_piece: Some(piece) };
        pb::trace_wrapper::Trace::SocketStreamedTraceSegment(segment)
    };
    let wrapped = match &trace.piece {
        Piece::Buffered(whole) => pb::trace_wrapper::Trace::SocketBufferedTrace(pb::SocketBufferedTrace {
            trace_id: trace.id,
            connection: Some(connection(&whole.connection)),
            events: whole.events.iter().map(event).collect(),
            read_truncated: whole.read_truncated,
            write_truncated: whole.write_truncated,
        }),
        Piece::Connection(found) => segment(MessagePiece::Connection(connection(found))),
        Piece::Event(one) => segment(MessagePiece::Event(event(one))),
        Piece::Events(many) => {
            segment(MessagePiece::Events(pb::SocketEvents { events: many.iter().map(event).collect() }))
        }
    };
    let configured_sample_rate = trace.sample_rate.map(|rate| {
        let denominator = i32::try_from(denominator(rate).1).unwrap_or(0);
        FractionalPercent { numerator: rate.numerator, denominator }
    });
    pb::TraceWrapper { configured_sample_rate, trace: Some(wrapped) }
}

fn event(event: &Event) -> pb::SocketEvent {
    use pb::socket_event::{Closed, EventSelector, Read, Write};
    let (seconds, nanos) = timestamp(event.at);
    let selector = match &event.what {
        What::Read(content) => EventSelector::Read(Read { data: Some(body(content)) }),
        What::Write { body: content, end_stream } => {
            EventSelector::Write(Write { data: Some(body(content)), end_stream: *end_stream })
        }
        What::Closed => EventSelector::Closed(Closed {}),
    };
    pb::SocketEvent {
        timestamp: Some(Timestamp { seconds, nanos }),
        connection: event.connection.as_ref().map(connection),
        seq_num: event.seq_num,
        event_selector: Some(selector),
    }
}

fn body(body: &Body) -> pb::Body {
    let bytes = pb::body::BodyType::AsBytes(body.bytes.clone());
    pb::Body { truncated: body.truncated, body_type: Some(bytes) }
}

fn connection(connection: &Connection) -> pb::Connection {
    pb::Connection {
        local_address: connection.local.as_ref().map(address),
        remote_address: connection.remote.as_ref().map(address),
    }
}

fn address(address: &Address) -> core::Address {
    use core::address::Address as Kind;
    use core::socket_address::PortSpecifier;
    let socket = |address: String, port: u16| {
        Kind::SocketAddress(core::SocketAddress {
            address,
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..core::SocketAddress::default()
        })
    };
    let kind = match address {
        Address::Ip(address) => socket(address.ip().to_string(), address.port()),
        Address::Host(at) => socket(at.host.to_string(), at.port),
        Address::Pipe { path, mode } => {
            Kind::Pipe(core::Pipe { path: path.to_string_lossy().into_owned(), mode: *mode })
        }
    };
    core::Address { address: Some(kind) }
}
