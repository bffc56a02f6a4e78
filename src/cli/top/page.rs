//! The text format of metrics, read.

use std::collections::BTreeMap;

/// Samples of some families: values by family and labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Page {
    families: BTreeMap<String, Vec<Sample>>,
}

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    labels: Vec<(String, String)>,
    pub(super) value: f64,
}

impl Sample {
    /// The value of a label.
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The labels but `left_out`, as what tells a series apart.
    fn key(&self, left_out: &str) -> Vec<(String, String)> {
        let mut labels: Vec<_> = self.labels.iter().filter(|(key, _)| key != left_out).cloned().collect();
        labels.sort();
        labels
    }
}

impl Page {
    /// Reads the samples whose names `wanted` takes. What is no sample is passed over.
    pub(super) fn parse(text: &str, wanted: impl Fn(&str) -> bool) -> Self {
        let mut page = Page::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let name = &line[..end];
            if !wanted(name) {
                continue;
            }
            if let Some(sample) = sample(&line[end..]) {
                page.families.entry(name.to_owned()).or_default().push(sample);
            }
        }
        page
    }

    /// Adds what another page has.
    pub(super) fn add(&mut self, other: Page) {
        for (name, samples) in other.families {
            self.families.entry(name).or_default().extend(samples);
        }
    }

    /// The samples of a family.
    pub(super) fn samples(&self, name: &str) -> &[Sample] {
        self.families.get(name).map_or(&[], Vec::as_slice)
    }

    /// How much each series of a counter has grown since `before`. One that is smaller than before began anew, with the
    /// process, so all of it is new.
    pub(super) fn growth<'a>(
        &'a self,
        before: &'a Page,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a Sample, f64)> {
        let mut earlier: BTreeMap<Vec<(String, String)>, f64> = BTreeMap::new();
        for sample in before.samples(name) {
            earlier.insert(sample.key(""), sample.value);
        }
        self.samples(name).iter().map(move |sample| {
            let before = earlier.get(&sample.key("")).copied().unwrap_or(0.0);
            let grown = if sample.value < before { sample.value } else { sample.value - before };
            (sample, grown)
        })
    }
}

/// Reads what follows a name: labels in braces, if any, and the value.
fn sample(text: &str) -> Option<Sample> {
    let mut labels = Vec::new();
    let mut rest = text;
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, value) = rest.split_once("=\"")?;
            let mut text = String::new();
            let mut characters = value.char_indices();
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => text.push(match characters.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, other) => text.push(other),
                }
            };
            labels.push((key.trim_start_matches(',').to_owned(), text));
            rest = &value[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP x_total Some {text} 1\nx_total{topic=\"a\\\"b\\\\\",n=\"1\"} 3\nx_total 4 1700000000\ny 5\nx_total{bad 6\n";
        let page = Page::parse(text, |name| name == "x_total");
        let [first, second] = page.samples("x_total") else { panic!("{page:?}") };
        assert_eq!((first.label("topic"), first.label("n"), first.value), (Some("a\"b\\"), Some("1"), 3.0));
        assert_eq!((second.label("topic"), second.value), (None, 4.0));
        assert!(page.samples("y").is_empty());
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        let before = Page::parse("c{t=\"a\",u=\"1\"} 10\nc{t=\"b\"} 7\n", |_| true);
        let after = Page::parse("c{u=\"1\",t=\"a\"} 15\nc{t=\"b\"} 2\nc{t=\"new\"} 4\n", |_| true);
        let growth: Vec<f64> = after.growth(&before, "c").map(|(_, grown)| grown).collect();
        assert_eq!(growth, [5.0, 2.0, 4.0]);
    }
}
