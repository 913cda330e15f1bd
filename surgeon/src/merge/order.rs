//! In which order the sum of a block's shards grows, and what a killed surgeon leaves. Pure: no store, no tensors.
//!
//! Sums are named by how many shards they cover, always the first ones. At any moment the longest counts; shards that it
//! covers are in it and nowhere else, whatever lies under their own keys; the others are whole under their own keys, or are
//! still to come.

/// One change of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Write the sum of the first so many shards.
    Sum(u32),
    /// Empty the object of the shard with this number: its factors are in a sum.
    Mark(u32),
    /// Delete the sum of the first so many shards.
    Drop(u32),
}

/// When a shard that came is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has been.
    Over,
    /// It follows the longest sum.
    Now,
    /// Others come before it.
    Later,
}

/// Returns how many shards are in the longest of some sums, which rise.
pub(super) fn longest(sums: &[u32]) -> u32 {
    sums.last().copied().unwrap_or(0)
}

/// Returns when a shard is added, by its number within its pass.
pub(super) fn turn(sums: &[u32], number: u32) -> Turn {
    match number.cmp(&longest(sums)) {
        std::cmp::Ordering::Less => Turn::Over,
        std::cmp::Ordering::Equal => Turn::Now,
        std::cmp::Ordering::Greater => Turn::Later,
    }
}

/// Returns the changes that make the longest sum longer by one shard, in the order in which they must reach the store:
/// killed after any of them, a surgeon leaves every shard in exactly one place that counts.
pub(super) fn lengthened(sums: &[u32]) -> Vec<Change> {
    let longest = longest(sums);
    let mut changes = left_over(sums);
    changes.extend([Change::Sum(longest + 1), Change::Mark(longest)]);
    changes.extend((longest > 0).then_some(Change::Drop(longest)));
    changes
}

/// Returns the changes for a shard that came again, though the longest sum has it.
pub(super) fn marked(sums: &[u32], number: u32) -> Vec<Change> {
    let mut changes = vec![Change::Mark(number)];
    changes.extend(left_over(sums));
    changes
}

