//! How the members of a group are written, in log entries, checkpoints and messages.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | voter sets: 1, or 2 while the members change |
//! | 2..4 | reserved, 0 |
//! | then per voter set | count u32, then the node ids u64, ascending |
//! | then | learners: count u32, then the node ids u64, ascending |
//!
//! All integers are little endian.

use std::collections::BTreeSet;

use super::NodeId;
use super::types::Membership;

const VERSION: u8 = 1;

/// Writes `membership`.
pub(super) fn encode(membership: &Membership) -> Vec<u8> {
    let voters = membership.get_joint_config();
    let learners: BTreeSet<NodeId> = membership.learner_ids().collect();
    // A group has one voter set, or two while it changes; openraft makes no others.
    let mut bytes = vec![VERSION, voters.len() as u8, 0, 0];
    for set in voters.iter().chain([&learners]) {
        bytes.extend_from_slice(&(set.len() as u32).to_le_bytes());
        for node in set {
            bytes.extend_from_slice(&node.to_le_bytes());
        }
    }
    bytes
}

/// Reads what [`encode`] wrote; nothing if the bytes are anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<Membership> {
    let (head, mut rest) = bytes.split_first_chunk::<4>()?;
    if head[0] != VERSION {
        return None;
    }
    let mut voters = Vec::with_capacity(usize::from(head[1]));
    for _ in 0..head[1] {
        voters.push(take_set(&mut rest)?);
    }
    let learners = take_set(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    Some(Membership::new_with_defaults(voters, learners))
}

fn take_set(rest: &mut &[u8]) -> Option<BTreeSet<NodeId>> {
    let (count, mut tail) = rest.split_first_chunk::<4>()?;
    let mut nodes = BTreeSet::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (node, after) = tail.split_first_chunk::<8>()?;
        nodes.insert(u64::from_le_bytes(*node));
        tail = after;
    }
    *rest = tail;
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> Membership {
        Membership::new_with_defaults(vec![BTreeSet::from([1, 2]), BTreeSet::from([2])], BTreeSet::from([7]))
    }

    #[test]
    fn bytes_are_as_documented() {
        #[rustfmt::skip]
        let golden = [
            1, 2, 0, 0,
            2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(encode(&joint()), golden);
        assert_eq!(decode(&golden), Some(joint()));
    }

    #[test]
    fn members_without_voters_survive() {
        let empty = Membership::default();
        assert_eq!(decode(&encode(&empty)), Some(empty));
    }

    #[test]
    fn cut_extended_and_unknown_bytes_are_refused() {
        let bytes = encode(&joint());
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(decode(&[&[2], &bytes[1..]].concat()), None);
    }
}
