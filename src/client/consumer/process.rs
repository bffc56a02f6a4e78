//! Processing records in spans.

use std::sync::Arc;

use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::TraceContextExt as _;
use tokio::time::Instant;

use crate::client::ConsumedRecord;
use crate::client::telemetry::Telemetry;

/// Makes `process <topic>` spans and records `messaging.process.duration`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Processor {
    telemetry: Arc<Telemetry>,
}

impl Processor {
    pub(in crate::client) fn new(telemetry: Arc<Telemetry>) -> Processor {
        Processor { telemetry }
    }

    /// Runs `handler` on a record inside a CONSUMER span, which is the current one while the handler runs.
    ///
    /// The span is a child of the context in which the record was created, so that it is part of the trace of
    /// whoever sent the record, and links to the span that was current before. A record without a creation context
    /// is processed in a child of the current span.
    pub async fn process<'a, T>(
        &self,
        record: &'a ConsumedRecord,
        handler: impl AsyncFnOnce(&'a ConsumedRecord) -> T,
    ) -> T {
        let began = Instant::now();
        let context = self.process_span(record);
        let result = handler(record).with_context(context.clone()).await;
        context.span().end();
        self.telemetry.processed(&record.topic, began.elapsed());
        result
    }

    /// A context with a new span as [`process`](Self::process) makes it, for programs that process in other ways.
    /// Ending the span, which happens at the latest when the last clone of the context is dropped, is up to them.
    #[must_use]
    pub fn process_span(&self, record: &ConsumedRecord) -> opentelemetry::Context {
        self.telemetry.begin_process(&record.topic, record.partition, &record.headers)
    }
}
