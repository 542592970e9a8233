//! What a file has in common with an older one: blocks of the older one, found at any place of the new one.
//!
//! Invariant: what is found is equal byte by byte, in the order of the new file and without overlaps.

use std::collections::HashMap;

/// Bytes of the shortest thing that is found for sure, if it is at a whole block of the older file.
const BLOCK: usize = 512;

/// Of the rolling sum; odd, and with its bits mixed.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes that both files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Common {
    /// Where in the older file.
    pub(super) old: usize,
    /// Where in the new one.
    pub(super) new: usize,
    /// How many.
    pub(super) length: usize,
}

/// What `new` has in common with `old`. The first block that fits is taken, and made as long as possible.
pub(super) fn common(old: &[u8], new: &[u8]) -> Vec<Common> {
    let mut blocks = HashMap::new();
    for (number, block) in old.chunks_exact(BLOCK).enumerate() {
        blocks.entry(sum(block)).or_insert(number * BLOCK);
    }
    let leaving = FACTOR.wrapping_pow(BLOCK as u32 - 1);
    let (mut found, mut done) = (Vec::new(), 0);
    while let Some(window) = new.get(done..done + BLOCK) {
        let (mut at, mut rolling) = (done, sum(window));
        let next = loop {
            let known = blocks.get(&rolling);
            if let Some(common) = known.and_then(|from| grown(old, new, *from, at, done)) {
                break Some(common);
            }
            let Some(byte) = new.get(at + BLOCK) else {
                break None;
            };
            rolling = rolling.wrapping_sub(value(new[at]).wrapping_mul(leaving));
            rolling = rolling.wrapping_mul(FACTOR).wrapping_add(value(*byte));
            at += 1;
        };
        let Some(common) = next else { break };
        done = common.new + common.length;
        found.push(common);
    }
    found
}

/// Zeros count as well.
fn value(byte: u8) -> u64 {
    u64::from(byte) + 1
}

fn sum(block: &[u8]) -> u64 {
    let add = |sum: u64, byte: &u8| sum.wrapping_mul(FACTOR).wrapping_add(value(*byte));
    block.iter().fold(0, add)
}

/// The block of both files, if it is the same, with all that is the same around it, not before `done`.
fn grown(old: &[u8], new: &[u8], from: usize, at: usize, done: usize) -> Option<Common> {
    let equal = |(one, two): &(&u8, &u8)| one == two;
    let ahead = old[from..].iter().zip(&new[at..]).take_while(equal).count();
    let pairs = old[..from].iter().rev().zip(new[done..at].iter().rev());
    let behind = pairs.take_while(equal).count();
    (ahead >= BLOCK).then_some(Common {
        old: from - behind,
        new: at - behind,
        length: behind + ahead,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::noise;
    use super::*;

    fn is_true(old: &[u8], new: &[u8]) -> usize {
        let (mut end, mut bytes) = (0, 0);
        for Common {
            old: from,
            new: at,
            length,
        } in common(old, new)
        {
            assert!(at >= end);
            assert_eq!(old[from..from + length], new[at..at + length]);
            end = at + length;
            bytes += length;
        }
        bytes
    }

    #[test]
    fn what_moved_is_found_to_its_ends() {
        let old = noise(1, 20_000);
        let new = [&noise(2, 333), &old[7_001..15_003], b"x", &old[100..7_001]].concat();
        let expected = [
            Common {
                old: 7_001,
                new: 333,
                length: 8_002,
            },
            Common {
                old: 100,
                new: 8_336,
                length: 6_901,
            },
        ];
        assert_eq!(common(&old, &new), expected);
        assert_eq!(is_true(&old, &old), old.len());
    }

    #[test]
    fn what_has_nothing_in_common_is_left_alone() {
        assert_eq!(common(&noise(1, 20_000), &noise(2, 20_000)), []);
        assert_eq!(common(&noise(1, BLOCK - 1), &noise(1, BLOCK - 1)), []);
        assert_eq!(common(b"", &noise(1, 2000)), []);
        assert_eq!(common(&noise(1, 2000), b""), []);
    }

    #[test]
    fn what_repeats_itself_is_copied_too() {
        let old = [vec![0; 4096], noise(1, 1000)].concat();
        let new = [vec![0; 10_000], noise(1, 1000), vec![0; 700]].concat();
        assert!(is_true(&old, &new) > new.len() - BLOCK);
    }
}
