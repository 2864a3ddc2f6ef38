//! Text and JSON into protobuf, with the place of every problem.
//!
//! [`document`] is a text as a tree, which [`yaml`] or [`json`] reads; [`encode`] turns it into an encoded message by
//! the descriptors of [`crate::proto`]; [`any`] opens what is nested. What a text cannot be is a list of diagnostics:
//! all of them, each with its line, column, path and reason.

pub mod any;
mod builder;
pub(crate) mod document;
pub(crate) mod encode;
mod json;
mod old;
pub(crate) mod problem;
mod resources;
pub(crate) mod scalar;
mod special;
mod suggest;
mod value;
mod yaml;

pub use resources::{Encoded, Resource, Resources, message, resources, resources_binary, text};
