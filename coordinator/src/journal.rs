//! A run's journal in the object store: small records, each created once.
//!
//! A sequence number can be created only once, so the store itself refuses a coordinator that was replaced: no lock, no
//! election. A record is JSON with a CRC32C over its bytes; a torn or changed one stops the run and names the object.
//! Does not decide anything and keeps no clock: the time of a record is an argument.

use crate::event::Event;
use crate::metrics;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use service::keys;
use service::store::{Store, StoreError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use types::RunId;

/// Version of the records' form. A newer one is refused.
pub const FORMAT: u32 = 2;

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store failed.
    #[error("journal of run {run}")]
    Store {
        /// Whose journal.
        run: RunId,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// A record is torn, changed or out of order.
    #[error("journal object '{key}' is corrupt: {problem}; restore it from a backup or delete the run's folder")]
    Corrupt {
        /// Which object.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A record of a newer program.
    #[error("journal object '{key}' has format {found}, this program reads up to {FORMAT}; use a newer version")]
    Newer {
        /// Which object.
        key: String,
        /// Its format.
        found: u32,
    },
    /// Another coordinator has taken the run over.
    #[error("another coordinator has taken over run {run} (record {sequence} is not ours)")]
    Fenced {
        /// Which run.
        run: RunId,
        /// Where the two met.
        sequence: u64,
    },
}

/// A record as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    crc32c: u32,
    record: Box<RawValue>,
}

/// How often a takeover is tried: its record goes where another coordinator may put its own at the same moment.
const MAX_TAKEOVERS: u32 = 100;
/// How often a record is written again that is neither there nor could be created.
const MAX_TRIES: u32 = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// What a record says.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    format: u32,
    run: RunId,
    sequence: u64,
    writer: String,
    time_ms: u64,
    #[serde(flatten)]
    event: serde_json::Map<String, serde_json::Value>,
}

/// A record that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number, from 1.
    pub sequence: u64,
    /// When it was written, milliseconds since 1970.
    pub time_ms: u64,
    /// The record's JSON, without the CRC.
    pub json: String,
}

/// The write end of one run's journal.
#[derive(Debug)]
pub struct Journal {
    store: Store,
    run: RunId,
    writer: String,
    next: Mutex<u64>,
}

impl Journal {
    /// Opens the journal of `run` and returns it with all its records and their events, in order.
    ///
    /// `writer` must be unique among all coordinators that ever live: it tells our records from another's.
    pub async fn open(store: Store, run: RunId, writer: String) -> Result<(Self, Vec<(Stored, Event)>), JournalError> {
        let records = replay(&store, &run).await?;
        let next = records.last().map_or(1, |(stored, _)| stored.sequence + 1);
        Ok((Self { store, run, writer, next: Mutex::new(next) }, records))
    }

    /// Appends an event and returns when it is durable.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when another coordinator has written the next number: this one must stop.
    pub async fn append(&self, event: &Event, time_ms: u64) -> Result<Stored, JournalError> {
        let began = Instant::now();
        let stored = self.create(event, time_ms).await;
        metrics::appended(stored.is_ok(), began.elapsed());
        stored
    }

    async fn create(&self, event: &Event, time_ms: u64) -> Result<Stored, JournalError> {
        // Held across the write: records are strictly one after the other. A cancelled append leaves `next` as it was, and
        // the next one finds its own nonce under that number.
        let mut next = self.next.lock().await;
        let mut tries = 0;
        loop {
            let sequence = *next;
            let key = keys::record(&self.run, sequence);
            let json = self.encode(event, sequence, time_ms)?;
            let envelope = seal(&json).map_err(|e| corrupt(&key, &e))?;
            match self.store.create(&key, Bytes::from(envelope)).await {
                Ok(()) => {}
                Err(StoreError::AlreadyExists { .. }) => {
                    let found = match read(&self.store, &self.run, sequence).await? {
                        Some((found, _)) => found,
                        // S3 may say so though nothing has landed, when two writers were at it.
                        None if tries < MAX_TRIES => {
                            tries += 1;
                            tokio::time::sleep(BETWEEN_TRIES).await;
                            continue;
                        }
                        None => return Err(missing(&self.run, sequence)),
                    };
                    if !written_by(&found.json, &self.writer) {
                        return Err(JournalError::Fenced { run: self.run.clone(), sequence });
                    }
                    *next = sequence + 1;
                    if found.json == json {
                        return Ok(found);
                    }
                    continue; // ours, from an append that was cancelled after it landed
                }
                Err(source) => return Err(JournalError::Store { run: self.run.clone(), source }),
            }
            *next = sequence + 1;
            return Ok(Stored { sequence, time_ms, json });
        }
    }

    /// Takes the run over from whoever had it: appends that we have it, after whatever the other still appends meanwhile.
    /// What that was is added to `records`. The other meets our record and stops.
    pub(crate) async fn take_over(
        &self,
        records: &mut Vec<(Stored, Event)>,
        now_ms: impl Fn() -> u64,
    ) -> Result<(), JournalError> {
        for _ in 0..MAX_TAKEOVERS {
            let epochs = records.iter().rev().find_map(|(_, event)| match event {
                Event::TakenOver { epoch } => Some(*epoch),
                _ => None,
            });
            let event = Event::TakenOver { epoch: epochs.unwrap_or(0) + 1 };
            match self.append(&event, now_ms()).await {
                Ok(stored) => {
                    records.push((stored, event));
                    return Ok(());
                }
                Err(JournalError::Fenced { .. }) => self.catch_up(records).await?,
                Err(error) => return Err(error),
            }
        }
        let sequence = *self.next.lock().await;
        Err(JournalError::Fenced { run: self.run.clone(), sequence })
    }

