//! One operating-system thread owns the device; jobs come to it through a bounded queue and answer through a future.
//!
//! Tensors are made, used and dropped on that thread. A panic ends the job, not the thread.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

/// Why a job gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComputeError {
    /// The job panicked; the thread lives.
    #[error("the compute thread caught a panic: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// The thread has ended.
    #[error("the compute thread is gone")]
    Gone,
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that owns the device.
#[derive(Debug)]
pub struct ComputeThread;

impl ComputeThread {
    /// Starts a thread that runs one job after the other, and ends when the last handle is dropped.
    ///
    /// `queue` is how many jobs may wait; who brings one more waits too.
    pub fn spawn(name: &str, queue: usize) -> io::Result<ComputeHandle> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(queue.max(1));
        let beat = Beat(Arc::new(LastBeat { start: Instant::now(), last: AtomicU64::new(IDLE) }));
        let handle = ComputeHandle { jobs, beat: beat.clone() };
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(job) = waiting.blocking_recv() {
                beat.touch();
                job();
                beat.0.last.store(IDLE, Ordering::Relaxed);
            }
        })?;
        Ok(handle)
    }
}

/// Brings jobs to the thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct ComputeHandle {
    jobs: mpsc::Sender<Job>,
    beat: Beat,
}

impl ComputeHandle {
    /// Runs a job on the thread, within the span that is current here, and returns its answer.
    ///
    /// Dropping the future takes back a job that has not begun; one that has begun runs to its end.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, ComputeError> {
        let span = Span::current();
        let (answer, answered) = oneshot::channel();
        let boxed: Job = Box::new(move || {
            if answer.is_closed() {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| span.in_scope(job)));
            let result = result.map_err(|payload| ComputeError::Panicked { message: message(payload.as_ref()) });
            // Nobody may be waiting any more; then the answer is dropped here, on the thread that made it.
            let _ = answer.send(result);
        });
        self.jobs.send(boxed).await.map_err(|_| ComputeError::Gone)?;
        answered.await.unwrap_or(Err(ComputeError::Gone))
    }

    /// Says that a long job is getting on; to be called from inside it.
    pub fn touch(&self) {
        self.beat.touch();
    }

    /// Returns the thread's signs of life, which outlive this handle and do not keep the thread alive.
    pub fn beat(&self) -> Beat {
        self.beat.clone()
    }
}

const IDLE: u64 = u64::MAX;

/// The compute thread's signs of life; cheap to clone.
#[derive(Debug, Clone)]
pub struct Beat(Arc<LastBeat>);

#[derive(Debug)]
struct LastBeat {
    start: Instant,
    /// Milliseconds after `start`, or [`IDLE`].
    last: AtomicU64,
}

impl Beat {
    pub(crate) fn touch(&self) {
        self.0.last.store(self.0.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns for how long the present job has given no sign of life; zero when there is none.
    pub fn silent_for(&self) -> Duration {
        match self.0.last.load(Ordering::Relaxed) {
            IDLE => Duration::ZERO,
            last => self.0.start.elapsed().saturating_sub(Duration::from_millis(last)),
        }
    }
}

/// Returns what a panic said.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_next_job_runs_on_the_same_thread() {
        let handle = ComputeThread::spawn("compute-test", 4).unwrap();
        let first = handle.run(|| thread::current().id()).await.unwrap();
        let panicked = handle.run(|| -> u32 { panic!("bad {}", 7) }).await;
        assert_eq!(panicked, Err(ComputeError::Panicked { message: "bad 7".into() }));
        assert_eq!(handle.run(|| thread::current().id()).await, Ok(first));
    }

    #[tokio::test]
    async fn a_job_taken_back_before_it_begins_never_runs() {
        let handle = ComputeThread::spawn("compute-test", 4).unwrap();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let ran = Arc::new(AtomicU64::new(0));
        let (busy, counter) = (handle.clone(), ran.clone());
        let blocker = tokio::spawn(async move { busy.run(move || gate.recv().is_ok()).await });
        tokio::task::yield_now().await;
        let taken_back = handle.run(move || counter.fetch_add(1, Ordering::SeqCst));
        assert!(tokio::time::timeout(Duration::from_millis(20), taken_back).await.is_err());
        open.send(()).unwrap();
        assert_eq!(blocker.await.unwrap(), Ok(true));
        handle.run(|| ()).await.unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn silence_is_counted_only_while_a_job_runs() {
        let handle = ComputeThread::spawn("compute-test", 1).unwrap();
        let inside = handle.clone();
        let (before, after) = handle
            .run(move || {
                thread::sleep(Duration::from_millis(30));
                let before = inside.beat().silent_for();
                inside.touch();
                (before, inside.beat().silent_for())
            })
            .await
            .unwrap();
        assert!(before >= Duration::from_millis(25) && after < before, "{before:?} {after:?}");
        while handle.beat().silent_for() != Duration::ZERO {
            tokio::task::yield_now().await;
        }
    }
}
