//! A checkpoint as bytes: its manifest, and the weights that it names, checked against their digests.
//!
//! Both kinds of worker read it; what the bytes mean as tensors they know themselves.

use crate::ahead::Ahead;
use crate::compute::Beat;
use crate::store::{Store, StoreError};
use bytes::Bytes;
use std::io;
use tokio::runtime::Handle;
use types::{Checkpoint, LayerState, ObjectRef, RemoteObjects};

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store did not give it.
    #[error("cannot read a checkpoint")]
    Store(#[from] StoreError),
    /// What the store gave is not what was written: the object is damaged.
    #[error("'{key}' is damaged: {problem}")]
    Damaged {
        /// Which object.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

/// One layer that differs from the base model, and the file with its weights, if they changed.
pub type LayerBytes = (LayerState, Option<Bytes>);

/// Returns the manifest under `key`; the base model's for none.
pub async fn manifest(store: &Store, key: Option<&str>) -> Result<Checkpoint, CheckpointError> {
    let Some(key) = key else { return Ok(Checkpoint::default()) };
    let bytes = store.get(key).await?;
    serde_json::from_slice(&bytes).map_err(|e| CheckpointError::Damaged { key: key.to_owned(), problem: e.to_string() })
}

/// Returns an object that has the digest its reference says.
pub async fn object(store: &Store, object: &ObjectRef) -> Result<Bytes, CheckpointError> {
    let bytes = store.get(&object.key).await?;
    let found = blake3::hash(&bytes).to_hex();
    if found.as_str() == object.blake3 {
        return Ok(bytes);
    }
    let problem = format!("its BLAKE3 is {found} instead of {}", object.blake3);
    Err(CheckpointError::Damaged { key: object.key.clone(), problem })
}

/// Returns the layers with their weights' bytes, in the same order.
pub async fn layers(store: &Store, states: Vec<LayerState>) -> Result<Vec<LayerBytes>, CheckpointError> {
    let mut layers = Vec::with_capacity(states.len());
    for state in states {
        let bytes = match &state.weights {
            Some(weights) => Some(object(store, weights).await?),
            None => None,
        };
        layers.push((state, bytes));
    }
    Ok(layers)
}

/// Layers that may be on their way before they are asked for: those of a block.
const AHEAD: usize = 8;

/// Objects of a store for a thread that computes: each read when it is needed.
#[derive(Debug)]
pub struct StoredObjects {
    store: Store,
    runtime: Handle,
    /// Touched whenever one came.
    beat: Beat,
    ahead: Ahead<ObjectRef, Result<Bytes, CheckpointError>>,
}

impl StoredObjects {
    /// Returns the objects of a store; reading one counts as a sign of life of the thread that computes.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Store, beat: Beat) -> Self {
        Self { store, runtime: Handle::current(), beat, ahead: Ahead::new(AHEAD) }
    }
}

impl RemoteObjects for StoredObjects {
    fn read(&self, wanted: &ObjectRef) -> io::Result<Vec<u8>> {
        // What failed ahead of time is tried once more now that it is needed.
        let read = match self.ahead.take(&self.runtime, wanted) {
            Some(Ok(bytes)) => Ok(bytes),
            _ => self.runtime.block_on(object(&self.store, wanted)),
        };
        self.beat.touch();
        read.map(Vec::from).map_err(|error| match &error {
            CheckpointError::Damaged { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
            CheckpointError::Store(_) => io::Error::other(error),
        })
    }

    fn read_ahead(&self, wanted: &ObjectRef) {
        let (store, wanted) = (self.store.clone(), wanted.clone());
        let key = wanted.clone();
        self.ahead.begin(&self.runtime, key, async move { object(&store, &wanted).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{LayerId, UnitKind};

    fn state(content: &[u8]) -> LayerState {
        let blake3 = blake3::hash(content).to_hex().to_string();
        let weights = Some(ObjectRef { key: format!("w/{blake3}"), blake3, bytes: content.len() as u64 });
        let layer = LayerId::new("layers.0.down").unwrap();
        LayerState { layer, kind: UnitKind::FfnChannel, kept: vec![0, 2], kept_rows: vec![], zeros: 0, weights }
    }

    #[tokio::test]
    async fn damaged_weights_and_manifests_are_named() {
        let store = Store::memory();
        let layer = state(b"good");
        let key = layer.weights.clone().unwrap().key;
        store.put(&key, Bytes::from_static(b"good")).await.unwrap();
        let read = layers(&store, vec![layer.clone()]).await.unwrap();
        assert_eq!(read[0].1.as_deref(), Some(b"good".as_slice()));
        store.put(&key, Bytes::from_static(b"goof")).await.unwrap();
        let damaged = layers(&store, vec![layer]).await;
        assert!(matches!(damaged, Err(CheckpointError::Damaged { key: named, .. }) if named == key));
        assert_eq!(manifest(&store, None).await.unwrap(), Checkpoint::default());
        store.put("m", Bytes::from_static(b"{")).await.unwrap();
        assert!(matches!(manifest(&store, Some("m")).await, Err(CheckpointError::Damaged { .. })));
        assert!(matches!(manifest(&store, Some("n")).await, Err(CheckpointError::Store(StoreError::NotFound { .. }))));
    }
}
