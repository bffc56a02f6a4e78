//! The task of a share consumer, which serves its stream.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::state::Shared;
use crate::client::Error;
use crate::client::member::{Requests, Responses, Role, ended};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;
use crate::proto::v1::subscribe_response::Event;

/// Leases are extended after this part of their time.
const EXTEND_PART: u32 = 3;

/// Serves a member's stream.
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
}

impl Role for Member {
    fn request(&self) -> v1::JoinGroup {
        let member_id = self.shared.lock().member_id.clone();
        self.shared.config.request(member_id)
    }

    fn joined(&self, joined: v1::GroupJoined, requests: Requests) {
        self.shared.joined(joined, requests);
    }

    async fn serve(&self, responses: &mut Responses) -> Error {
        let mut ticks = interval(self.shared.config.lease / EXTEND_PART);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut release_at: Option<Instant> = None;
        let mut retry_at: Option<Instant> = None;
        loop {
            // Timers that are off are not looked at.
            let now = Instant::now();
            tokio::select! {
                response = responses.message() => {
                    let handled = match response {
                        Ok(Some(response)) => self.handle(response, &mut retry_at),
                        Ok(None) => Err(ended()),
                        Err(status) => Err(status.into()),
                    };
                    if let Err(error) = handled {
                        return error;
                    }
                }
                _ = ticks.tick(), if self.shared.config.auto_extend => self.shared.extend_all(),
                () = sleep_until(retry_at.unwrap_or(now)), if retry_at.is_some() => {
                    retry_at = None;
                    self.shared.retry_acks();
                }
                () = sleep_until(release_at.unwrap_or(now)), if release_at.is_some() => {}
            }
            release_at = self.shared.release_due();
        }
    }

    fn lost(&self, error: &Error) {
        self.shared.lost(error);
    }

    fn failed(&self, error: Error) {
        self.shared.end(Some(error));
    }

    fn leaving(&self) -> bool {
        self.shared.lock().leaving
    }
}

impl Member {
    fn handle(&self, response: v1::SubscribeResponse, retry_at: &mut Option<Instant>) -> Result<(), Error> {
        match response.event {
            Some(Event::Records(records)) => self.shared.received(records)?,
            Some(Event::Keepalive(_)) => {
                if let Some(session) = &self.shared.lock().session {
                    session.requests.send(Action::Heartbeat(v1::Heartbeat {}));
                }
            }
            Some(Event::Assigned(assigned)) => self.shared.assigned(assigned),
            Some(Event::Revoked(revoked)) => self.shared.revoked(revoked),
            Some(Event::Acknowledged(answer)) => {
                if let Some(asked) = self.shared.acknowledged(answer)? {
                    let delay = self.shared.router.config().backoff.delay(1, asked);
                    retry_at.get_or_insert(Instant::now() + delay);
                }
            }
            // Joined comes once, committed is for consumer groups, and the rest is not known yet.
            Some(Event::Joined(_) | Event::Committed(_)) | None => {}
        }
        Ok(())
    }
}
