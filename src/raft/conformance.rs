//! openraft's own tests of a log store and a state machine, as far as they fit. Left out are those that
//! contradict what a group's log is: they leave holes in it, purge it without a snapshot, or expect a
//! snapshot of the latest state.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::sync::oneshot;

use super::Config;
use super::apply::Applier;
use super::catch_up::CatchUp;
use super::log_store::LogStore;
use super::promise::Promise;
use super::shared::Shared;
use super::tail::Tail;
use super::testing::{Broker, GROUP, Notebook};
use super::types::Types;

struct Empty;

impl StoreBuilder<Types, LogStore, Applier, Broker> for Empty {
    async fn build(&self) -> Result<(Broker, LogStore, Applier), StorageError<Types>> {
        let broker = Broker::alone(Config::default());
        let log = broker.env.store.log(GROUP).expect("a new store opens a log");
        let tail = Tail::new(None, None);
        let transport = Arc::new(crate::raft::NoPeers);
        let shared =
            Shared::new(log, 1 << 20, CatchUp::default(), tail, None, Promise::new(None, None), transport);
        let (ended, _) = oneshot::channel();
        let applier = Applier::new(Arc::clone(&shared), Box::new(Notebook::default()), None, 1 << 20, ended);
        Ok((broker, LogStore::new(shared), applier))
    }
}

macro_rules! conforms {
    ($($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (_broker, store, machine) = Empty.build().await.unwrap();
                Suite::<Types, LogStore, Applier, Empty, Broker>::$name(store, machine).await.unwrap();
            }
        )*
    };
}

conforms! {
    last_membership_in_log_initial
    get_membership_initial
    get_membership_from_empty_log_and_sm
    get_membership_from_log_le_sm_last_applied
    get_membership_from_log_gt_sm_last_applied_1
    get_membership_from_log_gt_sm_last_applied_2
    get_initial_state_without_init
    get_initial_state_with_state
    get_initial_state_last_log_gt_sm
    get_initial_state_inverted_log_order
    get_initial_state_conflict_at_same_index
    get_initial_state_re_apply_committed
    save_vote
    get_log_entries
    limited_get_log_entries
    leader_bounded_stream
    log_reader_reads_new_entries
    initial_logs
    get_log_id
    last_id_in_log
    last_applied_state
    delete_logs_after_11
    delete_logs_after_5
    delete_logs_after_0
    delete_logs_after_none
    snapshot_meta_optional
    apply_single
    apply_multiple
}
