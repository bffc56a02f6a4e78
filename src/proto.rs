//! The generated protocol types. No other module includes generated code.

/// The public API, `streambus.v1`. An embedded `RecordBatch` is `bytes::Bytes` here; see `build.rs`.
#[allow(clippy::doc_markdown, clippy::large_enum_variant, missing_docs)]
pub mod v1 {
    tonic::include_proto!("streambus.v1");
}

/// What the control group stores, `streambus.internal.v1`.
#[allow(clippy::doc_markdown, missing_docs)]
pub(crate) mod internal {
    tonic::include_proto!("streambus.internal.v1");
}

/// The public API's file descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("streambus_descriptor");
