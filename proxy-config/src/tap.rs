//! What `tap` writes: `envoy.data.tap.v3.TraceWrapper`, in each format of `config.tap.v3.OutputSink`.
//!
//! The daemon builds a [`Trace`] of plain data, [`encode`] makes the bytes that Envoy would write for it.

mod node;
mod print;
mod request;
mod wire;

use std::time::SystemTime;

pub use self::request::request;
use crate::model::transport::TapFormat;
use crate::model::{Address, FractionalPercent};

/// One `TraceWrapper`.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Of the connection.
    pub id: u64,
    pub piece: Piece,
    /// `tap_enabled` of the configuration, where it is set.
    pub sample_rate: Option<FractionalPercent>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// `SocketBufferedTrace`: a whole connection.
    Buffered(Buffered),
    /// `SocketStreamedTraceSegment`: a connection has begun.
    Connection(Connection),
    /// `SocketStreamedTraceSegment`: one event.
    Event(Event),
    /// `SocketStreamedTraceSegment`: events that were gathered.
    Events(Vec<Event>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buffered {
    pub connection: Connection,
    pub events: Vec<Event>,
    pub read_truncated: bool,
    pub write_truncated: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connection {
    pub local: Option<Address>,
    pub remote: Option<Address>,
}

/// `SocketEvent`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub at: SystemTime,
    pub what: What,
    pub connection: Option<Connection>,
    /// Of streamed events: where its first byte stands among all bytes of both directions. The first is 1.
    pub seq_num: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Read(Body),
    Write { body: Body, end_stream: bool },
    Closed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub bytes: Vec<u8>,
    /// There was more.
    pub truncated: bool,
}

impl Trace {
    /// About how much memory it takes.
    pub fn cost(&self) -> usize {
        let events = match &self.piece {
            Piece::Buffered(Buffered { events, .. }) | Piece::Events(events) => events.as_slice(),
            Piece::Event(event) => std::slice::from_ref(event),
            Piece::Connection(_) => &[],
        };
        let each = events.iter().map(|event| size_of::<Event>() + event.bytes());
        each.fold(size_of::<Self>(), usize::saturating_add)
    }
}

impl Event {
    /// How many bytes of the connection it has.
    pub fn bytes(&self) -> usize {
        match &self.what {
            What::Read(body) | What::Write { body, .. } => body.bytes.len(),
            What::Closed => 0,
        }
    }
}

/// The bytes of a trace. One may follow another: what separates them is in their format, except that
/// `PROTO_BINARY` has nothing to separate them by, in Envoy neither.
pub fn encode(trace: &Trace, format: TapFormat) -> Vec<u8> {
    match format {
        TapFormat::ProtoBinary => wire::binary(trace),
        TapFormat::ProtoBinaryLengthDelimited => wire::length_delimited(trace),
        TapFormat::ProtoText => print::text(&node::of(trace, node::Bodies::Bytes)),
        TapFormat::JsonBodyAsBytes => print::json(&node::of(trace, node::Bodies::Bytes)),
        TapFormat::JsonBodyAsString => print::json(&node::of(trace, node::Bodies::Strings)),
    }
}

/// What Envoy appends to the path of a file.
pub fn file_extension(format: TapFormat) -> &'static str {
    match format {
        TapFormat::ProtoBinary => ".pb",
        TapFormat::ProtoBinaryLengthDelimited => ".pb_length_delimited",
        TapFormat::ProtoText => ".pb_text",
        TapFormat::JsonBodyAsBytes | TapFormat::JsonBodyAsString => ".json",
    }
}

/// Seconds since 1970, and nanoseconds. Envoy's clock counts microseconds.
fn timestamp(at: SystemTime) -> (i64, i32) {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = i32::try_from(since.subsec_micros() * 1_000).unwrap_or(0);
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos)
}

#[cfg(test)]
mod tests;
