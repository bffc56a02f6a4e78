//! Who is speaking: the resource that every signal carries.

use std::collections::BTreeMap;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use uuid::Uuid;

/// The namespace that the semantic conventions assign to names made from stable ids.
const INSTANCE_NAMESPACE: Uuid = Uuid::from_u128(0x4d63009a_8d0f_11ee_aad7_4c796ed8e320);

/// The broker's place in the world. Stable over restarts, so that its series are. Empty before it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: String,
    /// The broker's id in the cluster.
    pub broker_id: String,
}

impl Identity {
    /// `service.instance.id`.
    pub fn instance_id(&self) -> Uuid {
        Uuid::new_v5(&INSTANCE_NAMESPACE, format!("{}/{}", self.cluster_id, self.broker_id).as_bytes())
    }
}

/// What is `configured` wins over what is built in.
pub(super) fn resource(identity: &Identity, configured: &BTreeMap<String, String>) -> Resource {
    let configured = configured.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let known = *identity != Identity::default();
    let instance = known.then(|| KeyValue::new("service.instance.id", identity.instance_id().to_string()));
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "streambus"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(instance)
        .with_attributes(configured)
        .build()
}

#[cfg(test)]
mod tests {
    use opentelemetry::Key;

    use super::*;

    #[test]
    fn the_instance_id_depends_on_both_ids_and_on_nothing_else() {
        let identity = |cluster: &str, broker: &str| Identity {
            cluster_id: cluster.to_owned(),
            broker_id: broker.to_owned(),
        };
        let id = identity("c", "1").instance_id();
        // RFC 9562's version 5 over "c/1": a change would break the series of every running cluster.
        assert_eq!(id, identity("c", "1").instance_id());
        assert_eq!(id.get_version_num(), 5);
        assert_ne!(id, identity("c", "2").instance_id());
        assert_ne!(id, identity("d", "1").instance_id());
    }

    #[test]
    fn a_broker_without_a_number_has_no_instance_id() {
        let id = Key::new("service.instance.id");
        assert!(resource(&Identity::default(), &BTreeMap::new()).get(&id).is_none());
        let identity = Identity { cluster_id: "c".to_owned(), broker_id: "1".to_owned() };
        assert!(resource(&identity, &BTreeMap::new()).get(&id).is_some());
    }

    #[test]
    fn what_is_configured_wins_over_what_is_built_in() {
        let identity = Identity { cluster_id: "c".to_owned(), broker_id: "1".to_owned() };
        let get = |configured: &[(&'static str, &str)], key: &'static str| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let resource = resource(&identity, &configured.iter().map(owned).collect());
            resource.get(&Key::new(key)).map(|value| value.to_string())
        };
        assert_eq!(get(&[], "service.name").as_deref(), Some("streambus"));
        let configured = [("service.name", "orders-bus"), ("team", "payments")];
        assert_eq!(get(&configured, "service.name").as_deref(), Some("orders-bus"));
        assert_eq!(get(&configured, "team").as_deref(), Some("payments"));
    }
}
