//! Where finished blocks wait for their surgeon: at most [`CAPACITY`] of them in memory; more go to files, if there is a
//! folder for them with room; then the sweep waits.
//!
//! The sweep's side blocks (it runs on the compute thread), the stream's side awaits. One sweep is open at a time, because
//! one compute thread sweeps; its [`SweepKey`] carries the generation, so that nobody is served an older attempt's factors.
//! This file knows bytes; what is in them it does not know.

mod factors;

use crate::error::Error;
use crate::spill::Spill;
use bytes::Bytes;
pub(crate) use factors::Factors;
use factors::{Content, Sums};
use service::SweepKey;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Blocks that may wait in memory, unreleased.
pub(crate) const CAPACITY: usize = 2;
/// How often a waiting sweep looks whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(50);
/// Ended sweeps that are remembered, so that a repeated release finds what it released.
const REMEMBERED: usize = 64;

/// The next thing a stream should do.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this block.
    Ready(Arc<Factors>),
    /// All asked blocks were sent or are released.
    Done,
}

/// What a calibrator does now.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShelfStatus {
    /// The open sweep.
    pub(crate) sweep: Option<SweepKey>,
    /// Blocks that wait to be taken.
    pub(crate) waiting: Vec<u32>,
}

#[derive(Debug)]
struct Sweep {
    key: SweepKey,
    wanted: BTreeSet<u32>,
    released: BTreeSet<u32>,
    /// In order of readiness.
    waiting: Vec<Arc<Factors>>,
    /// Bytes of the largest block so far.
    largest: u64,
    /// A block that waited cannot be read any more.
    lost: bool,
}

impl Sweep {
    fn is_full(&self) -> bool {
        self.waiting.iter().filter(|factors| factors.is_in_memory()).count() >= CAPACITY
    }
}

#[derive(Debug, Default)]
struct State {
    open: Option<Sweep>,
    /// Sweeps whose factors were all released, oldest first.
    done: VecDeque<SweepKey>,
}

/// The blocks of the open sweep that wait to be taken.
#[derive(Debug, Default)]
pub struct Shelf {
    state: Mutex<State>,
    /// Where those go for which there is no room in memory.
    spill: Option<Spill>,
    /// Wakes the sweep.
    released: Condvar,
    /// Wakes the streams.
    changed: watch::Sender<u64>,
}

/// Ends the sweep on the shelf when it goes out of scope, however the sweep ended.
#[derive(Debug)]
pub(crate) struct OpenSweep<'a> {
    shelf: &'a Shelf,
    key: SweepKey,
}

impl Drop for OpenSweep<'_> {
    fn drop(&mut self) {
        self.shelf.close(&self.key);
    }
}

impl Shelf {
    /// Returns an empty shelf.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an empty shelf from which blocks go to a folder when there are too many for memory.
    pub fn with_spill(spill: Spill) -> Self {
        Self { spill: Some(spill), ..Self::default() }
    }

