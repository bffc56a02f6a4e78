//! `streambus produce`.

mod key;
mod lines;
mod tally;

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use opentelemetry::KeyValue;
use opentelemetry::trace::TraceContextExt as _;
use serde_json::json;

use crate::client::{Codec, Producer, ProducerConfig, ProducerRecord};
use crate::units::{ByteSize, HumanDuration};

use super::Global;
use super::connect::builder;
use super::failure::Usage;
use super::observe::{Roots, Telemetry};
use super::output::{Format, grouped, line, note};
use super::topic::codec_parser;
use key::KeyRule;
use tally::Tally;

/// Sends the lines of a file or of standard input, each as the value of a record, without its line feed and otherwise
/// unchanged.
#[derive(Debug, Args)]
pub(super) struct Produce {
    /// Topic; it must exist
    topic: String,
    /// File with one record per line; `-` or nothing reads standard input
    file: Option<PathBuf>,
    /// Each line is a JSON object; the key is what this field of it holds
    #[arg(long, value_name = "FIELD", conflicts_with = "key_separator")]
    key_field: Option<String>,
    /// Each line is a key and a value with this text between them
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// Send everything to this partition, whatever its key
    #[arg(short, long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// A header for every record; repeatable
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// How batches are compressed
    #[arg(long, value_name = "CODEC", default_value = "none", value_parser = codec_parser())]
    compression: Codec,
    /// A batch is sent when it has this size
    #[arg(long, value_name = "SIZE", default_value = "128KiB")]
    batch_bytes: ByteSize,
    /// A batch that is not full is sent after this time
    #[arg(long, value_name = "TIME", default_value = "5ms")]
    linger: HumanDuration,
    /// Trace every record, in one trace, and print the trace's id. The broker exports its part of the trace, and this
    /// command its own if OTEL_EXPORTER_OTLP_ENDPOINT is set
    #[arg(long)]
    trace: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// How often the progress bar shows new numbers.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

impl Produce {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let (source, name, size) = self.open()?;
        let telemetry = Telemetry::start(if self.trace { Roots::All } else { Roots::None })?;
        let context = self.trace.then(|| {
            telemetry.root("produce", vec![KeyValue::new("messaging.destination.name", self.topic.clone())])
        });
        let context = context.flatten();
        let trace_id = context.as_ref().map(|context| context.span().span_context().trace_id().to_string());
        if let Some(id) = &trace_id
            && global.output == Format::Text
        {
            note(format_args!("trace {id}"));
        }
        let result = {
            let sending = self.send_all(global, &telemetry, source, &name, size);
            match &context {
                Some(context) => {
                    opentelemetry::context::FutureExt::with_context(sending, context.clone()).await
                }
                None => sending.await,
            }
        };
        if let Some(context) = context {
            context.span().end();
        }
        telemetry.finish().await;
        self.print(&result?, trace_id, global.output)
    }

    /// What is to be sent, what messages call it, and its size if that is known.
    fn open(&self) -> anyhow::Result<(Box<dyn Read + Send>, String, Option<u64>)> {
        match self.file.as_deref().filter(|path| path.as_os_str() != "-") {
            None => Ok((Box::new(std::io::stdin()), "standard input".to_owned(), None)),
            Some(path) => {
                let name = path.display().to_string();
                let cannot = || format!("cannot read {name}");
                let file = File::open(path).with_context(cannot)?;
                let metadata = file.metadata().with_context(cannot)?;
                if metadata.is_dir() {
                    return Err(anyhow!("cannot read {name}: it is a directory"));
                }
                let size = metadata.is_file().then_some(metadata.len());
                Ok((Box::new(file), name, size))
            }
        }
    }

    async fn send_all(
        &self,
        global: &Global,
        telemetry: &Telemetry,
        source: Box<dyn Read + Send>,
        name: &str,
        size: Option<u64>,
    ) -> anyhow::Result<Sent> {
        let config = self.producer_config(global.timeout.0)?;
        let client = telemetry.applied_to(builder(global)).connect().await?;
        let producer = client.producer(config).await?;
        producer.prepare(&self.topic).await?;
        if size.is_none() && std::io::stdin().is_terminal() {
            note("reading standard input, a record per line; end with Ctrl-D");
        }
        let bar = progress(size);
        let started = Instant::now();
        let mut tally = Tally::default();
        let fed = self.feed(&producer, source, &bar, started, &mut tally).await;
        // Also after a failure: the outcome of what was sent before is still to come.
        producer.close().await;
        let settled = tally.settle().await;
        bar.finish_and_clear();
        let failure = match (settled, fed) {
            // A refused record comes before the line at which feeding ended.
            (Err(refused), _) => Some((refused.line, anyhow::Error::new(refused.error))),
            (Ok(()), Err((line, error))) => Some((line, error)),
            (Ok(()), Ok(())) => None,
        };
        if let Some((line, error)) = failure {
            let produced = tally.acknowledged();
            let noun = if produced == 1 { "record was" } else { "records were" };
            return Err(
                error.context(format!("{name}:{line}: {} {noun} acknowledged, then", grouped(produced)))
            );
        }
        Ok(Sent { tally, bytes: bar.position(), took: started.elapsed() })
    }

