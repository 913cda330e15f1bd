//! Whether a worker knows of a task that was leased to it. An answer can get lost on its way; what nobody works at is better given
//! to the next worker than kept until its lease runs out.
//!
//! No clock: a worker numbers its calls for tasks, and its heartbeats say which was the last. It makes one call at a time and takes
//! an answer in before the next, so a heartbeat of a later call than the one that leased the task was sent by a worker that knows
//! the task, or never will. A heartbeat of the same call says nothing: the answer may be under way.

/// So many heartbeats in a row must leave a task out.
const ENOUGH: u32 = 2;

/// How a task looks in the heartbeats of the worker that should hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listing {
    /// Number of the worker's call that leased it; 0 from a worker that does not count.
    leased_in: u64,
    /// Heartbeats in a row, up to the last, that should have listed it and did not.
    missed: u32,
}

/// Whether a task is one of those that a heartbeat lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// What to do about a leased task after a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its lease stays as it is.
    Keep,
    /// Its worker does not know of it: another may have it at once.
    GiveBack,
}

impl Listing {
    /// Returns that of a task that was leased by the worker's call of this number.
    pub fn new(leased_in: u64) -> Self {
        Self { leased_in, missed: 0 }
    }

    /// Takes in a heartbeat that was sent after the call `last_call` had begun, and decides.
    pub fn hear(&mut self, last_call: u64, listed: Listed) -> Verdict {
        self.missed = match listed {
            Listed::Yes => 0,
            Listed::No if self.leased_in == 0 || last_call <= self.leased_in => self.missed,
            Listed::No => self.missed + 1,
        };
        if self.missed >= ENOUGH { Verdict::GiveBack } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What happens between a worker and its coordinator.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// The worker calls for tasks; the coordinator leases one with each call.
        Call,
        /// The answer of the last call arrives.
        Answer,
        /// The worker sends a heartbeat.
        Send,
        /// The coordinator takes in the oldest heartbeat under way.
        Hear,
        /// The worker is done with its oldest task; the coordinator knew before.
        Finish,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![Just(Step::Call), Just(Step::Answer), Just(Step::Send), Just(Step::Hear), Just(Step::Finish)]
    }

    /// A worker and what its coordinator thinks that it holds; a task is named by the call that leased it.
    #[derive(Debug, Default)]
    struct World {
        calls: u64,
        answered: u64,
        held: Vec<u64>,
        under_way: std::collections::VecDeque<(u64, Vec<u64>)>,
        leased: std::collections::BTreeMap<u64, Listing>,
        given_back: Vec<u64>,
    }

    impl World {
        fn take(&mut self, step: Step) {
            match step {
                Step::Call => {
                    self.calls += 1; // an answer that has not arrived by now never will
                    self.leased.insert(self.calls, Listing::new(self.calls));
                }
                Step::Answer if self.answered < self.calls => {
                    self.answered = self.calls;
                    if self.leased.contains_key(&self.calls) {
                        self.held.push(self.calls);
                    }
                }
                Step::Send => self.under_way.push_back((self.calls, self.held.clone())),
                Step::Hear => {
                    let Some((call, tasks)) = self.under_way.pop_front() else { return };
                    let given_back = &mut self.given_back;
                    self.leased.retain(|task, listing| {
                        let listed = if tasks.contains(task) { Listed::Yes } else { Listed::No };
                        let keep = listing.hear(call, listed) == Verdict::Keep;
                        given_back.extend((!keep).then_some(*task));
                        keep
                    });
                }
                Step::Finish if !self.held.is_empty() => {
                    let done = self.held.remove(0);
                    self.leased.remove(&done);
                }
                Step::Answer | Step::Finish => {}
            }
        }
    }

    proptest! {
        #[test]
        fn a_task_that_its_worker_holds_or_may_yet_hear_of_is_kept(steps in proptest::collection::vec(step(), 0..200)) {
            let mut world = World::default();
            for step in steps {
                world.take(step);
                let may_come = (world.answered < world.calls).then_some(world.calls);
                for task in world.held.iter().copied().chain(may_come) {
                    prop_assert!(!world.given_back.contains(&task), "task {task} in {world:?}");
                }
            }
        }

        #[test]
        fn a_task_that_got_lost_is_given_back_by_the_second_heartbeat_after(steps in proptest::collection::vec(step(), 0..200)) {
            let mut world = World::default();
            for step in steps {
                world.take(step);
            }
            world.take(Step::Call); // the answer is lost
            let lost = world.calls;
            world.take(Step::Call);
            world.under_way.clear();
            for sent in 1..=ENOUGH {
                prop_assert!(!world.given_back.contains(&lost), "before heartbeat {sent}");
                world.take(Step::Send);
                world.take(Step::Hear);
            }
            prop_assert!(world.given_back.contains(&lost));
        }

        #[test]
        fn a_worker_that_does_not_count_keeps_its_leases(last_call in any::<u64>(), beats in 0..9) {
            let mut listing = Listing::new(0);
            for _ in 0..beats {
                prop_assert_eq!(listing.hear(last_call, Listed::No), Verdict::Keep);
            }
        }
    }

    #[test]
    fn heartbeats_that_leave_it_out_count_only_in_a_row() {
        let mut listing = Listing::new(3);
        for listed in [Listed::No, Listed::Yes, Listed::No] {
            assert_eq!(listing.hear(4, listed), Verdict::Keep);
        }
        assert_eq!(listing.hear(4, Listed::No), Verdict::GiveBack);
    }
}
