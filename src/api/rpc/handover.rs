//! Telling when the transport has an answer.

use std::sync::{Arc, Mutex, PoisonError};

use crate::broker::Responding;

/// Answers of one call that are on their way through the encoder. A handler leaves a clone in the extensions of its
/// response; the response's body tells it about every frame.
#[derive(Clone, Default)]
pub(in crate::api) struct Handover(Arc<Mutex<Vec<Responding>>>);

impl Handover {
    /// The handler has made an answer. Bounded by what the encoder gathers before it gives a frame.
    pub(in crate::api) fn made(&self, answer: Option<Responding>) {
        if let Some(answer) = answer {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        }
    }

    /// The transport takes a frame: the encoder has put all answers into it that were made before.
    pub(super) fn framed(&self) {
        let made = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        made.into_iter().for_each(Responding::handed_over);
    }
}