    /// A record is delivered within `timeout` or given up.
    fn producer_config(&self, timeout: Duration) -> Result<ProducerConfig, Usage> {
        if timeout <= self.linger.0 {
            let what = format!("--timeout ({timeout:?}) must be longer than --linger ({:?})", self.linger.0);
            return Err(Usage(what));
        }
        Ok(ProducerConfig {
            linger: self.linger.0,
            batch_bytes: usize::try_from(self.batch_bytes.0).unwrap_or(usize::MAX),
            compression: self.compression,
            delivery_timeout: timeout,
            ..ProducerConfig::default()
        })
    }

    /// Sends every line. An error comes with the number of the line that it concerns.
    async fn feed(
        &self,
        producer: &Producer,
        source: Box<dyn Read + Send>,
        bar: &ProgressBar,
        started: Instant,
        tally: &mut Tally,
    ) -> Result<(), (u64, anyhow::Error)> {
        let rule = KeyRule::new(self.key_field.as_deref(), self.key_separator.as_deref());
        let template = self.template();
        let mut chunks = lines::read(source);
        let mut number = 0;
        while let Some(chunk) = chunks.recv().await {
            let chunk =
                chunk.map_err(|error| (number + 1, anyhow::Error::new(error).context("cannot be read")))?;
            let bytes = chunk.len() as u64;
            for line in lines::split(chunk) {
                number += 1;
                let (key, value) = rule.apply(line).map_err(|error| (number, error.into()))?;
                let mut record = template.clone().value(value);
                if let Some(key) = key {
                    record = record.key(key);
                }
                let delivery = producer.send(record).await.map_err(|error| (number, error.into()))?;
                tally.sent(delivery);
            }
            // What is refused early need not be found out at the end. The line is told by the tally then.
            if tally.settle_known().is_err() {
                return Ok(());
            }
            bar.inc(bytes);
            bar.set_message(rate(number, started.elapsed()));
        }
        Ok(())
    }

    /// What all records have in common.
    fn template(&self) -> ProducerRecord {
        let topic: Arc<str> = Arc::from(self.topic.as_str());
        let mut record = ProducerRecord::new(topic);
        for (name, value) in &self.headers {
            record = record.header(name, Bytes::copy_from_slice(value.as_bytes()));
        }
        match self.partition {
            Some(partition) => record.partition(partition),
            None => record,
        }
    }

    fn print(&self, sent: &Sent, trace_id: Option<String>, format: Format) -> anyhow::Result<()> {
        let (records, seconds) = (sent.tally.acknowledged(), sent.took.as_secs_f64());
        let partitions = sent.tally.partitions();
        if format == Format::Json {
            let counts: Vec<_> = partitions
                .iter()
                .map(|(partition, records)| json!({"partition": partition, "records": records}))
                .collect();
            return line(json!({
                "topic": self.topic,
                "records": records,
                "bytes": sent.bytes,
                "seconds": seconds,
                "partitions": counts,
                "trace_id": trace_id,
            }));
        }
        let noun = if records == 1 { "record" } else { "records" };
        let counts: Vec<_> = partitions
            .iter()
            .map(|(partition, records)| format!("partition {partition}: {}", grouped(*records)))
            .collect();
        let among = if counts.is_empty() { String::new() } else { format!("; {}", counts.join(", ")) };
        line(format_args!(
            "{} {noun} in {seconds:.2} s ({}){among}",
            grouped(records),
            rate(records, sent.took)
        ))
    }
}

/// A run that went well.
struct Sent {
    tally: Tally,
    /// Bytes read, line feeds included.
    bytes: u64,
    took: Duration,
}

fn rate(records: u64, took: Duration) -> String {
    let per_second = records as f64 / took.as_secs_f64().max(1e-6);
    // Far below 2^64, and a fraction of a record per second does not matter.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    let per_second = per_second as u64;
    format!("{} records/s", grouped(per_second))
}

/// A bar if the size is known, else a counter; invisible unless standard error is a terminal.
fn progress(size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{wide_bar} {bytes}/{total_bytes} {msg} {eta}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {msg}"),
    };
    bar.enable_steady_tick(PROGRESS_EVERY);
    bar.with_style(ProgressStyle::with_template(template).expect("the templates above are well-formed"))
}
