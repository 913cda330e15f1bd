//! What to do after a task failed or came back undone. Does not sleep, roll dice or hand out tasks.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use types::WorkerId;

/// What kind of failure a worker reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// Bad spec, model or data.
    InvalidInput,
    /// Not finite, not positive definite, digest mismatch, output does not load.
    Numerical,
    /// The loss or a gradient of some calibration samples is not finite: the samples may be at fault, or the device.
    NotFinite,
    /// Out of memory.
    OutOfMemory,
    /// Store full or unreachable.
    Store,
    /// Connection lost, peer gone.
    Unavailable,
    /// A caught panic or a bug found.
    Internal,
}

/// How an attempt ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setback {
    /// The worker reported a failure.
    Failed(FailureClass),
    /// The worker fell silent.
    LeaseExpired,
    /// The worker gave the task back: it drains or stops.
    Released,
}

/// What one task went through so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// Failures for want of memory.
    pub out_of_memory: u32,
    /// Failures because a peer was gone.
    pub unavailable: u32,
    /// Panics and bugs.
    pub internal: u32,
    /// Losses or gradients that were not finite.
    #[serde(default)]
    pub not_finite: u32,
    /// Leases that ran out.
    pub expiries: u32,
    /// Workers that reported one of these failures.
    pub failed_on: BTreeSet<WorkerId>,
}

impl History {
    /// Says whether nothing has gone wrong yet.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds a setback. Releases leave no trace; classes that are never retried, or that say nothing about the task,
    /// are not counted.
    pub fn record(&mut self, setback: Setback, worker: &WorkerId) {
        let count = match setback {
            Setback::Failed(FailureClass::OutOfMemory) => &mut self.out_of_memory,
            Setback::Failed(FailureClass::Unavailable) => &mut self.unavailable,
            Setback::Failed(FailureClass::Internal) => &mut self.internal,
            Setback::Failed(FailureClass::NotFinite) => &mut self.not_finite,
            Setback::LeaseExpired => {
                self.expiries = self.expiries.saturating_add(1);
                return;
            }
            Setback::Failed(FailureClass::InvalidInput | FailureClass::Numerical | FailureClass::Store)
            | Setback::Released => return,
        };
        *count = count.saturating_add(1);
        self.failed_on.insert(worker.clone());
    }

    /// Returns the failures that speak against the task itself. Preemptions do not; numbers that are not finite speak against
    /// its samples, and have a limit of their own.
    pub fn failures(&self) -> u32 {
        self.out_of_memory.saturating_add(self.unavailable).saturating_add(self.internal)
    }

    /// Returns whether `worker` should get the task next, given all workers that could: one that has failed it waits as
    /// long as there is another that has not.
    pub fn suits<'a>(&self, worker: &WorkerId, mut live: impl Iterator<Item = &'a WorkerId>) -> bool {
        !self.failed_on.contains(worker) || live.all(|other| self.failed_on.contains(other))
    }
}

/// Limits and delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Upper end of the first delay.
    pub first_delay: Duration,
    /// Upper end of the longest; each delay's upper end is twice the one before.
    pub longest_delay: Duration,
    /// The run fails at this many failures of a task, if they are spread over `workers` or every live worker…
    pub failures: u32,
    /// …where this many are enough.
    pub workers: u32,
    /// The run fails at this many failures of a task, wherever they were.
    pub failures_anywhere: u32,
    /// Retries after running out of memory.
    pub out_of_memory_retries: u32,
    /// Retries after a panic or bug.
    pub internal_retries: u32,
    /// Retries after a loss or gradient that is not finite.
    pub not_finite_retries: u32,
    /// The run fails when this many leases of one task ran out: the task seems to kill its workers.
    pub expiries: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(10),
            failures: 3,
            workers: 2,
            failures_anywhere: 10,
            out_of_memory_retries: 1,
            internal_retries: 1,
            not_finite_retries: 1,
            expiries: 10,
        }
    }
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Offer the task again after this long, to a worker that [`History::suits`] it.
    RetryAfter(Duration),
    /// The run waits with its results kept; look again after this long whether the cause is gone.
    Pause {
        /// When to look.
        look_after: Duration,
    },
    /// The run fails.
    Fail,
}

