//! The one loop that repeats unary calls: full jitter, doubling, and a limit in time.
//!
//! It is for calls that may be repeated: reads, and mutations with a request id. Streams are resumed by their owners, beside it; one
//! that is small and worth nothing in part (a block's paths) is a call like any other, made again whole.

use crate::status::{is_transient, retry_after};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// How long a unary call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How often and how long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Longest wait before the second try.
    pub base: Duration,
    /// Longest wait at all; it doubles up to here.
    pub cap: Duration,
    /// No try begins later than this after the first.
    pub limit: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { base: Duration::from_millis(100), cap: Duration::from_secs(10), limit: Duration::from_mins(5) }
    }
}

impl Retry {
    /// Calls until an answer comes, an error that stays, or the limit.
    pub async fn call<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let start = Instant::now();
        let mut attempt = 0;
        loop {
            let status = match call().await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let wait = self.wait(attempt, &status);
            if !is_transient(&status) || start.elapsed() + wait > self.limit {
                return Err(status);
            }
            tracing::debug!(code = ?status.code(), attempt, "call failed, trying again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// Opens a stream until it gives an answer or an error that stays, or has come no further within the limit; `progress` says how far
    /// it has come. Whoever opens it goes on from there.
    pub async fn resume<T, F>(&self, progress: impl Fn() -> u64, mut open: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let (mut since, mut attempt, mut reached) = (Instant::now(), 0, progress());
        loop {
            let status = match open().await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if progress() > reached {
                (since, attempt, reached) = (Instant::now(), 0, progress());
            }
            let wait = self.wait(attempt, &status);
            if !is_transient(&status) || since.elapsed() + wait > self.limit {
                return Err(status);
            }
            tracing::debug!(code = ?status.code(), attempt, reached, "stream broke, opening it again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// Returns how long to wait after a failure: anything up to the doubled base, and no less than the server asks for.
    pub(crate) fn wait(&self, attempt: u32, status: &Status) -> Duration {
        let ceiling = self.base.saturating_mul(1 << attempt.min(16)).min(self.cap);
        ceiling.mul_f64(random_fraction()) + retry_after(status).unwrap_or_default().min(self.cap)
    }
}

/// Returns a number in [0, 1) that differs at every call.
fn random_fraction() -> f64 {
    // The standard library seeds each of these hashers from the system.
    let random = RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// Returns a request with a deadline.
pub fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use std::cell::Cell;
    use tonic::Code;

    #[tokio::test(start_paused = true)]
    async fn transient_errors_are_repeated_until_the_answer_comes() {
        let calls = Cell::new(0);
        let retry = Retry::default();
        let answer = retry.call(|| async {
            calls.set(calls.get() + 1);
            if calls.get() < 5 { Err(Status::unavailable("not yet")) } else { Ok(Response::new(7)) }
        });
        assert_eq!(answer.await.unwrap(), 7);
        assert_eq!(calls.get(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_errors_are_returned_at_once_and_transient_ones_after_the_limit() {
        let calls = Cell::new(0);
        let refused = Retry::default()
            .call(|| async {
                calls.set(calls.get() + 1);
                Err::<Response<()>, _>(Reason::SpecInvalid.status("no"))
            })
            .await;
        assert_eq!((refused.unwrap_err().code(), calls.get()), (Code::InvalidArgument, 1));

        let start = Instant::now();
        let lost = Retry::default().call(|| async { Err::<Response<()>, _>(Status::unavailable("gone")) }).await;
        assert_eq!(lost.unwrap_err().code(), Code::Unavailable);
        let took = start.elapsed();
        assert!(took > Duration::from_secs(280) && took <= Duration::from_mins(5), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_comes_further_is_opened_again_for_as_long_as_it_takes() {
        let (at, start) = (Cell::new(0), Instant::now());
        let further = || async {
            at.set(at.get() + 1);
            tokio::time::sleep(Duration::from_mins(1)).await;
            if at.get() < 60 { Err(Status::unavailable("cut")) } else { Ok(at.get()) }
        };
        assert_eq!(Retry::default().resume(|| at.get(), further).await.unwrap(), 60);
        assert!(start.elapsed() > Duration::from_mins(50));
        let stuck = Retry::default().resume(|| 7, || async { Err::<(), _>(Status::unavailable("gone")) }).await;
        assert_eq!(stuck.unwrap_err().code(), Code::Unavailable);
    }

    #[test]
    fn a_server_that_names_a_delay_is_waited_for() {
        let status = Reason::StoreUnavailable.status_retry_after("later", Duration::from_secs(3));
        let wait = Retry::default().wait(0, &status);
        assert!(wait >= Duration::from_secs(3) && wait < Duration::from_millis(3100), "{wait:?}");
    }
}
