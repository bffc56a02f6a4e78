//! What a replica does because time passes.
//!
//! openraft's ticks wake every replica five times per heartbeat, leaders and followers, so a broker with thousands of idle
//! groups would do little else. Here a leader beats when it is its turn, and a follower's ticks run only once its leader has been
//! silent for most of the time after which an election may begin. That is no other protocol: heartbeats and elections
//! come when they came with ticks.
//!
//! All leaders of a broker take their turns on one [`Metronome`], many at a time, so that their messages to another broker travel
//! together.

use std::time::Duration;

use tokio::time::Instant;

use super::Config;
use crate::storage::GroupId;

/// Turns per heartbeat. Fewer make larger messages, and longer bursts of work.
const TURNS: u32 = 10;

/// Tells the leaders of a broker when to send heartbeats. Copies beat in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metronome(Instant);

impl Metronome {
    /// One that begins now.
    #[must_use]
    pub fn new() -> Self {
        Metronome(Instant::now())
    }

    /// The first turn of `group` after `now`. Each group has one per `period`.
    fn turn(self, now: Instant, group: GroupId, period: Duration) -> Instant {
        let turn = u32::try_from(group.0 % u64::from(TURNS)).expect("less than the number of turns");
        let first = self.0 + period * turn / TURNS;
        let Some(since) = now.checked_duration_since(first) else { return first };
        let past = since.as_nanos() % period.as_nanos();
        now + period - Duration::from_nanos(past as u64)
    }
}

impl Default for Metronome {
    fn default() -> Self {
        Metronome::new()
    }
}

/// What a replica is, as far as time matters to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It has nobody to talk to.
    Rests,
    /// It leads others.
    Leads,
    /// It follows somebody, looks for whom to follow, or wants to lead.
    Follows,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Whether openraft's ticks run, which let it stand for election.
    pub(super) ticks: bool,
    /// Whether a heartbeat is to be sent now.
    pub(super) beat: bool,
    /// When to ask again. Nothing if no time need pass.
    pub(super) again: Option<Instant>,
}

/// The pace of one replica.
pub(super) struct Pace {
    group: GroupId,
    metronome: Metronome,
    heartbeat: Duration,
    /// How long a leader's silence is not noticed.
    patience: Duration,
    /// The next heartbeat of a leader.
    beat: Option<Instant>,
}

impl Pace {
    pub(super) fn new(group: GroupId, metronome: Metronome, config: &Config) -> Self {
        // An election begins `election_max + election_min` after the leader's last word at the earliest, and ticks
        // run at their full rate a fifth of a heartbeat after they are turned on.
        let patience = config.election_max + config.election_min / 2;
        Pace { group, metronome, heartbeat: config.heartbeat, patience, beat: None }
    }

    /// What is due at `now` for a replica that last heard from its leader at `heard`.
    pub(super) fn due(&mut self, now: Instant, part: Part, heard: Option<Instant>) -> Due {
        let due = Due { ticks: false, beat: false, again: None };
        if part != Part::Leads {
            self.beat = None;
        }
        match part {
            Part::Rests => due,
            Part::Leads => {
                let next = |now| self.metronome.turn(now, self.group, self.heartbeat);
                let planned = *self.beat.get_or_insert_with(|| next(now));
                let beat = planned <= now;
                if beat {
                    self.beat = Some(next(now));
                }
                Due { beat, again: self.beat, ..due }
            }
            Part::Follows => match heard.map(|heard| heard + self.patience).filter(|silent| *silent > now) {
                Some(silent) => Due { again: Some(silent), ..due },
                // Until then it may have heard from a leader.
                None => Due { ticks: true, again: Some(now + self.heartbeat), ..due },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(group: u64, metronome: Metronome) -> Pace {
        Pace::new(GroupId(group), metronome, &Config::default())
    }

    #[test]
    fn a_leader_beats_once_per_heartbeat_and_lost_time_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = pace(3, Metronome(start));
        let begun = pace.due(start + 20 * MS, Part::Leads, None);
        assert_eq!(begun, Due { ticks: false, beat: false, again: Some(start + 150 * MS) });
        let early = pace.due(start + 149 * MS, Part::Leads, None);
        assert_eq!(early, begun);
        let beat = pace.due(start + 152 * MS, Part::Leads, None);
        assert_eq!(beat, Due { ticks: false, beat: true, again: Some(start + 650 * MS) });
        let late = pace.due(start + 1_900 * MS, Part::Leads, None);
        assert_eq!(late, Due { ticks: false, beat: true, again: Some(start + 2_150 * MS) });
    }

    #[test]
    fn leaders_of_many_groups_beat_together() {
        let start = Instant::now();
        let turns = (0..1_000).map(|group| {
            let again = pace(group, Metronome(start)).due(start + 7 * MS, Part::Leads, None).again;
            again.expect("a leader beats")
        });
        let turns: std::collections::BTreeSet<_> = turns.collect();
        assert_eq!(turns.len(), TURNS as usize);
    }

    #[test]
    fn a_follower_ticks_once_its_leader_is_silent_and_well_before_it_may_stand() {
        let config = Config::default();
        let start = Instant::now();
        let mut pace = pace(3, Metronome(start));
        let never = pace.due(start, Part::Follows, None);
        assert!(never.ticks && never.again.is_some());
        let heard = start + 300 * MS;
        let follows = pace.due(start + 400 * MS, Part::Follows, Some(heard));
        let silent = follows.again.expect("silence is noticed");
        assert_eq!(follows, Due { ticks: false, beat: false, again: Some(silent) });
        assert!(pace.due(silent, Part::Follows, Some(heard)).ticks);
        // The ticks, and one more look.
        let stands = heard + config.election_max + config.election_min;
        assert!(silent + config.heartbeat / 2 <= stands, "{:?} before it may stand", stands - silent);
        assert!(!pace.due(silent + MS, Part::Follows, Some(silent)).ticks, "it was heard again");
    }

    #[test]
    fn who_is_alone_needs_no_time() {
        let start = Instant::now();
        let mut pace = pace(3, Metronome(start));
        pace.due(start, Part::Leads, None);
        let rests = Due { ticks: false, beat: false, again: None };
        assert_eq!(pace.due(start + 700 * MS, Part::Rests, None), rests);
        assert!(!pace.due(start + 700 * MS, Part::Leads, None).beat, "its turn comes yet");
    }
}
