//! Keeps leases alive, carries progress out, and brings in which tasks to drop.

use super::client::{Client, is_unknown_worker};
use super::lease::Leases;
use crate::retry::Retry;
use proto::v1;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Longest time between two heartbeats.
const PERIOD: Duration = Duration::from_secs(5);
/// Shortest time between two heartbeats: how often progress goes out.
const PULSE: Duration = Duration::from_millis(250);
/// A stream that lived this long was a good one: the next failure is waited for from the start again.
const STEADY: Duration = Duration::from_secs(30);

/// Sends heartbeats for ever; opens the stream again when it breaks. Ended by aborting the task.
pub(super) async fn run(client: Client, leases: Leases, lease_time: Duration) {
    let period = PERIOD.min(lease_time / 4).max(PULSE);
    let retry = Retry::default();
    let mut attempt = 0;
    loop {
        let opened = Instant::now();
        let status = stream(&client, &leases, period).await;
        if is_unknown_worker(&status) {
            leases.drop_all();
            if let Err(error) = client.register().await {
                tracing::warn!(code = ?error.code(), message = error.message(), "worker could not register anew");
            }
        }
        if opened.elapsed() > STEADY {
            attempt = 0;
        }
        tracing::debug!(code = ?status.code(), attempt, "heartbeat stream ended, opening it again");
        tokio::time::sleep(retry.wait(attempt, &status)).await;
        attempt += 1;
    }
}

/// Runs one stream of heartbeats; returns why it ended.
async fn stream(client: &Client, leases: &Leases, period: Duration) -> Status {
    // One beat may wait; if the connection is slower than the pulse the next carries later numbers anyway.
    let (beats, outgoing) = mpsc::channel(1);
    let beat = || {
        let call = client.lease_call(); // before the tasks: those of earlier calls are among them
        v1::HeartbeatRequest { worker: client.name(), tasks: leases.progress(), call }
    };
    // The first beat waits in the channel before the call, for a server that answers only after it.
    let _ = beats.try_send(beat());
    let mut incoming = match client.heartbeat(ReceiverStream::new(outgoing)).await {
        Ok(incoming) => incoming,
        Err(status) => return status,
    };
    let mut pulse = interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut owed = false;
    loop {
        tokio::select! {
            answer = incoming.next() => match answer {
                Some(Ok(answer)) => leases.drop_tasks(&answer.drop_task_ids),
                Some(Err(status)) => return status,
                None => return Status::unavailable("the coordinator ended the stream"),
            },
            _ = pulse.tick() => {
                owed |= leases.take_changed();
                if (owed || last.elapsed() >= period) && beats.try_send(beat()).is_ok() {
                    owed = false;
                    last = Instant::now();
                }
            }
        }
    }
}