    /// Reads what another has appended.
    async fn catch_up(&self, records: &mut Vec<(Stored, Event)>) -> Result<(), JournalError> {
        let mut next = self.next.lock().await;
        while let Some(record) = read(&self.store, &self.run, *next).await? {
            records.push(record);
            *next += 1;
        }
        Ok(())
    }

    fn encode(&self, event: &Event, sequence: u64, time_ms: u64) -> Result<String, JournalError> {
        let key = keys::record(&self.run, sequence);
        let serde_json::Value::Object(event) = serde_json::to_value(event).map_err(|e| corrupt(&key, &e))? else {
            unreachable!("an event is an object: its enum is tagged");
        };
        let record =
            Record { format: FORMAT, run: self.run.clone(), sequence, writer: self.writer.clone(), time_ms, event };
        serde_json::to_string(&record).map_err(|e| corrupt(&key, &e))
    }
}

/// Returns all records of a run's journal with their events, in order.
pub async fn replay(store: &Store, run: &RunId) -> Result<Vec<(Stored, Event)>, JournalError> {
    let prefix = keys::journal(run);
    let keys = store.list(&prefix).await.map_err(|source| JournalError::Store { run: run.clone(), source })?;
    let mut records = Vec::with_capacity(keys.len());
    for sequence in 1..=keys.len() as u64 {
        records.push(read(store, run, sequence).await?.ok_or_else(|| missing(run, sequence))?);
    }
    Ok(records)
}

fn missing(run: &RunId, sequence: u64) -> JournalError {
    JournalError::Corrupt { key: keys::record(run, sequence), problem: "it is missing between other records".into() }
}

/// Returns a record and its event; nothing if there is none.
async fn read(store: &Store, run: &RunId, sequence: u64) -> Result<Option<(Stored, Event)>, JournalError> {
    let key = keys::record(run, sequence);
    let bytes = match store.get(&key).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(JournalError::Store { run: run.clone(), source }),
    };
    let envelope: Envelope = serde_json::from_slice(&bytes).map_err(|e| corrupt(&key, &e))?;
    let json = envelope.record.get();
    let crc = crc32c::crc32c(json.as_bytes());
    if crc != envelope.crc32c {
        let problem = format!("CRC32C is {crc:#010x}, the record says {:#010x}", envelope.crc32c);
        return Err(JournalError::Corrupt { key, problem });
    }
    let record: Record = serde_json::from_str(json).map_err(|e| corrupt(&key, &e))?;
    if record.format > FORMAT {
        return Err(JournalError::Newer { key, found: record.format });
    }
    if record.run != *run || record.sequence != sequence {
        let problem = format!("it is record {} of run {}", record.sequence, record.run);
        return Err(JournalError::Corrupt { key, problem });
    }
    let event = serde_json::from_value(serde_json::Value::Object(record.event)).map_err(|e| corrupt(&key, &e))?;
    Ok(Some((Stored { sequence, time_ms: record.time_ms, json: json.to_owned() }, event)))
}

fn seal(json: &str) -> serde_json::Result<Vec<u8>> {
    let record = RawValue::from_string(json.to_owned())?;
    serde_json::to_vec(&Envelope { crc32c: crc32c::crc32c(json.as_bytes()), record })
}

fn written_by(json: &str, writer: &str) -> bool {
    serde_json::from_str::<Record>(json).is_ok_and(|r| r.writer == writer)
}

fn corrupt(key: &str, problem: &serde_json::Error) -> JournalError {
    JournalError::Corrupt { key: key.to_owned(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunId {
        RunId::new("r1").unwrap()
    }

    fn opened(shot: u32) -> Event {
        Event::ShotOpened { shot, limit: u64::from(shot) * 7 }
    }

    #[tokio::test]
    async fn a_reopened_journal_gives_back_what_was_appended() {
        let store = Store::memory();
        let (journal, old) = Journal::open(store.clone(), run(), "a".into()).await.unwrap();
        assert!(old.is_empty());
        for shot in 1..=12 {
            journal.append(&opened(shot), 5).await.unwrap();
        }
        let events: Vec<_> = replay(&store, &run()).await.unwrap().into_iter().map(|(_, e)| e).collect();
        assert_eq!(events, (1..=12).map(opened).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_replaced_coordinator_is_fenced_by_the_store() {
        let store = Store::memory();
        let (old, _) = Journal::open(store.clone(), run(), "old".into()).await.unwrap();
        old.append(&opened(1), 0).await.unwrap();
        let (new, _) = Journal::open(store.clone(), run(), "new".into()).await.unwrap();
        new.append(&Event::TakenOver { epoch: 2 }, 0).await.unwrap();
        assert!(matches!(old.append(&opened(2), 0).await, Err(JournalError::Fenced { sequence: 2, .. })));
    }

    #[tokio::test]
    async fn a_changed_or_missing_record_stops_the_run_and_names_the_object() {
        let store = Store::memory();
        let (journal, _) = Journal::open(store.clone(), run(), "a".into()).await.unwrap();
        for shot in 1..=3 {
            journal.append(&opened(shot), 0).await.unwrap();
        }
        let key = keys::record(&run(), 2);
        let bytes = store.get(&key).await.unwrap();
        let changed = String::from_utf8(bytes.to_vec()).unwrap().replace("\"limit\":14", "\"limit\":15");
        store.put(&key, Bytes::from(changed)).await.unwrap();
        let error = replay(&store, &run()).await.unwrap_err().to_string();
        assert!(error.contains(&key) && error.contains("CRC32C"), "{error}");
        store.put(&key, bytes.slice(..bytes.len() / 2)).await.unwrap();
        assert!(matches!(replay(&store, &run()).await, Err(JournalError::Corrupt { .. })));
    }
}
