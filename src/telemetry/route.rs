//! The way of a signal to its collector.

use std::time::Duration;

use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use rustls::pki_types::ServerName;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::config::{Compression, Error};
use super::tls::Tls;

/// The way of a signal to its collector.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The collector, with its scheme.
    pub endpoint: String,
    pub(super) headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
    /// The longest that one export may take.
    pub timeout: Duration,
    /// How an export is compressed.
    pub compression: Compression,
    /// None without TLS.
    pub(super) tls: Option<Tls>,
}

impl Route {
    /// The headers of an export.
    pub(super) fn metadata(&self) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.headers {
            metadata.insert(name.clone(), value.clone());
        }
        metadata
    }

    /// Connects when it is first used. Must be called in the runtime that will use it. Each call ends after the timeout.
    ///
    /// # Errors
    /// A file that was there when the configuration was checked cannot be used any more.
    pub(super) fn channel(&self) -> Result<Channel, Error> {
        let failed = |source| Error::Channel { endpoint: self.endpoint.clone(), source };
        let mut endpoint =
            Endpoint::from_shared(self.endpoint.clone()).map_err(failed)?.timeout(self.timeout);
        if let Some(tls) = &self.tls {
            let config = tls.client_config().map_err(|problems| {
                let (name, what) = problems.into_iter().next().expect("whoever refuses says why");
                Error::Setting { name, what }
            })?;
            // Shorter than an export, so that what is told is what hangs.
            endpoint = endpoint.tls_config(config.timeout(self.timeout / 2)).map_err(failed)?;
        }
        Ok(endpoint.connect_lazy())
    }

    /// Lets an exporter go this way. Must be called in the runtime that will use it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn applied_to<B: WithExportConfig + WithTonicConfig>(&self, builder: B) -> Result<B, Error> {
        let metadata = self.metadata();
        // In place of headers that are given to the builder, which adds those of the environment once more.
        let intercept = move |mut request: tonic::Request<()>| {
            *request.metadata_mut() = metadata.clone();
            Ok::<_, tonic::Status>(request)
        };
        let builder =
            builder.with_channel(self.channel()?).with_timeout(self.timeout).with_interceptor(intercept);
        Ok(match self.compression {
            Compression::None => builder,
            Compression::Gzip => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
        })
    }
}

/// The endpoint with the scheme that it has, or else with the one that is meant.
pub(super) fn with_scheme(endpoint: &str, insecure: bool) -> String {
    match (endpoint.contains("://"), insecure) {
        (true, _) => endpoint.to_owned(),
        (false, true) => format!("http://{endpoint}"),
        (false, false) => format!("https://{endpoint}"),
    }
}

/// Whether an endpoint with a scheme is reached over TLS.
pub(super) fn is_secure(endpoint: &str) -> bool {
    endpoint.starts_with("https://")
}

/// Whether an endpoint can be used, or is empty.
pub(super) fn check_endpoint(endpoint: &str, insecure: bool) -> Result<(), &'static str> {
    if endpoint.is_empty() {
        return Ok(());
    }
    let uri = with_scheme(endpoint, insecure).parse::<http::Uri>().ok();
    let is_known = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    let uri = uri.filter(|uri| is_known(uri) && uri.host().is_some_and(|host| !host.is_empty()));
    let Some(uri) = uri else { return Err("expected http://host:port, or https://host:port for TLS") };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    if uri.scheme_str() == Some("https") && ServerName::try_from(host).is_err() {
        return Err("no certificate can be for a host of this name");
    }
    Ok(())
}

/// A header, if it can be sent.
pub(super) fn header(
    name: &str,
    value: &str,
) -> Result<(MetadataKey<Ascii>, MetadataValue<Ascii>), &'static str> {
    let name = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
        .map_err(|_| "the name is no valid header name")?;
    let value = MetadataValue::try_from(value).map_err(|_| "the value is not printable ASCII")?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_host_and_a_scheme_that_is_known() {
        for right in ["", "http://c", "https://c:4317", "c:4317", "https://[::1]:4317", "https://10.0.0.1:1"]
        {
            assert_eq!(check_endpoint(right, false), Ok(()), "{right}");
        }
        for wrong in ["ftp://c", "https://", "http://:4317", "unix:///socket", "a b"] {
            assert!(check_endpoint(wrong, false).is_err(), "{wrong}");
        }
        assert!(check_endpoint("https://a..b:1", false).is_err(), "nobody could have its certificate");
        assert!(check_endpoint("a..b:1", true).is_ok(), "without TLS the resolver decides");
    }
}
