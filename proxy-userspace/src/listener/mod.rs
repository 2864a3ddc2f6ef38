//! What a listener decides before a connection's filter chain runs: which listener serves it ([`Handoff`]), what
//! its first bytes say ([`Filters`]), and which filter chain that selects ([`ChainMatch`]).

pub mod chain_match;
pub mod filters;
pub mod select;
pub mod token_bucket;

pub use self::chain_match::ChainMatch;
pub use self::filters::{Failure, Filters, First};
pub use self::select::Handoff;
pub use self::token_bucket::TokenBucket;
