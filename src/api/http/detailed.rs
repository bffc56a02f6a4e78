//! `/metrics/detailed`: levels of each partition, on demand.
//!
//! | parameter | |
//! |---|---|
//! | `family` | names of families, separated by commas or given several times; all if there is none |
//! | `topic` | names of topics, in the same way; all if there is none |
//! | `leading` | `true`: only partitions that this broker leads |
//! | `limit` | at most so many partitions, 1 to 10,000; the header `streambus-next` names the last one if there are more |
//! | `after` | `topic/partition`: only those behind this one, for the next page |
//!
//! An answer is never cut short without being asked to: without `limit`, more than 10,000 partitions are an error.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::{Shared, answer_json, metrics};
use crate::api::status::mapping;
use crate::broker::{Broker, DetailQuery};
use crate::telemetry::catalog::DETAILED_PARTITIONS_MAX;
use crate::telemetry::{DetailedFamilies, MetricsOff, PartitionLevels, Scrape};

/// Names the last partition of a page that is not the last page.
const NEXT: &str = "streambus-next";
/// What a parameter may have in common with an error that repeats it.
const REPEATED_CHARS: usize = 100;

type Pairs = Vec<(String, String)>;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    families: DetailedFamilies,
    query: DetailQuery,
    limit: Option<usize>,
}

/// Reads and encodes on a thread that may block, like a scrape of `/metrics`, and never on those that serve requests.
pub(super) async fn scrape(
    State(sources): Shared,
    query: Result<Query<Pairs>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let asked = match query {
        Ok(Query(pairs)) => parse(&pairs),
        Err(rejection) => Err(rejection.body_text()),
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(problem) => return refused(StatusCode::BAD_REQUEST, &problem),
    };
    let (broker, detailer) = (sources.broker.clone(), sources.detailer.clone());
    metrics::run(&sources, &headers, move |accept, encoding| {
        answer(&broker, &asked, |families, partitions| detailer(families, partitions, accept, encoding))
    })
    .await
}

fn answer(
    broker: &Broker,
    asked: &Asked,
    encode: impl FnOnce(&DetailedFamilies, &[PartitionLevels]) -> Result<Scrape, MetricsOff>,
) -> Response {
    let Asked { families, query, limit } = asked;
    let most = limit.unwrap_or(DETAILED_PARTITIONS_MAX);
    let page = match broker.detail(query, most) {
        Ok(page) => page,
        Err(error) => {
            let status = StatusCode::from_u16(mapping(error.code()).http);
            return refused(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error.to_string());
        }
    };
    if page.more && limit.is_none() {
        let problem = format!(
            "more than {most} partitions match: choose with topic, or read them in pages with limit and after"
        );
        return refused(StatusCode::BAD_REQUEST, &problem);
    }
    let mut response = metrics::scraped(encode(families, &page.partitions));
    let last = page.partitions.last().filter(|_| page.more);
    let last = last.map(|last| format!("{}/{}", last.topic, last.partition));
    if let Some(last) = last.and_then(|last| HeaderValue::from_str(&last).ok()) {
        response.headers_mut().insert(NEXT, last);
    }
    response
}

fn refused(status: StatusCode, problem: &str) -> Response {
    answer_json(status, &json!({ "error": problem }))
}

fn parse(pairs: &[(String, String)]) -> Result<Asked, String> {
    let (mut families, mut query, mut limit) = (Vec::new(), DetailQuery::default(), None);
    for (number, (key, value)) in pairs.iter().enumerate() {
        let again = pairs[..number].iter().any(|(earlier, _)| earlier == key);
        if again && ["leading", "limit", "after"].contains(&key.as_str()) {
            return Err(format!("{key} is given more than once"));
        }
        let shown: String = value.chars().take(REPEATED_CHARS).collect();
        match key.as_str() {
            "family" => families.extend(value.split(',').filter(|name| !name.is_empty())),
            "topic" => {
                query.topics.extend(value.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
            }
            "leading" => {
                query.leading_only = match value.as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(format!("leading is {shown:?}: write true or false")),
                }
            }
            "limit" => {
                let number =
                    value.parse().ok().filter(|number| (1..=DETAILED_PARTITIONS_MAX).contains(number));
                let wrong =
                    || format!("limit is {shown:?}: write a number from 1 to {DETAILED_PARTITIONS_MAX}");
                limit = Some(number.ok_or_else(wrong)?);
            }
            "after" => {
                let place = value.rsplit_once('/').and_then(|(topic, number)| {
                    Some((topic.to_owned(), number.parse().ok()?)).filter(|_| !topic.is_empty())
                });
                let wrong =
                    || format!("after is {shown:?}: write TOPIC/PARTITION, as the header {NEXT} has it");
                query.after = Some(place.ok_or_else(wrong)?);
            }
            other => {
                let other: String = other.chars().take(REPEATED_CHARS).collect();
                return Err(format!(
                    "there is no parameter {other:?}: the parameters are family, topic, leading, limit, after"
                ));
            }
        }
    }
    let families = DetailedFamilies::named(&families).map_err(|unknown| {
        let unknown: String = unknown.chars().take(REPEATED_CHARS).collect();
        format!("there is no family {unknown:?}: the families are {}", DetailedFamilies::names().join(", "))
    })?;
    Ok(Asked { families, query, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn parameters_may_be_lists_or_repeated() {
        let [first, second] = [DetailedFamilies::names()[0], DetailedFamilies::names()[1]];
        let both = format!("{second},{first}");
        let asked = parse(&pairs(&[("family", &both), ("topic", "a,b"), ("topic", "c"), ("limit", "5")]));
        let asked = asked.expect("it makes sense");
        assert_eq!(asked.families, DetailedFamilies::named(&[first, second]).expect("families"));
        assert_eq!((asked.query.topics.join(" "), asked.limit), ("a b c".to_owned(), Some(5)));
        let page = parse(&pairs(&[("after", "orders/7"), ("leading", "true")])).expect("it makes sense");
        assert_eq!((page.query.after, page.query.leading_only), (Some(("orders".to_owned(), 7)), true));
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        for (key, value, expected) in [
            ("family", "streambus_guess", "there is no family \"streambus_guess\": the families are"),
            ("topics", "a", "there is no parameter \"topics\": the parameters are"),
            ("limit", "0", "limit is \"0\": write a number from 1 to 10000"),
            ("limit", "10001", "limit is \"10001\""),
            ("leading", "yes", "leading is \"yes\": write true or false"),
            ("after", "orders", "after is \"orders\": write TOPIC/PARTITION"),
            ("after", "/1", "after is \"/1\""),
        ] {
            let problem = parse(&pairs(&[(key, value)])).expect_err("it makes no sense");
            assert!(problem.starts_with(expected), "{problem}");
        }
        let twice = parse(&pairs(&[("limit", "2"), ("limit", "3")]));
        assert_eq!(twice.expect_err("which?"), "limit is given more than once");
        let long = "x".repeat(10_000);
        assert!(parse(&pairs(&[("family", &long)])).expect_err("none").len() < 1_000);
    }
}
