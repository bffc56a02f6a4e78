//! Which format and encoding a scraper wants, from its `Accept` and `Accept-Encoding` headers.

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The classic text format.
    Text,
    /// OpenMetrics 1.0, with exemplars.
    OpenMetrics,
}

impl Format {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The best format for `Accept`. OpenMetrics only if it is named, in a version that we write, and not liked less
    /// than text. Text otherwise, also if nothing fits: scrapers understand it.
    pub fn negotiate(accept: Option<&str>) -> Self {
        let mut openmetrics = 0.0_f64;
        // How well text is liked, by how precisely it is meant: `*/*`, `text/*`, `text/plain`.
        let mut text = [None; 3];
        for range in ranges(accept.unwrap_or_default()) {
            match range.name.as_str() {
                "application/openmetrics-text"
                    if matches!(range.parameter("version"), None | Some("1.0.0")) =>
                {
                    openmetrics = openmetrics.max(range.quality);
                }
                "text/plain" if matches!(range.parameter("version"), None | Some("0.0.4")) => {
                    text[2] = Some(text[2].unwrap_or(0.0_f64).max(range.quality));
                }
                "text/*" => text[1] = Some(range.quality),
                "*/*" => text[0] = Some(range.quality),
                _ => {}
            }
        }
        let text = text.into_iter().rev().flatten().next().unwrap_or(0.0);
        if openmetrics > 0.0 && openmetrics >= text { Format::OpenMetrics } else { Format::Text }
    }
}

/// Whether `Accept-Encoding` allows gzip.
pub(super) fn accepts_gzip(accept_encoding: Option<&str>) -> bool {
    let codings = ranges(accept_encoding.unwrap_or_default());
    let quality = |name: &str| codings.iter().find(|coding| coding.name == name).map(|coding| coding.quality);
    quality("gzip")
        .or_else(|| quality("x-gzip"))
        .or_else(|| quality("*"))
        .is_some_and(|quality| quality > 0.0)
}

/// One element of a header such as `Accept`.
struct Range {
    name: String,
    parameters: Vec<(String, String)>,
    quality: f64,
}

impl Range {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn ranges(header: &str) -> Vec<Range> {
    header.split(',').map(range).filter(|range| !range.name.is_empty()).collect()
}

fn range(element: &str) -> Range {
    let mut parts = element.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let parameters: Vec<(String, String)> = parts
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()))
        .collect();
    // A malformed weight counts as none, which is 1.
    let quality = parameters
        .iter()
        .find(|(key, _)| key == "q")
        .and_then(|(_, value)| value.parse::<f64>().ok())
        .filter(|quality| (0.0..=1.0).contains(quality))
        .unwrap_or(1.0);
    Range { name, parameters, quality }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_follow_the_accept_header() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let protobuf_first = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
                              application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.6,\
                              text/plain;version=1.0.0;q=0.4,*/*;q=0.2";
        for (accept, expected) in [
            (None, Format::Text),
            (Some(""), Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/html,*/*;q=0.8"), Format::Text),
            (Some("application/json"), Format::Text),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some("application/openmetrics-text;version=\"1.0.0\""), Format::OpenMetrics),
            (Some("application/openmetrics-text;version=0.0.1"), Format::Text),
            (Some("application/openmetrics-text;q=0"), Format::Text),
            (Some("application/openmetrics-text;q=0.3, text/plain;q=0.9"), Format::Text),
            (Some("text/plain;q=0.3, APPLICATION/OpenMetrics-Text;q=0.9"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0.5, */*"), Format::Text),
            (Some(prometheus_2), Format::OpenMetrics),
            (Some(protobuf_first), Format::OpenMetrics),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn gzip_is_used_only_when_accepted() {
        for (header, expected) in [
            (None, false),
            (Some("identity"), false),
            (Some("gzip"), true),
            (Some("deflate, gzip;q=0.5"), true),
            (Some("gzip;q=0, *"), false),
            (Some("*"), true),
            (Some("br"), false),
        ] {
            assert_eq!(accepts_gzip(header), expected, "{header:?}");
        }
    }
}
