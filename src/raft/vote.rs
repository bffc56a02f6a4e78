//! How a replica's vote is written.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | 1 if a majority granted the vote, so that its node leads or led; otherwise 0 |
//! | 2..8 | reserved, 0 |
//! | 8..16 | term, u64 little endian |
//! | 16..24 | the node voted for, u64 little endian |

use super::types::{LeaderId, Vote};

const VERSION: u8 = 1;

/// Writes `vote`.
pub(super) fn encode(vote: &Vote) -> Vec<u8> {
    let mut bytes = vec![VERSION, u8::from(vote.committed), 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    bytes.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    bytes
}

/// Reads what [`encode`] wrote; nothing if the bytes are anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<Vote> {
    let (head, ids) = bytes.split_first_chunk::<8>()?;
    let (term, node) = ids.split_first_chunk::<8>()?;
    let node = <[u8; 8]>::try_from(node).ok()?;
    if head[0] != VERSION || head[1] > 1 {
        return None;
    }
    let leader_id = LeaderId { term: u64::from_le_bytes(*term), node_id: u64::from_le_bytes(node) };
    Some(Vote { leader_id, committed: head[1] == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let golden = [1, 1, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        let vote = Vote::new_committed(5, 2);
        assert_eq!(encode(&vote), golden);
        assert_eq!(decode(&golden), Some(vote));
        assert_eq!(decode(&encode(&Vote::new(5, 2))), Some(Vote::new(5, 2)));
    }

    #[test]
    fn cut_extended_and_unknown_bytes_are_refused() {
        let bytes = encode(&Vote::new(5, 2));
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(decode(&[&[2], &bytes[1..]].concat()), None);
    }
}
