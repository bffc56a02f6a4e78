//! Telemetry over TLS: to a collector that proves who it is, compressed if asked for, and to nobody else.

use std::path::Path;

use serde_json::Value;
use streambus::telemetry::catalog;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::support::endpoint::produce;
use crate::support::tool::command;
use crate::support::{Collector, PATIENCE, Process, batch, eventually, within};

const SIGNALS: [&str; 3] = ["traces", "metrics", "logs"];

/// The path of a file in `tests/certificates`.
fn path(name: &str) -> String {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates"));
    directory.join(name).to_str().expect("text").to_owned()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).expect("it is there")
}

/// A collector that is `localhost`.
fn tls() -> ServerTlsConfig {
    ServerTlsConfig::new().identity(Identity::from_pem(read("collector.pem"), read("collector.key")))
}

/// The same, which serves only those who have a certificate of the same authority.
fn mutual_tls() -> ServerTlsConfig {
    tls().client_ca_root(Certificate::from_pem(read("authority.pem")))
}

/// A broker that exports everything at once, to `endpoint`, with these settings of `telemetry.otlp` as well.
async fn broker_with(endpoint: &str, settings: &[(&str, &str)]) -> Process {
    let own: Vec<_> = settings.iter().map(|(key, value)| (format!("telemetry.otlp.{key}"), *value)).collect();
    let own = own.iter().map(|(key, value)| (&key[..], *value));
    let all = [
        ("telemetry.otlp.endpoint", endpoint),
        ("telemetry.otlp.batch_delay", "20ms"),
        ("telemetry.otlp.metrics_interval", "50ms"),
        ("telemetry.otlp.timeout", "3s"),
        ("telemetry.trace.sample_ratio", "1"),
    ];
    Process::start(&all.into_iter().chain(own).collect::<Vec<_>>()).await
}

/// Makes a span, and with it what is to be exported.
async fn use_it(broker: &Process) {
    broker.create_topic("orders", 1).await;
    let mut client = broker.produce().await;
    let write = client.produce(produce("orders", 0, batch::values(["lamp"])));
    within("a commit", write).await.expect("the batch is committed");
}

/// Waits until each signal has come, and gives how it was compressed.
async fn encodings(collector: &Collector) -> [String; 3] {
    let mut found = Vec::new();
    for signal in SIGNALS {
        let come = async || collector.encoding(signal);
        found.push(eventually(PATIENCE, &format!("{signal} come"), come).await);
    }
    found.try_into().expect("as many as there are signals")
}

