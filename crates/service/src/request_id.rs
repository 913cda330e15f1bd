//! Ids for requests that change something: a repeated request carries the same id, another request never does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Makes ids for one caller; clones never make the same id.
#[derive(Debug, Clone)]
pub struct RequestIds {
    caller: String,
    counter: Arc<AtomicU64>,
}

impl RequestIds {
    /// Returns ids that belong to this caller in this process.
    pub fn new(name: &str) -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let caller = format!("{name}\n{}\n{start}", std::process::id());
        Self { caller, counter: Arc::default() }
    }

    /// Returns an id that was not given before, 32 hex digits.
    pub fn next(&self) -> String {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::hash(format!("{}\n{number}", self.caller).as_bytes());
        hash.to_hex()[..32].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_differ_between_requests_clones_and_callers() {
        let (a, b) = (RequestIds::new("a"), RequestIds::new("b"));
        let other = a.clone();
        let ids: BTreeSet<String> = (0..100).flat_map(|_| [a.next(), other.next(), b.next()]).collect();
        assert_eq!(ids.len(), 300);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
