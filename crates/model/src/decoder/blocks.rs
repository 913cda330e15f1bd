//! Where a decoder's blocks are: all in memory, or each read from the model's files when it is needed and forgotten after,
//! for models that are larger than the device.

use super::load::Loader;
use super::{Block, Decoder};
use crate::{ModelError, ModelFolder, Overlay};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use tch::{Device, Kind};
use types::{LayerId, UnitKind};

/// What `--weights` asks for. It changes time and memory, no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// The whole model lies on the device.
    #[default]
    Resident,
    /// Embedding, head and one block lie on the device; blocks are read from the model's files again and again.
    Stream,
}

impl FromStr for Weights {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "resident" => Ok(Self::Resident),
            "stream" => Ok(Self::Stream),
            _ => Err(ModelError::Device(format!("'{text}' is no place for weights; write resident or stream"))),
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resident => "resident",
            Self::Stream => "stream",
        })
    }
}

/// Where the blocks are.
#[derive(Debug)]
pub enum Blocks {
    /// On the device, from the first to the last.
    Resident(Vec<Block>),
    /// In the model's files.
    Streamed(Box<Streamed>),
}

/// A model whose blocks are read one at a time.
#[derive(Debug)]
pub struct Streamed {
    folder: ModelFolder,
    /// Its weights lie in host memory or are read with the block.
    overlay: Overlay,
    kind: Kind,
    device: Device,
}

impl Streamed {
    pub(super) fn new(folder: ModelFolder, overlay: Overlay, kind: Kind, device: Device) -> Self {
        Self { folder, overlay, kind, device }
    }

    fn read(&self, index: usize) -> Result<Block, ModelError> {
        let layers = &self.folder.layers()[index];
        let overlay = self.overlay.of_layers(&layers.all(), self.device)?;
        let loader = Loader { folder: &self.folder, overlay: &overlay, kind: self.kind, device: self.device };
        loader.block(index as u32, layers)
    }

    /// Returns whether all inputs of a layer are gone: then it does not compute anything.
    fn is_gone(&self, layer: &LayerId) -> bool {
        let units = |kind| matches!(kind, UnitKind::KvGroup | UnitKind::QueryHead | UnitKind::FfnChannel);
        self.overlay.layers.get(layer).is_some_and(|changed| units(changed.kind) && changed.kept.is_empty())
    }
}

/// A block for the time of its use.
#[derive(Debug)]
pub enum Lent<'a> {
    /// It stays where it is.
    Resident(&'a Block),
    /// It was read for this use.
    Read(Box<Block>),
}

impl Deref for Lent<'_> {
    type Target = Block;

    fn deref(&self) -> &Block {
        match self {
            Self::Resident(block) => block,
            Self::Read(block) => block,
        }
    }
}

impl Decoder {
    /// Returns the model of `folder` with `overlay` laid over it: [`Self::load`] or [`Self::stream`].
    ///
    /// # Errors
    /// As those.
    pub fn open(
        folder: ModelFolder,
        overlay: Overlay,
        weights: Weights,
        (kind, device): (Kind, Device),
    ) -> Result<Self, ModelError> {
        match weights {
            Weights::Resident => Self::load(&folder, &overlay, kind, device),
            Weights::Stream => Self::stream(folder, overlay, kind, device),
        }
    }

    /// Returns the number of blocks.
    pub fn block_count(&self) -> usize {
        match &self.blocks {
            Blocks::Resident(blocks) => blocks.len(),
            Blocks::Streamed(streamed) => streamed.folder.layers().len(),
        }
    }

    /// Returns a block; reads it, unless it is in memory.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn block(&self, index: usize) -> Result<Lent<'_>, ModelError> {
        match &self.blocks {
            Blocks::Resident(blocks) => Ok(Lent::Resident(&blocks[index])),
            Blocks::Streamed(streamed) => streamed.read(index).map(|block| Lent::Read(Box::new(block))),
        }
    }

    /// Has the system read a block's part of the files, if it is not in memory, while something else is done.
    pub(crate) fn read_ahead(&self, index: usize) {
        if let Blocks::Streamed(streamed) = &self.blocks
            && let Some(layers) = streamed.folder.layers().get(index)
        {
            for layer in layers.all().into_iter().filter(|layer| !streamed.overlay.read_ahead(layer)) {
                streamed.folder.read_ahead(&format!("{layer}.weight"));
            }
        }
    }

    /// Returns whether blocks are read one at a time: then work goes block by block, not sample by sample.
    pub fn is_streamed(&self) -> bool {
        matches!(self.blocks, Blocks::Streamed(_))
    }

    /// Returns the blocks in memory.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] if they are streamed.
    pub fn resident(&self) -> Result<&[Block], ModelError> {
        match &self.blocks {
            Blocks::Resident(blocks) => Ok(blocks),
            Blocks::Streamed(_) => Err(self.not_resident()),
        }
    }

    /// Returns the blocks in memory, to change them.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] if they are streamed.
    pub fn resident_mut(&mut self) -> Result<&mut [Block], ModelError> {
        if self.is_streamed() {
            return Err(self.not_resident());
        }
        match &mut self.blocks {
            Blocks::Resident(blocks) => Ok(blocks),
            Blocks::Streamed(_) => unreachable!("it was just seen not to be"),
        }
    }

    /// Returns the names of the linear layers of a block that have inputs left, in the order of the forward pass.
    pub fn linears(&self, index: usize) -> Vec<LayerId> {
        match &self.blocks {
            Blocks::Resident(blocks) => {
                let left = blocks[index].linears().into_iter().filter(|layer| layer.columns() > 0);
                left.map(|layer| layer.name.clone()).collect()
            }
            Blocks::Streamed(streamed) => {
                let all = streamed.folder.layers()[index].all().into_iter();
                all.filter(|layer| !streamed.is_gone(layer)).cloned().collect()
            }
        }
    }

    /// Returns those of [`Self::linears`] that take what the block's units give.
    pub fn consumers(&self, index: usize) -> Vec<LayerId> {
        let consumers = match &self.blocks {
            Blocks::Resident(blocks) => {
                let block = &blocks[index];
                [block.attention.o.name.clone(), block.mlp.consumer().name.clone()]
            }
            Blocks::Streamed(streamed) => {
                let layers = &streamed.folder.layers()[index];
                [layers.o.clone(), layers.mlp.consumer().clone()]
            }
        };
        let left = self.linears(index);
        consumers.into_iter().filter(|layer| left.contains(layer)).collect()
    }

    fn not_resident(&self) -> ModelError {
        ModelError::Unsupported {
            path: self.config.path.clone(),
            reason: "this needs all weights in memory at once; go without --weights stream".to_owned(),
        }
    }
}
