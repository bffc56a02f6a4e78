//! `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::error;

use super::{Shared, Sources, answer_json};
use crate::telemetry::{MetricsOff, Scrape};

/// Collects and encodes on a thread that may block, a bounded number at a time. 404 with the reason while metrics are
/// off.
pub(super) async fn scrape(State(sources): Shared, headers: HeaderMap) -> Response {
    let scraper = sources.scraper.clone();
    run(&sources, &headers, move |accept, encoding| scraped(scraper(accept, encoding))).await
}

/// The answer with a scrape, or why there is none.
pub(super) fn scraped(scrape: Result<Scrape, MetricsOff>) -> Response {
    match scrape {
        Ok(scrape) => {
            let vary = [(VARY, "accept, accept-encoding"), (CONTENT_TYPE, scrape.content_type)];
            let mut response = (vary, scrape.body).into_response();
            if let Some(encoding) = scrape.encoding {
                response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
            }
            response
        }
        Err(off) => answer_json(StatusCode::NOT_FOUND, &json!({ "error": off.to_string() })),
    }
}

/// Runs `work` with the headers `Accept` and `Accept-Encoding` on a thread that may block, a bounded number at a time.
pub(super) async fn run(
    sources: &Sources,
    headers: &HeaderMap,
    work: impl FnOnce(&str, &str) -> Response + Send + 'static,
) -> Response {
    let Ok(permit) = Arc::clone(&sources.scrapes).try_acquire_owned() else {
        let mut response = answer_json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({ "error": "too many scrapes at a time (api.concurrent_scrapes_max)" }),
        );
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    };
    let (accept, encoding) = (joined(headers, ACCEPT), joined(headers, ACCEPT_ENCODING));
    let scraped = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&accept, &encoding)
    });
    match scraped.await {
        Ok(response) => response,
        Err(failed) => {
            error!(error = %failed, "a scrape failed");
            answer_json(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": "the scrape failed" }))
        }
    }
}

/// All values of a header that is a list.
fn joined(headers: &HeaderMap, name: HeaderName) -> String {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(", ")
}
