//! Black-box tests: a real broker, spoken to over its ports as clients, probes, scrapers and collectors do.
//!
//! | module | what it proves |
//! |---|---|
//! | `truth` | every metric of the catalogue says what happened, on `/metrics` and over OTLP |
//! | `journey` | a record's trace, from its producer through the broker to its consumer |
//! | `durability` | what was acknowledged survives the end of the process, however it ends |
//! | `api` | every call of the API: answers, limits, errors |
//! | `groups` | consumer and share groups: who owns what, what is committed, what is missed, lag |
//! | `cluster` | several brokers: any serves any request, leaders die, brokers join and leave |
//! | `secure` | telemetry reaches a collector with TLS, and nobody else |
//! | `switches` | what is switched off of telemetry is off |
//! | `tools` | looking closer: `/metrics/detailed`, `top`, `control`, `explain` |
//! | `settle` | the measurement of how groups settle sees what moves |
//! | `overhead` | the measurement of what telemetry costs measures, and cleans up |
//! | `limits` | bad input and greedy clients cost bounded memory and get precise errors |
//!
//! All tests share one binary, because linking the broker takes longer than running them. Each has a broker of its own
//! in a directory of its own, on ports that the system chooses.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a test measured is shown with it")]

mod api;
mod cluster;
mod durability;
mod groups;
mod journey;
mod limits;
mod overhead;
mod secure;
mod settle;
mod support;
mod switches;
mod tools;
mod truth;
