//! For the fuzz targets: what is read from a peer, written and read again is the same.

use prost::Message as _;

use super::{codec, error};
use crate::proto::internal as wire;

/// A frame with what replicas say to each other.
pub fn frame(bytes: &[u8]) {
    let Some(body) = wire::PeerFrame::decode(bytes).ok().and_then(|frame| frame.body) else { return };
    if let Some(request) = codec::request_from_wire(body.clone()) {
        assert_eq!(codec::request_from_wire(codec::request_to_wire(request.clone())), Some(request));
    } else if let Some(response) = codec::response_from_wire(body) {
        assert_eq!(codec::response_from_wire(codec::response_to_wire(response.clone())), Some(response));
    }
}

/// The errors that a peer answers with.
pub fn failure(bytes: &[u8]) {
    if let Ok(failed) = wire::PeerError::decode(bytes) {
        let read = error::from_wire(failed);
        assert_eq!(format!("{:?}", error::from_wire(error::to_wire(&read))), format!("{read:?}"));
    }
    if let Ok(refused) = wire::MetadataError::decode(bytes) {
        let read = error::metadata_from_wire(refused);
        let again = error::metadata_from_wire(error::metadata_to_wire(&read));
        assert_eq!(format!("{again:?}"), format!("{read:?}"));
    }
}