/// Returns what to do after `setback`, which `history` already counts.
///
/// `live_workers` could take the task now. `jitter` in `[0, 1]` is the share of the delay's upper end that is waited
/// ("full jitter" when drawn evenly).
pub fn decide(policy: &Policy, history: &History, setback: Setback, live_workers: u32, jitter: f64) -> Decision {
    let exhausted = match setback {
        Setback::Released => return Decision::RetryAfter(Duration::ZERO),
        Setback::LeaseExpired if history.expiries < policy.expiries => return Decision::RetryAfter(Duration::ZERO),
        Setback::Failed(FailureClass::Store) => return Decision::Pause { look_after: policy.longest_delay },
        Setback::Failed(FailureClass::NotFinite) if history.not_finite <= policy.not_finite_retries => {
            return Decision::RetryAfter(delay(policy, history.not_finite, jitter));
        }
        Setback::LeaseExpired
        | Setback::Failed(FailureClass::InvalidInput | FailureClass::Numerical | FailureClass::NotFinite) => true,
        Setback::Failed(FailureClass::OutOfMemory) => history.out_of_memory > policy.out_of_memory_retries,
        Setback::Failed(FailureClass::Internal) => history.internal > policy.internal_retries,
        Setback::Failed(FailureClass::Unavailable) => false,
    };
    if exhausted || is_hopeless(policy, history, live_workers) {
        Decision::Fail
    } else {
        Decision::RetryAfter(delay(policy, history.failures(), jitter))
    }
}

/// Returns whether enough workers failed the task often enough that the task is to blame.
fn is_hopeless(policy: &Policy, history: &History, live_workers: u32) -> bool {
    let needed = policy.workers.min(live_workers.max(1)) as usize;
    let spread = history.failures() >= policy.failures && history.failed_on.len() >= needed;
    spread || history.failures() >= policy.failures_anywhere
}

