//! What the fuzz targets run. `tests/corpus.rs` of the crate runs the same on a stable compiler.

pub mod targets;
