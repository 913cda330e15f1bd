//! Which runs may be under way: as many as the coordinator has slots, in the order in which they came.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of a coordinator; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    permits: Arc<Semaphore>,
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

/// The right to be under way, in a slot; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    slot: u32,
    taken: Arc<Mutex<BTreeSet<u32>>>,
    _permit: OwnedSemaphorePermit,
}

impl Turns {
    /// Returns so many slots, at least one.
    pub(crate) fn new(slots: usize) -> Self {
        let permits = Arc::new(Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS)));
        Self { permits, taken: Arc::default() }
    }

    /// Returns a turn if there is one now.
    pub(crate) fn try_take(&self) -> Option<Turn> {
        Arc::clone(&self.permits).try_acquire_owned().ok().map(|permit| self.turn(permit))
    }

    /// Waits for a turn; `None` if there will be none.
    pub(crate) async fn take(&self) -> Option<Turn> {
        Arc::clone(&self.permits).acquire_owned().await.ok().map(|permit| self.turn(permit))
    }

    fn turn(&self, permit: OwnedSemaphorePermit) -> Turn {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (0..=u32::MAX).find(|slot| !taken.contains(slot));
        let slot = free.unwrap_or_else(|| unreachable!("there are more numbers than runs"));
        taken.insert(slot);
        Turn { slot, taken: Arc::clone(&self.taken), _permit: permit }
    }
}

impl Turn {
    /// Returns the slot's number: the lowest that was free.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slots_are_numbered_from_0_and_taken_again() {
        let turns = Turns::new(2);
        let (first, second) = (turns.try_take().unwrap(), turns.try_take().unwrap());
        assert_eq!((first.slot(), second.slot()), (0, 1));
        assert!(turns.try_take().is_none());
        drop(first);
        assert_eq!(turns.take().await.unwrap().slot(), 0);
        assert_eq!(second.slot(), 1);
    }
}
