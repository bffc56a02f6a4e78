//! A subscription stream that is a member of a group.

use super::Context;
use super::consume::deliver;
use super::subscribe::invalid;
use crate::api::convert::{self, groups};
use crate::api::rpc::Handover;
use crate::api::status::Failure;
use crate::broker::Fetched;
use crate::broker::groups::{Member, MemberEvent, ShareMember};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;
use crate::proto::v1::subscribe_response::Event;
use crate::telemetry::RequestTrace;

/// See the module. Dropping it ends the membership of a dynamic member.
pub(super) struct Session {
    member: Membership,
    left: bool,
}

enum Membership {
    Consumer(Box<Member>),
    Share(Box<ShareMember>),
}

impl Session {
    /// Joins the group.
    pub(super) async fn join(context: &Context, join: v1::JoinGroup) -> Result<Self, Failure> {
        let member = match groups::Wanted::try_from(join)? {
            groups::Wanted::Consumer(join) => {
                Membership::Consumer(Box::new(context.broker().join(join).await?))
            }
            groups::Wanted::Share(join) => {
                Membership::Share(Box::new(context.broker().join_share(join).await?))
            }
        };
        Ok(Session { member, left: false })
    }

    /// What comes next. Cancel-safe.
    pub(super) async fn next(
        &mut self,
        context: &Context,
        handover: &Handover,
    ) -> Result<v1::SubscribeResponse, Failure> {
        let event = match &mut self.member {
            Membership::Consumer(member) => member.next().await?,
            Membership::Share(member) => member.next().await?,
        };
        Ok(self.response(context, handover, event))
    }

    fn response(&self, context: &Context, handover: &Handover, event: MemberEvent) -> v1::SubscribeResponse {
        let group = self.group();
        let event = match event {
            MemberEvent::Joined { member_id, epoch, session_timeout } => Event::Joined(v1::GroupJoined {
                group: group.to_owned(),
                member_id: member_id.to_string(),
                epoch,
                session_timeout: Some(convert::duration_to_proto(session_timeout)),
            }),
            MemberEvent::Assigned { epoch, partitions } => Event::Assigned(v1::PartitionsAssigned {
                epoch,
                partitions: partitions.into_iter().map(Into::into).collect(),
            }),
            MemberEvent::Revoked { epoch, partitions, deadline } => Event::Revoked(v1::PartitionsRevoked {
                epoch,
                partitions: partitions.into_iter().map(Into::into).collect(),
                deadline: Some(convert::duration_to_proto(deadline)),
            }),
            MemberEvent::Records(fetched, responding) => {
                handover.made(responding);
                return self.deliver(context, fetched).into();
            }
            MemberEvent::Leased { fetched, responding, leases } => {
                handover.made(Some(responding));
                let records = self.deliver(context, fetched);
                let leases = leases.into_iter().map(Into::into).collect();
                return v1::PartitionRecords { leases, ..records }.into();
            }
            MemberEvent::Committed { correlation_id, results } => {
                let results = groups::commit_results(results);
                Event::Committed(v1::Committed { correlation_id, results })
            }
            MemberEvent::Acknowledged { correlation_id, results } => {
                let result = |error: Option<crate::broker::Error>| v1::AcknowledgementResult {
                    error: error.map(|error| Failure::from(error).into_proto()),
                };
                let results = results.into_iter().map(result).collect();
                Event::Acknowledged(v1::Acknowledged { correlation_id, results })
            }
            MemberEvent::Keepalive => Event::Keepalive(v1::Keepalive {}),
        };
        v1::SubscribeResponse::of(event)
    }

    /// Delivers what was read, and notes in which trace.
    fn deliver(&self, context: &Context, fetched: Fetched) -> v1::PartitionRecords {
        let (records, span) = deliver(context, fetched, &RequestTrace::NONE, Some(self.group()));
        if let Some(span) = span {
            match &self.member {
                Membership::Consumer(member) => member.delivered_in(&records.topic, records.partition, span),
                Membership::Share(member) => member.delivered_in(&records.topic, records.partition, span),
            }
        }
        records
    }

    fn group(&self) -> &str {
        match &self.member {
            Membership::Consumer(member) => member.group(),
            Membership::Share(member) => member.group(),
        }
    }

    /// Whether answers are on their way.
    pub(super) fn is_answering(&self) -> bool {
        match &self.member {
            Membership::Consumer(member) => member.is_committing(),
            Membership::Share(member) => member.is_acknowledging(),
        }
    }

    /// Whether another request may be read now.
    pub(super) fn takes_requests(&self) -> bool {
        !self.left
            && match &self.member {
                Membership::Consumer(member) => member.can_commit(),
                Membership::Share(member) => member.can_acknowledge(),
            }
    }

    /// Whether the member has left.
    pub(super) fn has_left(&self) -> bool {
        self.left
    }

    /// Does what the client asks for.
    pub(super) async fn act(&mut self, action: Action) -> Result<(), Failure> {
        match &mut self.member {
            Membership::Consumer(member) => {
                member.heard();
                match action {
                    Action::Commit(v1::Commit { correlation_id, epoch, offsets }) => {
                        let offsets = groups::commits(offsets, "commit.offsets")?;
                        member.commit(correlation_id, epoch, offsets).await?;
                    }
                    Action::Release(release) => {
                        let partitions = groups::partitions(release.partitions, "release.partitions")?;
                        member.release(&partitions);
                    }
                    Action::Pause(pause) => {
                        member.pause(&groups::partitions(pause.partitions, "pause.partitions")?);
                    }
                    Action::Resume(resume) => {
                        member.resume(&groups::partitions(resume.partitions, "resume.partitions")?).await;
                    }
                    Action::Credit(credit) => member.grant(credit.bytes),
                    Action::Heartbeat(_) => {}
                    Action::Leave(_) => {
                        member.leave();
                        self.left = true;
                    }
                    Action::Acknowledge(_) => {
                        return Err(invalid("members of a consumer group use commit, not acknowledge"));
                    }
                    Action::Start(_) | Action::Add(_) | Action::Remove(_) | Action::Join(_) => {
                        return Err(not_for_members());
                    }
                }
            }
            Membership::Share(member) => {
                member.heard();
                match action {
                    Action::Acknowledge(v1::Acknowledge { correlation_id, acknowledgements }) => {
                        let acknowledgements = groups::acknowledgements(acknowledgements)?;
                        member.acknowledge(correlation_id, acknowledgements).await?;
                    }
                    Action::Credit(credit) => member.grant(credit.bytes),
                    // Partitions that are gone need no release: nobody owns them.
                    Action::Heartbeat(_) | Action::Release(_) => {}
                    Action::Leave(_) => {
                        member.leave().await?;
                        self.left = true;
                    }
                    Action::Commit(_) => {
                        return Err(invalid("members of a share group use acknowledge, not commit"));
                    }
                    Action::Pause(_) | Action::Resume(_) => {
                        return Err(invalid(
                            "members of a share group have no partitions to pause or resume",
                        ));
                    }
                    Action::Start(_) | Action::Add(_) | Action::Remove(_) | Action::Join(_) => {
                        return Err(not_for_members());
                    }
                }
            }
        }
        Ok(())
    }
}

fn not_for_members() -> Failure {
    invalid(
        "the stream is a member of a group, which is given its partitions: start, add, remove and join are not for it",
    )
}
