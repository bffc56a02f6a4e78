//! Who is speaking: the resource that every signal carries.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
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

/// `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` win over what is built in.
pub(super) fn resource(identity: &Identity, env: &dyn Fn(&str) -> Option<String>) -> Resource {
    let mut builder = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "streambus"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    if *identity != Identity::default() {
        let id = identity.instance_id().to_string();
        builder = builder.with_attribute(KeyValue::new("service.instance.id", id));
    }
    if let Some(name) = env("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()) {
        builder = builder.with_service_name(name);
    }
    builder.build()
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
        assert!(resource(&Identity::default(), &|_| None).get(&id).is_none());
        let identity = Identity { cluster_id: "c".to_owned(), broker_id: "1".to_owned() };
        assert!(resource(&identity, &|_| None).get(&id).is_some());
    }

    #[test]
    fn the_service_name_can_be_overridden() {
        let identity = Identity { cluster_id: "c".to_owned(), broker_id: "1".to_owned() };
        let name =
            |resource: Resource| resource.get(&Key::new("service.name")).map(|value| value.to_string());
        assert_eq!(name(resource(&identity, &|_| None)).as_deref(), Some("streambus"));
        let env = |key: &str| (key == "OTEL_SERVICE_NAME").then(|| "orders-bus".to_owned());
        assert_eq!(name(resource(&identity, &env)).as_deref(), Some("orders-bus"));
    }
}
