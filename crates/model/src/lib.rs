//! Language models of the Llama, Mistral, Qwen2, Qwen3 and OPT families: reading a Hugging Face folder, running the
//! decoder, reading text into samples, and writing a smaller folder.
//!
//! Invariants:
//! * A [`ModelFolder`] that exists has every tensor its config asks for, in the right shape; nothing expensive starts
//!   before that is known.
//! * A [`Decoder`] holds its weights in one number format on one device and none of them requires a gradient; every
//!   operation of its forward pass is differentiable with respect to the block's input.
//! * Blocks may differ in width: a pruned block holds fewer heads or channels than the config says.
//!
//! This crate does not know curvature, costs, the wire or services. Those see it through [`Tap`] (what flows through
//! a linear layer) and the sweep's observer.

pub mod checkpoint;
mod compact;
pub mod config;
pub mod correct;
pub mod decoder;
pub mod device;
pub mod error;
pub mod export;
pub mod family;
pub mod generate;
pub mod linear;
pub mod overlay;
pub mod perplexity;
pub mod rotary;
pub mod sweep;
pub mod tensor_file;
pub mod tokens;
pub mod units;

pub use checkpoint::ModelFolder;
pub use config::{Activation, BlockWidths, ModelConfig, Rope, RopeScaling};
pub use decoder::{Attention, Block, Blocks, Decoder, HeadNorms, Lent, Mlp, NoTap, Norm, Tap, Weights};
pub use error::ModelError;
pub use family::{BlockLayers, Family, MlpLayers};
pub use linear::Linear;
pub use overlay::{LayerOverlay, Overlay};
pub use rotary::Rotary;
