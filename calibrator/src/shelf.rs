//! Where finished blocks wait for their surgeon: at most [`CAPACITY`] of them, then the sweep waits.
//!
//! The sweep's side blocks (it runs on the compute thread), the stream's side awaits. One sweep is open at a time, because
//! one compute thread sweeps; its [`SweepKey`] carries the generation, so that nobody is served an older attempt's factors.
//! This file knows bytes; what is in them it does not know.

use crate::error::Error;
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use types::{Generation, RunId};

/// Blocks that may wait unreleased.
pub(crate) const CAPACITY: usize = 2;
/// How often a waiting sweep looks whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(50);
/// Ended sweeps that are remembered, so that a repeated release finds what it released.
const REMEMBERED: usize = 64;

/// One attempt at sweeping one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SweepKey {
    /// The run.
    pub(crate) run: RunId,
    /// Its shot.
    pub(crate) shot: u32,
    /// The shard.
    pub(crate) shard: u32,
    /// The attempt.
    pub(crate) generation: Generation,
}

impl SweepKey {
    /// Returns whether both are attempts at the same work.
    fn same_work(&self, other: &Self) -> bool {
        self.run == other.run && self.shot == other.shot && self.shard == other.shard
    }
}

/// One block's factors as they go over the wire.
#[derive(Debug)]
pub(crate) struct Factors {
    /// The block.
    pub(crate) block: u32,
    /// A safetensors file.
    pub(crate) bytes: Bytes,
    /// Its digest, hex.
    pub(crate) blake3: String,
}

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
}

#[derive(Debug, Default)]
struct State {
    open: Option<Sweep>,
    /// Sweeps whose factors were all released, oldest first.
    done: VecDeque<SweepKey>,
}

/// The blocks of the open sweep that wait to be taken.
#[derive(Debug)]
pub(crate) struct Shelf {
    state: Mutex<State>,
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
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), released: Condvar::new(), changed: watch::Sender::new(0) }
    }

    /// Opens a sweep that will offer the `wanted` blocks; it ends with the returned guard.
    pub(crate) fn open(&self, key: SweepKey, wanted: &[u32]) -> OpenSweep<'_> {
        let sweep = Sweep {
            key: key.clone(),
            wanted: wanted.iter().copied().collect(),
            released: BTreeSet::new(),
            waiting: Vec::new(),
        };
        self.lock().open = Some(sweep);
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
        if let Some(sweep) = state.open.take_if(|sweep| sweep.key == *key)
            && sweep.wanted.is_subset(&sweep.released)
        {
            state.done.push_back(sweep.key);
            if state.done.len() > REMEMBERED {
                state.done.pop_front();
            }
        }
        drop(state);
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
    /// Waits until one more block may be put; returns how long that took.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancelled` says so.
    pub(crate) fn wait_for_room(&self, key: &SweepKey, cancelled: &dyn Fn() -> bool) -> Result<Duration, Error> {
        self.wait_while(key, cancelled, |sweep| sweep.waiting.len() >= CAPACITY)
    }

    /// Waits until every wanted block was released; returns how long that took.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancelled` says so.
    pub(crate) fn wait_until_released(&self, key: &SweepKey, cancelled: &dyn Fn() -> bool) -> Result<Duration, Error> {
        self.wait_while(key, cancelled, |sweep| !sweep.wanted.is_subset(&sweep.released))
    }

    /// Puts a finished block on the shelf, unless it was released in the meantime; returns its length in bytes.
    pub(crate) fn put(&self, key: &SweepKey, block: u32, bytes: Bytes) -> Result<u64, Error> {
        let length = bytes.len() as u64;
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        let mut state = self.lock();
        let sweep = state.sweep_mut(key)?;
        if sweep.wanted.contains(&block) && !sweep.released.contains(&block) {
            sweep.waiting.push(Arc::new(Factors { block, bytes, blake3 }));
        }
        drop(state);
        self.announce();
        Ok(length)
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
            if !busy(state.sweep(key)?) {
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
        let mut state = self.lock();
        if !state.done.contains(key) {
            let sweep = state.sweep_mut(key)?;
            sweep.released.insert(block);
            sweep.waiting.retain(|f| f.block != block);
        }
        drop(state);
        self.released.notify_all();
        self.announce();
        Ok(())
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
                return Err(key.not_swept());
            }
        }
    }
}

impl SweepKey {
    fn not_swept(&self) -> Error {
        Error::NotSwept { run: self.run.clone(), shot: self.shot, shard: self.shard, generation: self.generation }
    }
}

impl State {
    fn sweep(&self, key: &SweepKey) -> Result<&Sweep, Error> {
        let sweep = self.open.as_ref().ok_or_else(|| key.not_swept())?;
        check_generation(&sweep.key, key)?;
        Ok(sweep)
    }

    fn sweep_mut(&mut self, key: &SweepKey) -> Result<&mut Sweep, Error> {
        let sweep = self.open.as_mut().ok_or_else(|| key.not_swept())?;
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
    Err(asked.not_swept())
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
