//! The generated protocol types. No other module includes generated code.

/// The public API, `streambus.v1`. An embedded `RecordBatch` is `bytes::Bytes` here; see `build.rs`.
#[allow(clippy::doc_markdown, clippy::large_enum_variant, missing_docs)]
pub mod v1 {
    tonic::include_proto!("streambus.v1");

    impl SubscribeResponse {
        /// A response with this event.
        pub fn of(event: subscribe_response::Event) -> Self {
            SubscribeResponse { event: Some(event) }
        }

        /// The records, if it delivers records.
        pub fn into_records(self) -> Option<PartitionRecords> {
            match self.event {
                Some(subscribe_response::Event::Records(records)) => Some(records),
                _ => None,
            }
        }
    }

    impl From<PartitionRecords> for SubscribeResponse {
        fn from(records: PartitionRecords) -> Self {
            SubscribeResponse::of(subscribe_response::Event::Records(records))
        }
    }
}

/// What the control group, coordinator shards and partitions store, `streambus.internal.v1`.
#[allow(clippy::doc_markdown, missing_docs)]
pub(crate) mod internal {
    tonic::include_proto!("streambus.internal.v1");
}

/// The public API's file descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("streambus_descriptor");
