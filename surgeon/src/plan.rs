//! Where each shard's factors come from, as the coordinator says; followed by long polls.

use crate::error::Error;
use proto::convert::{Fields, InvalidMessage};
use proto::v1;
use proto::v1::worker_service_client::WorkerServiceClient;
use service::Wire;
use service::retry::{Retry, within};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use types::{Generation, RunId};

/// How long one poll waits for news.
const POLL: Duration = Duration::from_secs(20);
/// What a poll may take on top.
const GRACE: Duration = Duration::from_secs(10);

/// Where one shard's factors come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Source {
    /// Nobody sweeps it yet.
    #[default]
    Waiting,
    /// A calibrator sweeps it.
    Running {
        /// Where the calibrator listens.
        endpoint: String,
        /// Its attempt.
        generation: Generation,
    },
    /// All its factors are in the store.
    Stored,
    /// It does not count: nobody sweeps it, and what is in the store of it is not looked at.
    Quarantined,
}

/// The sources of all shards that have one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    shards: BTreeMap<u32, Source>,
}

impl Plan {
    /// Returns a shard's source.
    pub(crate) fn source(&self, shard: u32) -> Source {
        self.shards.get(&shard).cloned().unwrap_or_default()
    }
}

impl TryFrom<Vec<v1::ShardSource>> for Plan {
    type Error = InvalidMessage;

    fn try_from(shards: Vec<v1::ShardSource>) -> Result<Self, InvalidMessage> {
        const FIELDS: Fields = Fields("ShardSource");
        let read = |s: v1::ShardSource| {
            let source = match FIELDS.known("state", s.state)? {
                v1::ShardState::Running => Source::Running {
                    endpoint: FIELDS.text("endpoint", s.endpoint, proto::convert::MAX_TEXT)?,
                    generation: Generation(s.generation),
                },
                v1::ShardState::Stored => Source::Stored,
                v1::ShardState::Quarantined => Source::Quarantined,
                v1::ShardState::Waiting | v1::ShardState::Unspecified => Source::Waiting,
            };
            Ok((s.shard, source))
        };
        Ok(Self { shards: shards.into_iter().map(read).collect::<Result<_, InvalidMessage>>()? })
    }
}

/// Follows the plan of one shot into `plan`; returns only when that fails.
///
/// Cancel-safe.
pub(crate) async fn follow(
    client: &WorkerServiceClient<Wire>,
    run: &RunId,
    shot: u32,
    plan: &watch::Sender<Plan>,
) -> Error {
    let mut known_version = 0;
    loop {
        let request =
            v1::GetPlanRequest { run: run.to_string(), shot, known_version, wait_seconds: POLL.as_secs() as u32 };
        let answer = Retry::default()
            .call(|| {
                let (mut client, request) = (client.clone(), within(POLL + GRACE, request.clone()));
                async move { client.get_plan(request).await }
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => return Error::Coordinator(Box::new(status)),
        };
        known_version = answer.version;
        match Plan::try_from(answer.shards) {
            Ok(new) => plan.send_if_modified(|old| std::mem::replace(old, new) != *old),
            Err(invalid) => return Error::Message(invalid),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_the_plan_does_not_name_waits() {
        let running = v1::ShardSource {
            shard: 1,
            state: v1::ShardState::Running.into(),
            endpoint: "memory://calibrator".into(),
            generation: 2,
        };
        let plan = Plan::try_from(vec![running.clone()]).unwrap();
        assert_eq!(plan.source(0), Source::Waiting);
        let source = Source::Running { endpoint: "memory://calibrator".into(), generation: Generation(2) };
        assert_eq!(plan.source(1), source);
        let state = v1::ShardState::Quarantined.into();
        let gone = Plan::try_from(vec![v1::ShardSource { shard: 1, state, ..Default::default() }]).unwrap();
        assert_eq!(gone.source(1), Source::Quarantined);
        assert!(Plan::try_from(vec![v1::ShardSource { endpoint: String::new(), ..running.clone() }]).is_err());
        assert!(Plan::try_from(vec![v1::ShardSource { state: 9, ..running }]).is_err());
    }
}
