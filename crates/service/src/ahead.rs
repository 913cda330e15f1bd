//! What was asked for before it is needed: on its way while something else is done.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Answers on their way, by what was asked for; a bounded number.
#[derive(Debug)]
pub(crate) struct Ahead<K, T> {
    most: usize,
    /// The oldest first.
    coming: Mutex<VecDeque<(K, JoinHandle<T>)>>,
}

impl<K: PartialEq, T: Send + 'static> Ahead<K, T> {
    /// Returns a place for at most so many answers.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, coming: Mutex::default() }
    }

    /// Has `ask` answered, unless that is under way; the oldest answer that nobody took makes room.
    pub(crate) fn begin(&self, runtime: &Handle, key: K, ask: impl Future<Output = T> + Send + 'static) {
        let mut coming = self.lock();
        if coming.iter().any(|(known, _)| *known == key) {
            return;
        }
        if coming.len() == self.most
            && let Some((_, forgotten)) = coming.pop_front()
        {
            forgotten.abort();
        }
        coming.push_back((key, runtime.spawn(ask)));
    }

    /// Waits for the answer, if it was asked for; blocks.
    pub(crate) fn take(&self, runtime: &Handle, key: &K) -> Option<T> {
        let coming = {
            let mut coming = self.lock();
            let at = coming.iter().position(|(known, _)| known == key)?;
            coming.remove(at)?.1
        };
        runtime.block_on(coming).ok()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(K, JoinHandle<T>)>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, T> Drop for Ahead<K, T> {
    fn drop(&mut self) {
        for (_, coming) in self.coming.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            coming.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_oldest_answers_make_room_and_each_is_taken_once() {
        let (ahead, runtime) = (Ahead::new(2), Handle::current());
        for key in [1, 2, 2, 3] {
            ahead.begin(&runtime, key, async move { key * 10 });
        }
        let take = |key| std::thread::scope(|s| s.spawn(|| ahead.take(&runtime, &key)).join().unwrap());
        assert_eq!([take(1), take(2), take(2), take(3)], [None, Some(20), None, Some(30)]);
    }
}
