//! Measures the calibration sweep of a random Llama against its floor: the same multiplications as plain matrix
//! products of the same shapes, in the same run.
//!
//! ```text
//! cargo run --release -p model --example sweep_floor -- hidden=576 ffn=1536 heads=9 kv=3 blocks=4 vocab=49152 samples=8 tokens=512
//! ```
//!
//! Floor, per token: forward, recomputation and input gradients of every block (3 × its weights), the head forward and
//! backward (2 × its weights), and C² and R² for each observed layer. Attention's own products are not counted.

#[path = "../tests/common/random.rs"]
mod random;

use anyhow_free::Result;
use model::Decoder;
use model::device::DeviceChoice;
use model::sweep::{self, Observer, ObserverError, SweepOptions};
use random::Llama;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tch::{Cuda, Device, Kind, Tensor};
use types::{Fisher, LayerId};

mod anyhow_free {
    pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
}
