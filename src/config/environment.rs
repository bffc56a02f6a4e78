//! Settings from environment variables.

use std::ffi::OsString;

use super::source::{Given, Setting};
use super::{Mistake, Origin};

pub(super) const PREFIX: &str = "STREAMBUS_";

/// Variables with the prefix that are the command line's and no settings.
pub const CLI_VARIABLES: &[&str] = &["STREAMBUS_BROKER", "STREAMBUS_CONFIG", "STREAMBUS_TIMEOUT"];

/// Adds what the variables set. Every variable with the prefix counts, so that a misspelt one is noticed, except those
/// that Kubernetes adds for a service named `streambus`.
pub(super) fn read(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    settings: &mut Vec<Setting>,
    mistakes: &mut Vec<Mistake>,
) {
    let mut variables: Vec<_> = variables
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(PREFIX) && !CLI_VARIABLES.contains(&name.as_str()))
        .collect();
    variables.sort();
    for (variable, value) in variables {
        let key = key_of(&variable);
        let origin = Origin::Environment { variable };
        match value.into_string() {
            Ok(value) if is_service_link(&key, &value) => {}
            Ok(value) => settings.push(Setting { key, given: Given::Text(value), origin }),
            Err(_) => mistakes.push(Mistake {
                origin,
                key,
                what: "is not valid UTF-8".to_owned(),
                suggestion: None,
            }),
        }
    }
}

/// `STREAMBUS_STORAGE__DATA_DIR` sets `storage.data_dir`.
fn key_of(variable: &str) -> String {
    variable[PREFIX.len()..].to_ascii_lowercase().replace("__", ".")
}

/// The variable that sets `key`.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// Whether this is one of the variables that Kubernetes sets in every pod for each service: `…_SERVICE_HOST`,
/// `…_SERVICE_PORT[_NAME]`, `…_PORT` with an address and `…_PORT_9092_TCP[_…]`.
fn is_service_link(key: &str, value: &str) -> bool {
    let name = format!("_{key}");
    let numbered_port = || {
        name.split_once("_port_")
            .is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()) && rest.contains('_'))
    };
    !key.contains('.')
        && (name.ends_with("_service_host")
            || name.contains("_service_port")
            || (name.ends_with("_port") && value.contains("://"))
            || numbered_port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(variables: &[(&str, &str)]) -> Vec<String> {
        let (mut settings, mut mistakes) = (Vec::new(), Vec::new());
        read(variables.iter().map(|(n, v)| (n.into(), v.into())), &mut settings, &mut mistakes);
        assert!(mistakes.is_empty());
        settings.into_iter().map(|setting| setting.key).collect()
    }

    #[test]
    fn two_underscores_separate_levels() {
        assert_eq!(keys(&[("STREAMBUS_STORAGE__DATA_DIR", "x"), ("HOME", "/")]), ["storage.data_dir"]);
        assert_eq!(variable_of("storage.data_dir"), "STREAMBUS_STORAGE__DATA_DIR");
    }

    #[test]
    fn misspelt_variables_are_not_ignored() {
        assert_eq!(keys(&[("STREAMBUS_DATA_DIR", "x")]), ["data_dir"]);
    }

    #[test]
    fn variables_of_the_command_line_and_of_kubernetes_are_no_settings() {
        let none: &[String] = &[];
        assert_eq!(
            keys(&[
                ("STREAMBUS_BROKER", "localhost:9092"),
                ("STREAMBUS_SERVICE_HOST", "10.0.0.1"),
                ("STREAMBUS_SERVICE_PORT_GRPC", "9092"),
                ("STREAMBUS_PORT", "tcp://10.0.0.1:9092"),
                ("STREAMBUS_PORT_9092_TCP_ADDR", "10.0.0.1"),
                ("STREAMBUS_HEADLESS_PORT_9092_TCP", "tcp://10.0.0.1:9092"),
            ]),
            none
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_text_is_a_mistake() {
        use std::os::unix::ffi::OsStringExt as _;
        let (mut settings, mut mistakes) = (Vec::new(), Vec::new());
        let variable = ("STREAMBUS_STORAGE__SYNC".into(), OsString::from_vec(vec![0xff]));
        read([variable], &mut settings, &mut mistakes);
        assert_eq!(mistakes[0].to_string(), "STREAMBUS_STORAGE__SYNC: storage.sync: is not valid UTF-8");
    }
}
