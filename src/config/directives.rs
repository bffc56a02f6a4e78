//! Parts of a log filter that select nothing.
//!
//! `inof` is a valid filter: it asks for everything of a target of this name. That there is none is most likely a slip.

use super::{Problem, known};

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The crates that this program is made of, and a few more.
const LOCK: &str = include_str!("../../Cargo.lock");

/// Targets that crates call otherwise than themselves.
const OTHERS: [&str; 3] = ["log", "runtime", "tracing"];

/// What is to be said about a filter that is well-formed.
pub(super) fn without_effect(filter: &str) -> Vec<Problem> {
    let unknown = outside_brackets(filter).into_iter().filter_map(unknown_target);
    let problem = |word: &str| {
        let hint = nearest(word).map(|level| format!("; did you mean {level}?")).unwrap_or_default();
        let levels = LEVELS.join(", ");
        let what = format!(
            "`{word}` is no level ({levels}), and nothing in this program logs under that name, so it selects \
             nothing{hint}"
        );
        Problem { key: "telemetry.log.filter".to_owned(), what }
    };
    unknown.map(problem).collect()
}

/// The directives of a filter, without those that name spans or fields.
fn outside_brackets(filter: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    let separated = filter.split(|letter: char| {
        match letter {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    });
    separated.map(str::trim).filter(|directive| !directive.contains(['[', '{'])).collect()
}

/// What a directive names, if nothing has that name.
fn unknown_target(directive: &str) -> Option<&str> {
    let (target, has_level) = match directive.split_once('=') {
        Some((target, _)) => (target, true),
        None => (directive, false),
    };
    let is_level = !has_level
        && (LEVELS.iter().any(|level| target.eq_ignore_ascii_case(level))
            || target.parse::<u8>().is_ok_and(|number| usize::from(number) < LEVELS.len()));
    (!target.is_empty() && !is_level && !is_known(target)).then_some(target)
}

/// Whether a target may begin with `target`, as directives select by the beginning.
fn is_known(target: &str) -> bool {
    let name = target.split("::").next().unwrap_or(target).replace('-', "_");
    let is_whole = target.contains("::");
    let matches = |known: &str| if is_whole { known == name } else { known.starts_with(&name) };
    crates().any(|known| matches(&known.replace('-', "_"))) || OTHERS.into_iter().any(matches)
}

fn crates() -> impl Iterator<Item = &'static str> {
    LOCK.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
}

/// The level that was probably meant.
fn nearest(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let levels = LEVELS.into_iter().map(|level| (known::distance(&word, level), level));
    let (distance, level) = levels.min()?;
    let begins = LEVELS.into_iter().find(|level| word.starts_with(level));
    begins.or((distance <= 2 && word.len() >= 3).then_some(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(filter: &str) -> Vec<String> {
        without_effect(filter).into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn what_selects_something_is_not_complained_about() {
        for filter in [
            "info",
            "WARN",
            "3",
            "",
            "off",
            "info,",
            "info,streambus::raft=debug",
            "info,h2,openraft,tonic=debug,hyper_util=trace,opentelemetry-otlp=warn,opentelemetry_sdk",
            "streambus",
            "streambus::api::server,warn",
            "stream=debug",
            "runtime::resource=trace",
            "[request{topic=\"inof,x\"}]=debug,info",
            "streambus[append]=trace",
            "rustls=debug,tokio=trace,fjall,lsm_tree=warn",
        ] {
            assert_eq!(told(filter), [""; 0], "{filter}");
        }
    }

    #[test]
    fn a_word_that_is_neither_level_nor_target_is_told_with_the_level_that_is_near() {
        for (filter, word, hint) in [
            ("inof", "inof", "did you mean info?"),
            ("info,debg", "debg", "did you mean debug?"),
            ("warning", "warning", "did you mean warn?"),
            ("info,steambus::raft=debug", "steambus::raft", "selects nothing"),
            ("verbose", "verbose", "selects nothing"),
        ] {
            let told = told(filter);
            assert_eq!(told.len(), 1, "{filter}: {told:?}");
            assert!(told[0].starts_with(&format!("`{word}`")) && told[0].ends_with(hint), "{told:?}");
        }
        assert_eq!(told("fatal,inof").len(), 2);
    }
}
