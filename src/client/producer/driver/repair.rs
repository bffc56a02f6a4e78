//! Mending lanes: waiting, finding the leader, getting a new producer id, and then letting them flow again.

use std::cmp::Reverse;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::{Answer, Driver, LaneId, Stage, Timer, decide};
use crate::client::admin::init_producer;
use crate::client::producer::lane::Repairs;
use crate::client::routing::Route;
use crate::client::{Error, ErrorCode};

impl Driver {
    /// Sees to it that a parked lane is repaired after the time that its failures ask for; at once if nothing failed.
    pub(super) fn schedule_repair(&mut self, id: LaneId) {
        let slot = &mut self.slots[id as usize];
        if slot.stage != Stage::Idle {
            return;
        }
        slot.repairs.add(slot.lane.take_repairs());
        let asked = slot.repairs.retry_after.take();
        match slot.lane.failures() {
            0 => self.repair(id),
            failures => {
                slot.stage = Stage::Waiting;
                let backoff = &self.router.config().backoff;
                let delay = match slot.lane.last_error() {
                    Some(error) => backoff.delay_after(failures, error).max(asked.unwrap_or_default()),
                    None => backoff.delay(failures, asked),
                };
                self.timers.push(Reverse((Instant::now() + delay, Timer::Repair(id))));
            }
        }
    }

    /// Does what is still to be done for a parked lane, one thing after the other, then restarts it.
    pub(super) fn repair(&mut self, id: LaneId) {
        let slot = &mut self.slots[id as usize];
        debug_assert!(slot.lane.is_parked() && slot.stage == Stage::Idle);
        slot.repairs.add(slot.lane.take_repairs());
        if slot.repairs.reroute {
            slot.stage = Stage::Calling;
            let topic = Arc::clone(&slot.buffer.topic);
            self.reroute(topic);
        } else if slot.repairs.renew {
            slot.stage = Stage::Calling;
            let router = Arc::clone(&self.router);
            let call = async move { Answer::Identified { lane: id, result: init_producer(&router).await } };
            self.answers.push(call.boxed());
        } else {
            slot.repairs = Repairs::default();
            slot.lane.restart();
            self.enqueue(id);
        }
    }

    pub(super) fn reroute(&mut self, topic: Arc<str>) {
        if self.routing.insert(Arc::clone(&topic)) {
            let router = Arc::clone(&self.router);
            let call = async move {
                let result = router.refresh(&topic).await;
                Answer::Routed { topic, result }
            };
            self.answers.push(call.boxed());
        }
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Routed { topic, result } => {
                self.routing.remove(&topic);
                if let Ok(route) = &result {
                    self.shared.learn(route);
                }
                for id in self.lane_ids() {
                    let slot = &mut self.slots[id as usize];
                    if slot.buffer.topic == topic && slot.stage == Stage::Calling && slot.repairs.reroute {
                        slot.stage = Stage::Idle;
                        self.routed(id, &result);
                    }
                }
            }
            Answer::Identified { lane: id, result } => {
                let slot = &mut self.slots[id as usize];
                slot.stage = Stage::Idle;
                match result {
                    Ok(identity) => {
                        slot.repairs.renew = false;
                        slot.lane.renew(identity).into_iter().for_each(decide);
                        self.repair(id);
                    }
                    Err(error) => {
                        slot.lane.repair_failed(error);
                        self.schedule_repair(id);
                    }
                }
            }
        }
    }

    fn routed(&mut self, id: LaneId, result: &Result<Arc<Route>, Error>) {
        let slot = &mut self.slots[id as usize];
        let leader = result.as_ref().map_err(Error::clone).and_then(|route| {
            route.check(slot.buffer.partition)?;
            route
                .leader(slot.buffer.partition)
                .ok_or_else(|| Error::no_leader(&slot.buffer.topic, slot.buffer.partition))
        });
        match leader {
            Ok(broker) => {
                slot.broker = Some(broker);
                slot.repairs.reroute = false;
                self.repair(id);
            }
            // The lane stays parked until there is something new to send, and asks again then.
            Err(error) if is_gone(&error) => {
                slot.take_open(&self.shared);
                slot.lane.fail_all(&error).into_iter().for_each(decide);
            }
            Err(error) => {
                slot.lane.repair_failed(error);
                self.schedule_repair(id);
            }
        }
    }
}

/// Whether the topic or partition does not exist, so that waiting does not help.
fn is_gone(error: &Error) -> bool {
    matches!(error.code(), Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition))
}