/// Returns what somebody who was killed had still to do: shorter sums were not dropped, perhaps the last shard not marked.
fn left_over(sums: &[u32]) -> Vec<Change> {
    match sums.split_last() {
        Some((longest, shorter @ [_, ..])) => {
            std::iter::once(Change::Mark(longest - 1)).chain(shorter.iter().map(|n| Change::Drop(*n))).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    /// Which shards' factors are added up, in order.
    type Content = Vec<u32>;

    /// The objects of one block in one pass; a shard's own is empty once it is marked.
    #[derive(Debug, Default)]
    struct World {
        sums: BTreeMap<u32, Content>,
        own: BTreeMap<u32, Content>,
    }

    /// One write that a surgeon has decided on; what it writes it has in memory.
    #[derive(Debug)]
    enum Write {
        Sum(u32, Content),
        Own(u32),
        Mark(u32),
        Drop(u32),
    }

    impl World {
        fn counts(&self) -> Vec<u32> {
            self.sums.keys().copied().collect()
        }

        fn writes(&self, changes: Vec<Change>) -> VecDeque<Write> {
            let longest = longest(&self.counts());
            let before = self.sums.get(&longest).cloned().unwrap_or_default();
            let with = |shards| Write::Sum(shards, [before.clone(), vec![longest]].concat());
            let write = |change| match change {
                Change::Sum(shards) => with(shards),
                Change::Mark(number) => Write::Mark(number),
                Change::Drop(shards) => Write::Drop(shards),
            };
            changes.into_iter().map(write).collect()
        }

        /// What is done about a shard that came; without `room` it is only kept.
        fn came(&self, number: u32, room: bool) -> VecDeque<Write> {
            let sums = self.counts();
            match turn(&sums, number) {
                Turn::Over => self.writes(marked(&sums, number)),
                Turn::Now if room => self.writes(lengthened(&sums)),
                Turn::Now | Turn::Later => VecDeque::from([Write::Own(number)]),
            }
        }

        /// What is done about a shard that waits.
        fn waited(&self) -> Option<VecDeque<Write>> {
            let sums = self.counts();
            let waits = self.own.get(&longest(&sums)).is_some_and(|content| !content.is_empty());
            waits.then(|| self.writes(lengthened(&sums)))
        }

        fn make(&mut self, write: Write) {
            match write {
                Write::Sum(shards, content) => drop(self.sums.insert(shards, content)),
                Write::Own(number) => drop(self.own.insert(number, vec![number])),
                Write::Mark(number) => drop(self.own.insert(number, Content::new())),
                Write::Drop(shards) => drop(self.sums.remove(&shards)),
            }
        }

        /// What is added up in the end: the longest sum, then the shards after it.
        fn laid_out(&self) -> Content {
            let mut all = self.sums.last_key_value().map(|(_, content)| content.clone()).unwrap_or_default();
            let rest = self.own.range(longest(&self.counts())..);
            all.extend(rest.flat_map(|(_, content)| content));
            all
        }

        /// Every shard that is said to be stored counts exactly once, in its place.
        fn check(&self) -> Result<(), TestCaseError> {
            for (shards, content) in &self.sums {
                prop_assert_eq!(content, &(0..*shards).collect::<Content>());
            }
            let covered = longest(&self.counts());
            let stored = self.own.keys().copied().filter(|n| *n >= covered);
            prop_assert_eq!(self.laid_out(), (0..covered).chain(stored).collect::<Content>());
            Ok(())
        }
    }

    /// A shuffled run of shards, and for each step how many writes are made before somebody is killed.
    fn arrivals() -> impl Strategy<Value = (Vec<u32>, Vec<(usize, bool)>)> {
        let shards = (1_u32..8).prop_flat_map(|n| Just((0..n).collect::<Vec<_>>()).prop_shuffle());
        (shards, prop::collection::vec((0_usize..8, any::<bool>()), 0..40))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_order_and_any_kill_end_in_the_same_sum((order, kills) in arrivals()) {
            let (mut world, mut kills) = (World::default(), kills.into_iter());
            let all = order.len() as u32;
            // A shard comes until its own object is there: that is what its calibrator and its surgeon ask for.
            while let Some(&number) = order.iter().find(|number| !world.own.contains_key(*number)) {
                let (mut left, room) = kills.next().unwrap_or((usize::MAX, true));
                let mut next = Some(world.came(number, room));
                while let Some(mut writes) = next.take() {
                    while left > 0 && let Some(write) = writes.pop_front() {
                        world.make(write);
                        world.check()?;
                        left -= 1;
                    }
                    next = if left > 0 { world.waited() } else { None };
                }
            }
            prop_assert_eq!(world.laid_out(), (0..all).collect::<Content>());
        }

        #[test]
        fn undisturbed_all_shards_end_in_one_sum_and_nothing_else((order, _) in arrivals()) {
            let mut world = World::default();
            let all = order.len() as u32;
            for (come, number) in order.into_iter().enumerate() {
                let mut next = Some(world.came(number, true));
                while let Some(writes) = next {
                    for write in writes {
                        world.make(write);
                    }
                    next = world.waited();
                }
                let waiting = world.own.values().filter(|content| !content.is_empty()).count();
                prop_assert!(world.sums.len() <= 1 && waiting + longest(&world.counts()) as usize == come + 1);
            }
            prop_assert_eq!(world.counts(), [all]);
            prop_assert!(world.own.len() as u32 == all && world.own.values().all(Vec::is_empty));
        }

        /// A surgeon that has lost the block does not know yet; writes of both reach the store in any order.
        #[test]
        fn two_surgeons_at_once_lose_and_double_nothing(
            (order, _) in arrivals(),
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let mut world = World::default();
            let all = order.len() as u32;
            let mut pending: [VecDeque<Write>; 2] = Default::default();
            for (who, which, room) in steps {
                let mine = &mut pending[usize::from(who)];
                match mine.pop_front() {
                    Some(write) => world.make(write),
                    // Decided from what is there now, written later.
                    None => *mine = world.waited().filter(|_| room).unwrap_or_else(|| world.came(*which.get(&order), room)),
                }
                world.check()?;
            }
            for write in pending.into_iter().flatten() {
                world.make(write);
                world.check()?;
            }
            for number in order {
                if !world.own.contains_key(&number) {
                    world.came(number, true).into_iter().for_each(|write| world.make(write));
                }
            }
            prop_assert_eq!(world.laid_out(), (0..all).collect::<Content>());
        }
    }
}
