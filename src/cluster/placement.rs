//! Which brokers get the replicas of a partition. Pure: the same input gives the same answer.
//!
//! Leaders (the first replicas) and replicas are spread evenly over brokers; the replicas of one partition stand in as many
//! racks as there are.

use std::collections::BTreeMap;

use crate::metadata::{BrokerId, PartitionAssignment, State};

/// A broker that may be given replicas, and what it has already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The broker.
    pub id: BrokerId,
    /// Whether it is there. One that is not gets replicas only if there are too few others.
    pub reached: bool,
    /// Where it stands; empty if nobody said.
    pub rack: String,
    /// Replicas that it has or is to have.
    pub replicas: usize,
    /// Partitions of which it is the preferred leader.
    pub leaders: usize,
}

/// There are too few brokers for as many replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} replicas need as many brokers, and {available} can take one")]
pub struct TooFew {
    /// Replicas that were asked for.
    pub wanted: usize,
    /// Brokers that may be given a replica.
    pub available: usize,
}

/// The brokers of a cluster that may be given replicas.
pub fn candidates(state: &State, reached: impl Fn(BrokerId) -> bool) -> Vec<Candidate> {
    let mut found: BTreeMap<BrokerId, Candidate> = state
        .brokers()
        .filter(|broker| broker.takes_replicas())
        .map(|broker| {
            let (id, rack) = (broker.id, broker.rack.clone());
            (id, Candidate { id, reached: reached(id), rack, replicas: 0, leaders: 0 })
        })
        .collect();
    for assignment in state.topics().flat_map(|topic| &topic.partitions) {
        for (at, id) in assignment.replicas.iter().enumerate() {
            if let Some(candidate) = found.get_mut(id) {
                candidate.replicas += 1;
                candidate.leaders += usize::from(at == 0);
            }
        }
    }
    found.into_values().collect()
}

/// Places `partitions` new partitions with `factor` replicas each.
///
/// # Errors
/// [`TooFew`].
pub fn place(
    mut candidates: Vec<Candidate>,
    partitions: u32,
    factor: u32,
) -> Result<Vec<PartitionAssignment>, TooFew> {
    let mut placed = Vec::with_capacity(partitions as usize);
    for _ in 0..partitions {
        let mut replicas = Vec::with_capacity(factor as usize);
        for at in 0..factor as usize {
            let chosen = choose(&candidates, &replicas, at == 0);
            let too_few = TooFew { wanted: factor as usize, available: candidates.len() };
            let chosen = chosen.ok_or(too_few)?;
            let candidate = &mut candidates[chosen];
            candidate.replicas += 1;
            candidate.leaders += usize::from(at == 0);
            replicas.push(candidate.id);
        }
        placed.push(PartitionAssignment::new(replicas));
    }
    Ok(placed)
}

/// The replicas of a partition without those on brokers that are not candidates: others take their places.
///
/// # Errors
/// [`TooFew`].
pub fn replace(candidates: &[Candidate], assignment: &PartitionAssignment) -> Result<Vec<BrokerId>, TooFew> {
    let stays = |id: &BrokerId| candidates.iter().any(|candidate| candidate.id == *id);
    let mut replicas: Vec<BrokerId> = assignment.replicas.iter().copied().filter(stays).collect();
    for at in 0..assignment.replicas.len() {
        if stays(&assignment.replicas[at]) {
            continue;
        }
        let too_few = TooFew { wanted: assignment.replicas.len(), available: candidates.len() };
        let chosen = choose(candidates, &replicas, at == 0).ok_or(too_few)?;
        replicas.insert(at.min(replicas.len()), candidates[chosen].id);
    }
    Ok(replicas)
}

