//! What the engine says of its own threads. It says so through `log`, and nowhere else why one of them ended.

use std::sync::Once;

use ::log::{Level, LevelFilter, Log, Metadata, Record};

/// Passes on the engine's errors. A program that has a logger of its own keeps that.
pub fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        if ::log::set_logger(&EngineLog).is_ok() {
            ::log::set_max_level(LevelFilter::Error);
        }
    });
}

struct EngineLog;

impl Log for EngineLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let of_the_engine = ["fjall", "lsm_tree"].iter().any(|name| metadata.target().starts_with(name));
        of_the_engine && metadata.level() == Level::Error
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            tracing::error!(name: "storage.engine", reason = %record.args(), "the storage engine reports a failure");
        }
    }

    fn flush(&self) {}
}
