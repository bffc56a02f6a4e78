//! partition.
pub mod index;
pub mod machine;
pub mod producers;
pub mod signal;
pub mod view;