/// The candidate that is best for one more replica beside `taken`.
fn choose(candidates: &[Candidate], taken: &[BrokerId], leads: bool) -> Option<usize> {
    let rack_of = |id: &BrokerId| {
        candidates
            .iter()
            .find(|candidate| candidate.id == *id)
            .map_or("", |candidate| candidate.rack.as_str())
    };
    let in_rack = |candidate: &Candidate| taken.iter().filter(|id| rack_of(id) == candidate.rack).count();
    let free = candidates.iter().enumerate().filter(|(_, candidate)| !taken.contains(&candidate.id));
    let rank = |candidate: &Candidate| {
        let load = if leads {
            (candidate.leaders, candidate.replicas)
        } else {
            (candidate.replicas, candidate.leaders)
        };
        (!candidate.reached, in_rack(candidate), load, candidate.id)
    };
    free.min_by_key(|(_, candidate)| rank(candidate)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(racks: &[&str]) -> Vec<Candidate> {
        let candidate = |(at, rack): (usize, &&str)| Candidate {
            id: BrokerId(at as u64 + 1),
            reached: true,
            rack: (*rack).to_owned(),
            replicas: 0,
            leaders: 0,
        };
        racks.iter().enumerate().map(candidate).collect()
    }

    fn count(
        placed: &[PartitionAssignment],
        of: impl Fn(&PartitionAssignment) -> Vec<BrokerId>,
    ) -> Vec<usize> {
        let mut counts = BTreeMap::new();
        for id in placed.iter().flat_map(of) {
            *counts.entry(id).or_insert(0) += 1;
        }
        counts.into_values().collect()
    }

    #[test]
    fn a_broker_that_is_away_gets_replicas_only_if_there_are_too_few_others() {
        let mut candidates = brokers(&["a", "b", "b"]);
        candidates[0].reached = false;
        let replicas =
            |placed: Vec<PartitionAssignment>| placed.into_iter().map(|one| one.replicas).collect::<Vec<_>>();
        let [two, three] = [BrokerId(2), BrokerId(3)];
        let placed = replicas(place(candidates.clone(), 2, 2).expect("enough"));
        assert_eq!(placed, [[two, three], [three, two]], "rather than in two racks");
        let placed = replicas(place(candidates, 1, 3).expect("enough"));
        assert_eq!(placed, [[two, three, BrokerId(1)]]);
    }

    #[test]
    fn leaders_and_replicas_are_spread_evenly() {
        for (racks, factor) in
            [(vec![""; 3], 3), (vec![""; 5], 3), (vec![""; 4], 2), (vec!["a", "a", "b", "b"], 2)]
        {
            let placed = place(brokers(&racks), 60, factor).expect("enough brokers");
            let leaders = count(&placed, |one| vec![one.replicas[0]]);
            let replicas = count(&placed, |one| one.replicas.clone());
            for counts in [leaders, replicas] {
                let (least, most) = (counts.iter().min().expect("some"), counts.iter().max().expect("some"));
                assert!(most - least <= 2, "{racks:?} {factor}: {counts:?}");
                assert_eq!(counts.len(), racks.len());
            }
        }
    }

    #[test]
    fn replicas_of_a_partition_are_in_different_racks() {
        let brokers = brokers(&["a", "a", "b", "b", "c"]);
        let rack = |id: &BrokerId| brokers[id.0 as usize - 1].rack.clone();
        for assignment in place(brokers.clone(), 30, 3).expect("enough brokers") {
            let racks: std::collections::BTreeSet<String> = assignment.replicas.iter().map(rack).collect();
            assert_eq!(racks.len(), 3, "{assignment:?}");
        }
    }

    #[test]
    fn too_few_brokers_are_an_error() {
        assert_eq!(place(brokers(&["", ""]), 1, 3), Err(TooFew { wanted: 3, available: 2 }));
    }

    #[test]
    fn a_replica_that_must_go_is_replaced_and_the_others_stay() {
        let all = brokers(&["", "", "", ""]);
        let assignment = PartitionAssignment::new([1, 2, 3].map(BrokerId).to_vec());
        let without = |id: u64| all.iter().filter(|one| one.id != BrokerId(id)).cloned().collect::<Vec<_>>();
        assert_eq!(replace(&without(2), &assignment), Ok([1, 4, 3].map(BrokerId).to_vec()));
        assert_eq!(replace(&without(1), &assignment), Ok([4, 2, 3].map(BrokerId).to_vec()));
        let three: Vec<_> = without(4).into_iter().filter(|one| one.id != BrokerId(1)).collect();
        assert!(replace(&three, &assignment).is_err());
    }
}