    /// Opens a sweep that will offer the `wanted` blocks; it ends with the returned guard.
    pub(crate) fn open(&self, key: SweepKey, wanted: &[u32]) -> OpenSweep<'_> {
        let sweep = Sweep {
            key: key.clone(),
            wanted: wanted.iter().copied().collect(),
            released: BTreeSet::new(),
            waiting: Vec::new(),
            largest: 0,
            lost: false,
        };
        self.spill.iter().for_each(Spill::try_again);
        let before = self.lock().open.replace(sweep);
        drop(before);
        self.announce();
        OpenSweep { shelf: self, key }
    }

    /// Returns what a calibrator's status shows.
    pub(crate) fn status(&self) -> ShelfStatus {
        self.lock().open.as_ref().map_or_else(ShelfStatus::default, |sweep| ShelfStatus {
            sweep: Some(sweep.key.clone()),
            waiting: sweep.waiting.iter().map(|f| f.block).collect(),
        })
    }

    /// Returns whether nobody wants the block: it never was wanted or is stored already.
    pub(crate) fn is_settled(&self, key: &SweepKey, block: u32) -> Result<bool, Error> {
        let state = self.lock();
        let sweep = state.sweep(key)?;
        Ok(!sweep.wanted.contains(&block) || sweep.released.contains(&block))
    }

    fn close(&self, key: &SweepKey) {
        let mut state = self.lock();
        let ended = state.open.take_if(|sweep| sweep.key == *key);
        if let Some(sweep) = &ended
            && sweep.wanted.is_subset(&sweep.released)
        {
            state.done.push_back(sweep.key.clone());
            if state.done.len() > REMEMBERED {
                state.done.pop_front();
            }
        }
        drop(state);
        drop(ended); // and its files: not while others wait for the lock
        self.announce();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock cannot leave the state half changed: every change is one assignment or push.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// The sweep's side: blocking, on the compute thread.
impl Shelf {
    /// Waits until there should be room for one more block, as large as the largest so far; returns how long that took.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancelled` says so, [`Error::SpillLost`] when a block that waits cannot be read any more.
    pub(crate) fn wait_for_room(&self, key: &SweepKey, cancelled: &dyn Fn() -> bool) -> Result<Duration, Error> {
        let spills = |sweep: &Sweep| self.spill.as_ref().is_some_and(|spill| spill.has_room_for(sweep.largest));
        self.wait_while(key, cancelled, |sweep| sweep.is_full() && !spills(sweep))
    }

    /// Waits until every wanted block was released; returns how long that took.
    ///
    /// # Errors
    /// As [`Self::wait_for_room`].
    pub(crate) fn wait_until_released(&self, key: &SweepKey, cancelled: &dyn Fn() -> bool) -> Result<Duration, Error> {
        self.wait_while(key, cancelled, |sweep| !sweep.wanted.is_subset(&sweep.released))
    }

    /// Puts a finished block into memory, else into the folder; where there is no room it waits for some in memory. Returns
    /// how long that took.
    ///
    /// # Errors
    /// As [`Self::wait_for_room`].
    pub(crate) fn offer(
        &self,
        key: &SweepKey,
        block: u32,
        bytes: Bytes,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Duration, Error> {
        let full = self.lock().sweep(key)?.is_full();
        let spilled = match &self.spill {
            Some(spill) if full => spill.write(&bytes, cancelled)?,
            _ => None,
        };
        if let Some(file) = spilled {
            let sums = Sums::of(&bytes);
            self.place(key, Factors { block, sums, content: Content::File(Arc::new(file)) })?;
            return Ok(Duration::ZERO);
        }
        let waited = self.wait_while(key, cancelled, Sweep::is_full)?;
        self.put(key, block, bytes)?;
        Ok(waited)
    }

    /// Puts a finished block into memory, whatever is there.
    pub(crate) fn put(&self, key: &SweepKey, block: u32, bytes: Bytes) -> Result<(), Error> {
        let sums = Sums::of(&bytes);
        self.place(key, Factors { block, sums, content: Content::Memory(bytes) })
    }

    /// Puts a block on the shelf, unless it was released in the meantime.
    fn place(&self, key: &SweepKey, factors: Factors) -> Result<(), Error> {
        let factors = Arc::new(factors);
        let mut state = self.lock();
        let sweep = state.sweep_mut(key)?;
        sweep.largest = sweep.largest.max(factors.bytes());
        if sweep.wanted.contains(&factors.block) && !sweep.released.contains(&factors.block) {
            sweep.waiting.push(Arc::clone(&factors));
        }
        drop(state);
        self.announce();
        Ok(())
    }

    fn wait_while(
        &self,
        key: &SweepKey,
        cancelled: &dyn Fn() -> bool,
        busy: impl Fn(&Sweep) -> bool,
    ) -> Result<Duration, Error> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            let sweep = state.sweep(key)?;
            if sweep.lost {
                return Err(Error::SpillLost);
            }
            if !busy(sweep) {
                return Ok(start.elapsed());
            }
            state = self.released.wait_timeout(state, CANCEL_POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The surgeon's side: async.
impl Shelf {
    /// Returns the first ready block of `asked` that is not in `sent`, waiting for it; the sweep has `start_wait` to open.
    ///
    /// Cancel-safe: it changes nothing.
    ///
    /// # Errors
    /// [`Error::GenerationStale`] when a newer attempt is open, [`Error::NotSwept`] when the sweep did not open in time or
    /// ended.
    pub(crate) async fn next(
        &self,
        key: &SweepKey,
        asked: &BTreeSet<u32>,
        sent: &BTreeSet<u32>,
        start_wait: Duration,
    ) -> Result<Next, Error> {
        let mut changed = self.changed.subscribe();
        self.wait_open(key, start_wait).await?;
        loop {
            changed.mark_unchanged();
            if let Some(next) = self.lock().next(key, asked, sent)? {
                return Ok(next);
            }
            // The sender lives in `self`, so this cannot fail.
            let _ = changed.changed().await;
        }
    }

    /// Notes that a block's factors are stored and forgets them. Doing it again changes nothing.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(crate) async fn release(&self, key: &SweepKey, block: u32, start_wait: Duration) -> Result<(), Error> {
        self.wait_open(key, start_wait).await?;
        let gone = self.forget(key, block)?;
        self.released.notify_all();
        self.announce();
        if gone.iter().any(|factors| !factors.is_in_memory()) {
            // Removing a large file takes a while. Should that fail, the next start does it.
            let _ = tokio::task::spawn_blocking(move || drop(gone)).await;
        }
        Ok(())
    }

    /// Notes that a block is released and returns it, if it waited.
    fn forget(&self, key: &SweepKey, block: u32) -> Result<Vec<Arc<Factors>>, Error> {
        let mut state = self.lock();
        if state.done.contains(key) {
            return Ok(Vec::new());
        }
        let sweep = state.sweep_mut(key)?;
        sweep.released.insert(block);
        Ok(sweep.waiting.extract_if(.., |factors| factors.block == block).collect())
    }

    /// Returns a block that waits.
    ///
    /// # Errors
    /// As [`Self::next`], also for a block that does not wait here.
    pub(crate) fn waiting(&self, key: &SweepKey, block: u32) -> Result<Arc<Factors>, Error> {
        let state = self.lock();
        let found = state.sweep(key)?.waiting.iter().find(|factors| factors.block == block);
        found.cloned().ok_or_else(|| not_swept(key))
    }

    /// Notes that a block that waits cannot be read: its sweep ends with the error that is returned.
    pub(crate) fn lose(&self, key: &SweepKey, error: &io::Error) -> Error {
        if let Some(spill) = &self.spill {
            spill.lost(error);
        }
        let mut gone = Vec::new();
        if let Ok(sweep) = self.lock().sweep_mut(key) {
            sweep.lost = true;
            // Nobody is given what may be lost, too: streams wait until the sweep has ended.
            gone.extend(sweep.waiting.extract_if(.., |factors| !factors.is_in_memory()));
        }
        self.released.notify_all();
        Error::SpillLost
    }

    /// Waits until the sweep is open or known to be done.
    async fn wait_open(&self, key: &SweepKey, start_wait: Duration) -> Result<(), Error> {
        let mut changed = self.changed.subscribe();
        let deadline = tokio::time::Instant::now() + start_wait;
        loop {
            changed.mark_unchanged();
            match self.lock().sweep(key) {
                Ok(_) => return Ok(()),
                Err(Error::NotSwept { .. }) => {}
                Err(other) => return Err(other),
            }
            if self.lock().done.contains(key) {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(not_swept(key));
            }
        }
    }
}

fn not_swept(key: &SweepKey) -> Error {
    Error::NotSwept { run: key.run.clone(), shot: key.shot, shard: key.shard, generation: key.generation }
}

impl State {
    fn sweep(&self, key: &SweepKey) -> Result<&Sweep, Error> {
        let sweep = self.open.as_ref().ok_or_else(|| not_swept(key))?;
        check_generation(&sweep.key, key)?;
        Ok(sweep)
    }

    fn sweep_mut(&mut self, key: &SweepKey) -> Result<&mut Sweep, Error> {
        let sweep = self.open.as_mut().ok_or_else(|| not_swept(key))?;
        check_generation(&sweep.key, key)?;
        Ok(sweep)
    }

    fn next(&self, key: &SweepKey, asked: &BTreeSet<u32>, sent: &BTreeSet<u32>) -> Result<Option<Next>, Error> {
        if self.done.contains(key) {
            return Ok(Some(Next::Done));
        }
        let sweep = self.sweep(key)?;
        let wants = |block: &u32| asked.contains(block) && !sent.contains(block);
        if let Some(factors) = sweep.waiting.iter().find(|f| wants(&f.block)) {
            return Ok(Some(Next::Ready(Arc::clone(factors))));
        }
        let to_come = sweep.wanted.difference(&sweep.released).any(wants);
        Ok((!to_come).then_some(Next::Done))
    }
}

fn check_generation(open: &SweepKey, asked: &SweepKey) -> Result<(), Error> {
    if open == asked {
        return Ok(());
    }
    if open.same_work(asked) && asked.generation < open.generation {
        return Err(Error::GenerationStale { asked: asked.generation, present: open.generation });
    }
    Err(not_swept(asked))
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
