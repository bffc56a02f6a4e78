//! Compiles `proto/` without protoc.
//!
//! The generated Rust types treat every embedded `RecordBatch` as opaque bytes: an embedded message and a `bytes`
//! field are the same on the wire, so the broker carries a batch from socket to disk without decoding it, while
//! clients in other languages see an ordinary message. The descriptor set for reflection keeps the public types.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

const FILES: &[&str] = &[
    "streambus/v1/record.proto",
    "streambus/v1/error.proto",
    "streambus/v1/produce.proto",
    "streambus/v1/group.proto",
    "streambus/v1/consume.proto",
    "streambus/v1/topic.proto",
    "streambus/v1/cluster.proto",
    "streambus/v1/control.proto",
    "streambus/internal/v1/metadata.proto",
    "streambus/internal/v1/partition.proto",
    "streambus/internal/v1/coordination.proto",
    "streambus/internal/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut descriptors = protox::compile(FILES, ["proto"])?;
    let public = FileDescriptorSet {
        file: descriptors
            .file
            .iter()
            .filter(|f| !f.package().starts_with("streambus.internal"))
            .cloned()
            .collect(),
    };
    fs::write(out.join("streambus_descriptor.bin"), public.encode_to_vec())?;
    for file in &mut descriptors.file {
        file.message_type.iter_mut().for_each(make_batches_opaque);
    }
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

fn make_batches_opaque(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if field.type_name() == ".streambus.v1.RecordBatch" {
            field.set_type(Type::Bytes);
            field.type_name = None;
        }
    }
    message.nested_type.iter_mut().for_each(make_batches_opaque);
}
