//! One connection as the client sees it.
mod api;
pub use api::*;