/// Waits until the broker has said that its collector takes nothing, and gives the reason.
async fn reason(broker: &Process) -> String {
    let failing = async || broker.events("telemetry.export.failing").pop();
    let line: Value = eventually(PATIENCE, "it is said", failing).await;
    line["error"].as_str().expect("text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_signal_reaches_a_collector_that_asks_for_a_certificate() {
    let collector = Collector::start_with(mutual_tls()).await;
    let (authority, certificate, key) = (path("authority.pem"), path("broker.pem"), path("broker.key"));
    let settings =
        [("certificate", &authority[..]), ("client_certificate", &certificate), ("client_key", &key)];
    let broker = broker_with(collector.endpoint(), &settings).await;
    use_it(&broker).await;
    assert_eq!(encodings(&collector).await, ["identity", "identity", "identity"]);
    assert!(!collector.spans().is_empty() && !collector.logs().is_empty());
    assert_eq!(broker.events("telemetry.export.failing").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_may_be_compressed_and_have_an_authority_of_its_own() {
    let collector = Collector::start_with(tls()).await;
    // Without a scheme it is TLS. What is wrong for two signals is right for the third.
    let endpoint = collector.endpoint().trim_start_matches("https://");
    let (authority, stranger) = (path("authority.pem"), path("stranger.pem"));
    let settings = [
        ("certificate", &authority[..]),
        ("compression", "gzip"),
        ("metrics.compression", "none"),
        ("logs.certificate", &stranger),
    ];
    let broker = broker_with(endpoint, &settings).await;
    use_it(&broker).await;
    let come = async || Some([collector.encoding("traces")?, collector.encoding("metrics")?]);
    assert_eq!(eventually(PATIENCE, "two signals come", come).await, ["gzip", "identity"]);
    assert!(reason(&broker).await.contains("UnknownIssuer"));
    assert_eq!(broker.events("telemetry.export.failing")[0]["signal"], "logs");
    assert_eq!(collector.encoding("logs"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_needs_no_tls() {
    let collector = Collector::start().await;
    let broker = broker_with(collector.endpoint(), &[("compression", "gzip")]).await;
    use_it(&broker).await;
    assert_eq!(encodings(&collector).await, ["gzip", "gzip", "gzip"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_who_he_should_be_gets_nothing_and_the_log_says_why() {
    let (authority, stranger) = (path("authority.pem"), path("stranger.pem"));
    let (certificate, key) = (path("broker.pem"), path("broker.key"));
    let (open, closed) = (Collector::start_with(tls()).await, Collector::start_with(mutual_tls()).await);
    let plain = Collector::start().await;
    let by_number = open.endpoint().replace("localhost", "127.0.0.1");
    let secure_to_plain = plain.endpoint().replace("http://127.0.0.1", "https://localhost");
    let plain_to_secure = open.endpoint().replace("https://", "http://");
    let trusting = &[("certificate", &authority[..])][..];
    let shown = [("certificate", &stranger[..]), ("client_certificate", &certificate), ("client_key", &key)];
    for (endpoint, settings, expected) in [
        (open.endpoint(), &[("certificate", &stranger[..])][..], "invalid peer certificate: UnknownIssuer"),
        (&by_number, trusting, "certificate not valid for name \"127.0.0.1\""),
        // The alert, CertificateRequired, or that the connection is gone, whichever is noticed first.
        (closed.endpoint(), trusting, "connection error"),
        (closed.endpoint(), &shown, "invalid peer certificate: UnknownIssuer"),
        (&secure_to_plain, trusting, "InvalidContentType"),
        (&plain_to_secure, &[], "transport error"),
    ] {
        let broker = broker_with(endpoint, settings).await;
        use_it(&broker).await;
        let told = reason(&broker).await;
        println!("{endpoint}: {told}");
        assert!(told.contains(expected), "{expected}: {told}");
        assert!(told.matches("peer certificate").count() <= 1, "once is enough: {told}");
        eventually(PATIENCE, "all signals fail", async || {
            let view = broker.scrape().await;
            let count = |metric, signal| view.or_zero(metric, &[("signal", signal)]);
            assert!(SIGNALS.iter().all(|signal| count(&catalog::TELEMETRY_EXPORTED, signal) == 0.0));
            SIGNALS.iter().all(|signal| count(&catalog::TELEMETRY_FAILURES, signal) > 0.0).then_some(())
        })
        .await;
        assert_eq!(broker.events("telemetry.export.failing").len(), 1, "once is enough");
    }
    for collector in [open, closed, plain] {
        assert!(SIGNALS.iter().all(|signal| collector.encoding(signal).is_none()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_exports_its_spans_over_tls_as_the_standard_variables_say() {
    let collector = Collector::start_with(mutual_tls()).await;
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint().to_owned()),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", path("authority.pem")),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", path("broker.pem")),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", path("broker.key")),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
        ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", path("stranger.pem")),
    ];
    let ran = {
        let mut command = command(&broker, &["produce", "orders", &path("authority.pem"), "--trace"]);
        command.envs(variables);
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs")
    };
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert_eq!(collector.encoding("traces").as_deref(), Some("gzip"));
    assert!(collector.spans().iter().any(|span| span.name == "send orders"));
    // What went wrong is told, and the records are produced all the same.
    assert!(said.contains("telemetry was not exported in full") && said.contains("UnknownIssuer"), "{said}");
}
