//! How many connections fit into what the process may have open. A store that cannot open a file has failed, so it must get
//! what it needs whatever clients do.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use super::Config;

/// Files that the store, other brokers and exporters may have open, if there is room for them.
const RESERVED: u64 = 1_536;

/// Lets the process have open as much as it may, and takes from `config` the connections that do not fit.
#[must_use]
pub fn fit_to_open_files(config: &Config) -> Config {
    let limit = getrlimit(Resource::Nofile);
    // Where that is refused, the limit is as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let fitting = fitting(config, limit);
    if fitting.connections_max < config.connections_max {
        warn!(
            limit,
            connections = fitting.connections_max,
            http_connections = fitting.http_connections_max,
            "this process may open so few files (ulimit -n) that it serves fewer connections than api.connections_max and api.http_connections_max say"
        );
    }
    fitting
}

fn fitting(config: &Config, limit: u64) -> Config {
    let room = limit - RESERVED.min(limit / 2);
    let fits = |wanted: usize, room: u64| (wanted as u64).min(room).max(1) as usize;
    let http = fits(config.http_connections_max, room / 4);
    let grpc = fits(config.connections_max, room.saturating_sub(http as u64));
    Config { connections_max: grpc, http_connections_max: http, ..config.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_needs_is_left() {
        let config = Config::default();
        let of = |limit| {
            let Config { connections_max, http_connections_max, .. } = fitting(&config, limit);
            (connections_max, http_connections_max)
        };
        assert_eq!(of(u64::MAX), (10_000, 256));
        assert_eq!(of(20_000), (10_000, 256));
        assert_eq!(of(4_096), (2_304, 256));
        assert_eq!(of(1_024), (384, 128));
        assert_eq!(of(1), (1, 1));
    }
}
