//! The methods that the gRPC port serves.

/// How a method is called, as far as its observation differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Kind {
    /// One request, one answer.
    Unary,
    /// One batch, one answer.
    Produce,
    /// A stream of batches.
    Stream,
    /// Health and reflection: not traced, not part of latency figures.
    Infrastructure,
}

/// A known method, or the stand-in for all unknown ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) struct Method(&'static (&'static str, Kind));

const OTHER: (&str, Kind) = ("_OTHER", Kind::Unary);

/// Sorted by name.
static METHODS: [(&str, Kind); 46] = [
    ("grpc.health.v1.Health/Check", Kind::Infrastructure),
    ("grpc.health.v1.Health/Watch", Kind::Infrastructure),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Kind::Infrastructure),
    ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Append", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/ChangeMetadata", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Exchange", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Identify", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Join", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Locate", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Read", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Report", Kind::Infrastructure),
    ("streambus.internal.v1.PeerService/Trim", Kind::Infrastructure),
    ("streambus.v1.ClusterService/BalanceLeaders", Kind::Unary),
    ("streambus.v1.ClusterService/DescribeCluster", Kind::Unary),
    ("streambus.v1.ClusterService/DrainBroker", Kind::Unary),
    ("streambus.v1.ClusterService/GetClusterStatus", Kind::Unary),
    ("streambus.v1.ClusterService/ReassignPartition", Kind::Unary),
    ("streambus.v1.ClusterService/RemoveBroker", Kind::Unary),
    ("streambus.v1.ClusterService/TransferLeader", Kind::Unary),
    ("streambus.v1.ConsumeService/Fetch", Kind::Unary),
    ("streambus.v1.ConsumeService/Subscribe", Kind::Stream),
    ("streambus.v1.ControlService/ClearLogFilter", Kind::Unary),
    ("streambus.v1.ControlService/ClearSampling", Kind::Unary),
    ("streambus.v1.ControlService/ExplainRecord", Kind::Unary),
    ("streambus.v1.ControlService/FindRecords", Kind::Unary),
    ("streambus.v1.ControlService/GetOverrides", Kind::Unary),
    ("streambus.v1.ControlService/SetLogFilter", Kind::Unary),
    ("streambus.v1.ControlService/SetSampling", Kind::Unary),
    ("streambus.v1.GroupService/CommitOffsets", Kind::Unary),
    ("streambus.v1.GroupService/DeleteGroup", Kind::Unary),
    ("streambus.v1.GroupService/DescribeGroup", Kind::Unary),
    ("streambus.v1.GroupService/FetchOffsets", Kind::Unary),
    ("streambus.v1.GroupService/ListGroups", Kind::Unary),
    ("streambus.v1.GroupService/ResetOffsets", Kind::Unary),
    ("streambus.v1.ProduceService/InitProducer", Kind::Unary),
    ("streambus.v1.ProduceService/Produce", Kind::Produce),
    ("streambus.v1.ProduceService/ProduceStream", Kind::Stream),
    ("streambus.v1.TopicService/AddTopicPartitions", Kind::Unary),
    ("streambus.v1.TopicService/AlterTopic", Kind::Unary),
    ("streambus.v1.TopicService/CreateTopic", Kind::Unary),
    ("streambus.v1.TopicService/DeleteRecords", Kind::Unary),
    ("streambus.v1.TopicService/DeleteTopic", Kind::Unary),
    ("streambus.v1.TopicService/DescribeTopic", Kind::Unary),
    ("streambus.v1.TopicService/ListOffsets", Kind::Unary),
    ("streambus.v1.TopicService/ListTopics", Kind::Unary),
];

impl Method {
    /// The method of a request path such as `/streambus.v1.ProduceService/Produce`.
    pub(in crate::api) fn of_path(path: &str) -> Self {
        let name = path.strip_prefix('/').unwrap_or(path);
        match METHODS.binary_search_by(|(known, _)| (*known).cmp(name)) {
            Ok(index) => Method(&METHODS[index]),
            Err(_) => Method(&OTHER),
        }
    }

    /// `rpc.method` of the semantic conventions: the full name without leading slash, `_OTHER` for unknown methods.
    pub(in crate::api) fn name(self) -> &'static str {
        self.0.0
    }

    pub(in crate::api) fn kind(self) -> Kind {
        self.0.1
    }

    /// Whether brokers call it among themselves.
    pub(in crate::api) fn is_of_peers(self) -> bool {
        self.name().starts_with("streambus.internal.")
    }

    /// Whether a call may have changed something although it was not answered.
    pub(in crate::api) fn writes(self) -> bool {
        const READS: [&str; 7] = ["/Describe", "/Explain", "/Fetch", "/Find", "/Get", "/List", "/Check"];
        self.is_unary() && !READS.iter().any(|verb| self.name().contains(verb))
    }

    /// Whether its duration and status belong into call figures.
    pub(in crate::api) fn is_unary(self) -> bool {
        matches!(self.kind(), Kind::Unary | Kind::Produce)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn the_table_is_sorted() {
        assert!(METHODS.is_sorted_by_key(|(name, _)| name));
    }

    #[test]
    fn every_method_of_the_protocol_is_known_with_its_kind() {
        let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let mut seen = 0;
        for file in descriptors.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    let known = Method::of_path(&format!("/{name}"));
                    assert_eq!(known.name(), name);
                    let streams = method.client_streaming() || method.server_streaming();
                    assert_eq!(known.kind() == Kind::Stream, streams, "{name}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, METHODS.iter().filter(|(_, kind)| *kind != Kind::Infrastructure).count());
    }

    #[test]
    fn methods_that_write_are_told_from_those_that_read() {
        let writes = |name: &str| Method::of_path(name).writes();
        for method in ["ProduceService/Produce", "TopicService/CreateTopic", "TopicService/DeleteRecords"] {
            assert!(writes(&format!("/streambus.v1.{method}")), "{method}");
        }
        for method in [
            "ConsumeService/Fetch",
            "TopicService/ListTopics",
            "ClusterService/DescribeCluster",
            "ControlService/ExplainRecord",
            "ControlService/FindRecords",
        ] {
            assert!(!writes(&format!("/streambus.v1.{method}")), "{method}");
        }
    }

    #[test]
    fn unknown_methods_share_one_name() {
        assert_eq!(Method::of_path("/streambus.v1.ProduceService/Guess").name(), "_OTHER");
        assert_eq!(Method::of_path("").name(), "_OTHER");
    }
}
