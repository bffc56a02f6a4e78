//! Telemetry of a broker that does not know yet who it is.

use tracing::Dispatch;

use super::config::{Config, Error};
use super::install::Telemetry;
use super::logs;
use super::resource::Identity;

impl Telemetry {
    /// Metrics to scrape, and where log lines go meanwhile. Nothing is exported: whatever comes from a broker says which one
    /// it is.
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn unnamed(config: &Config) -> Result<(Self, Dispatch), Error> {
        let environment = |name: &str| match name {
            "OTEL_SDK_DISABLED" => Some("true".to_owned()),
            name => std::env::var(name).ok(),
        };
        Telemetry::build(config, &Identity::default(), &environment, logs::standard_error)
    }
}