/// Returns `jitter` of the upper end for the failure of this number, from 1.
fn delay(policy: &Policy, failure: u32, jitter: f64) -> Duration {
    let doublings = failure.saturating_sub(1).min(31);
    let upper = policy.first_delay.saturating_mul(1 << doublings).min(policy.longest_delay);
    let share = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 1.0 };
    upper.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    use FailureClass::{Internal, InvalidInput, NotFinite, Numerical, OutOfMemory, Store, Unavailable};

    /// Returns the answer to each setback in turn, at full jitter.
    fn answers(setbacks: &[(Setback, &str)], live_workers: u32) -> Vec<Decision> {
        let mut history = History::default();
        let mut answer = |(setback, worker): &(Setback, &str)| {
            history.record(*setback, &WorkerId::new(worker).unwrap());
            decide(&Policy::default(), &history, *setback, live_workers, 1.0)
        };
        setbacks.iter().map(&mut answer).collect()
    }

    fn after(millis: u64) -> Decision {
        Decision::RetryAfter(Duration::from_millis(millis))
    }

    fn failed(class: FailureClass, worker: &str) -> (Setback, &str) {
        (Setback::Failed(class), worker)
    }

    #[test]
    fn hopeless_classes_fail_at_once_and_a_full_store_pauses() {
        assert_eq!(answers(&[failed(InvalidInput, "a")], 4), [Decision::Fail]);
        assert_eq!(answers(&[failed(Numerical, "a")], 4), [Decision::Fail]);
        let pause = Decision::Pause { look_after: Duration::from_secs(10) };
        assert_eq!(answers(&[failed(Store, "a"); 20], 1), [pause; 20]);
    }

    #[test]
    fn a_panic_and_want_of_memory_get_one_retry_each() {
        assert_eq!(answers(&[failed(Internal, "a"), failed(Internal, "b")], 4), [after(100), Decision::Fail]);
        assert_eq!(answers(&[failed(OutOfMemory, "a"), failed(OutOfMemory, "a")], 1), [after(100), Decision::Fail]);
        let mixed = [failed(Internal, "a"), failed(OutOfMemory, "a"), failed(Unavailable, "b")];
        assert_eq!(answers(&mixed, 4), [after(100), after(200), Decision::Fail]);
    }

    #[test]
    fn numbers_that_are_not_finite_get_one_retry_elsewhere_whatever_else_happened() {
        let [a, b] = ["a", "b"].map(|name| failed(NotFinite, name));
        assert_eq!(answers(&[a, b], 4), [after(100), Decision::Fail]);
        assert_eq!(answers(&[a, a], 1), [after(100), Decision::Fail], "there is no other worker");
        let lost = failed(Unavailable, "b");
        assert_eq!(answers(&[lost, lost, a], 1)[2], after(100), "the first of its kind");
        assert_eq!(answers(&[a, lost, lost], 2)[2], after(200), "and it does not count against the task");
        assert_eq!(answers(&[a, lost, b], 2)[2], Decision::Fail);
        let [a, b] = ["a", "b"].map(|name| WorkerId::new(name).unwrap());
        let mut history = History::default();
        history.record(Setback::Failed(NotFinite), &a);
        assert!(!history.suits(&a, [&a, &b].into_iter()) && history.suits(&b, [&a, &b].into_iter()));
    }

    #[test]
    fn three_failures_on_two_workers_fail_the_run() {
        let a = failed(Unavailable, "a");
        assert_eq!(answers(&[a, a, failed(Unavailable, "b")], 2), [after(100), after(200), Decision::Fail]);
        assert_eq!(answers(&[a, a, a], 1), [after(100), after(200), Decision::Fail], "there is no second worker");
        let alone = answers(&[a; 10], 2);
        assert_eq!(alone[..4], [after(100), after(200), after(400), after(800)], "the other has not tried");
        assert_eq!(alone[7..], [after(10_000), after(10_000), Decision::Fail]);
    }

    #[test]
    fn preemptions_do_not_count_but_a_task_that_kills_its_workers_fails() {
        assert_eq!(answers(&[(Setback::Released, "a"); 100], 1), [after(0); 100]);
        let expired = answers(&[(Setback::LeaseExpired, "a"); 10], 1);
        assert_eq!(expired[..9], [after(0); 9]);
        assert_eq!(expired[9], Decision::Fail);
        let mixed = [failed(Unavailable, "a"), (Setback::Released, "b"), (Setback::LeaseExpired, "b")];
        assert_eq!(answers(&mixed, 1), [after(100), after(0), after(0)]);
    }

    #[test]
    fn jitter_takes_its_share_of_the_delay_and_cannot_leave_its_range() {
        let delays = [0.0, 0.25, 1.0, 7.0, -1.0, f64::NAN].map(|jitter| delay(&Policy::default(), 3, jitter));
        assert_eq!(delays, [0, 100, 400, 400, 0, 400].map(Duration::from_millis));
        assert_eq!(delay(&Policy::default(), u32::MAX, 1.0), Duration::from_secs(10));
    }

    #[test]
    fn a_worker_that_failed_a_task_waits_for_one_that_has_not() {
        let [a, b] = ["a", "b"].map(|name| WorkerId::new(name).unwrap());
        let mut history = History::default();
        history.record(Setback::Failed(OutOfMemory), &a);
        assert!(!history.suits(&a, [&a, &b].into_iter()));
        assert!(history.suits(&b, [&a, &b].into_iter()));
        assert!(history.suits(&a, [&a].into_iter()), "nobody else is there");
    }
}
