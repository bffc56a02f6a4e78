//! Telling when the transport has an answer, and holding its room until the client has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::unread::{Answer, Unread};
use crate::broker::{Responding, Share};

/// Answers of one call that are on their way through the encoder. A handler leaves a clone in the extensions of its
/// response; the response's body tells it about every frame.
#[derive(Clone, Default)]
pub(in crate::api) struct Handover(Arc<Mutex<Made>>);

#[derive(Default)]
struct Made {
    answers: Vec<Responding>,
    share: Option<Share>,
    unread: Option<Answer>,
}

impl Handover {
    /// The handler has made an answer. Bounded by what the encoder gathers before it gives a frame.
    pub(in crate::api) fn made(&self, answer: Option<Responding>) {
        if let Some(answer) = answer {
            self.lock().answers.push(answer);
        }
    }

    /// The call's only answer has this share.
    pub(in crate::api) fn holds(&self, share: Share) {
        self.lock().share = Some(share);
    }

    /// Whether the call's answer has a share.
    pub(super) fn has_share(&self) -> bool {
        self.lock().share.is_some()
    }

    /// Counts the answer that has a share, if there is one, to its connection.
    pub(super) fn is_of(&self, unread: &Unread) {
        let mut made = self.lock();
        if made.share.is_some() {
            made.unread = Some(unread.answer());
        }
    }

    /// The transport takes a frame: the encoder has put all answers into it that were made before. Their share goes with
    /// the frame's bytes, which the transport drops when they are written or the client has gone.
    pub(super) fn framed(&self, data: Bytes) -> Bytes {
        let Made { answers, share, unread } = std::mem::take(&mut *self.lock());
        answers.into_iter().for_each(Responding::handed_over);
        match share {
            Some(share) => Bytes::from_owner(Held { data, _share: share, _unread: unread }),
            None => data,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are held for a client.
struct Held {
    data: Bytes,
    _share: Share,
    _unread: Option<Answer>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}
