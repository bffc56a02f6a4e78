//! Telemetry of a broker that does not know yet who it is.

use tracing::Dispatch;

use super::config::{Config, Error, OtlpConfig};
use super::install::Telemetry;
use super::resource::Identity;

impl Telemetry {
    /// Metrics to scrape, and where log lines go meanwhile. Nothing is exported: whatever comes from a broker says which one
    /// it is.
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn unnamed(config: &Config) -> Result<(Self, Dispatch), Error> {
        let otlp = OtlpConfig { enabled: false, ..config.otlp.clone() };
        let config = Config { otlp, ..config.clone() };
        Telemetry::to_standard_error(&config, &Identity::default())
    }
}
