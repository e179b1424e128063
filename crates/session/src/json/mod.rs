//! The JSON dialect: what a client that knows only `JSON.parse` and a socket says and hears.

mod close;

pub use close::{close_code, status};
