//! Text and JSON into protobuf, with the place of every problem.

pub mod any;
