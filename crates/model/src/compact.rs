//! Which rows and columns of the base model's tensors go where in a compact model.
//!
//! Blocks may keep different numbers of units. Written with widths of their own they stay so; written with common ones the
//! narrower blocks are padded with dead units: zero rows in the producers and zero columns in the consumer, which is exact.
//! A block that lost all its units adds nothing to the residual stream and is left out. Knows neither files nor number
//! formats.

use crate::family::Names;
use crate::{BlockLayers, BlockWidths, LayerOverlay, ModelConfig, ModelError, ModelFolder, Overlay};
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};
use types::{LayerId, UnitKind};

/// How wide blocks are written that kept different numbers of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breadth {
    /// All as wide as the widest, dead units in the others; an FFN's width is rounded up to a multiple, but not beyond the
    /// base model's.
    Common {
        /// Of which number.
        multiple_of: u32,
    },
    /// Each as wide as it is. A sub-block that lost all its units keeps a dead one: no runtime takes a block without heads.
    Own,
}

/// Where kept features of one axis come from and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Indices in the base model's axis, in order.
    from: Vec<i64>,
    /// Indices in the new axis, one for each of `from`; all others are dead.
    to: Vec<i64>,
    /// Length of the new axis.
    length: i64,
}

impl Selection {
    /// Returns the selection of whole units of `size` features.
    fn units(units: &[(i64, i64)], size: i64, length: i64) -> Self {
        let features = |at: i64| (at * size)..(at + 1) * size;
        Self {
            from: units.iter().flat_map(|(from, _)| features(*from)).collect(),
            to: units.iter().flat_map(|(_, to)| features(*to)).collect(),
            length: length * size,
        }
    }

    /// Returns `base` with its axis `dim` selected; dead features are zero.
    pub(crate) fn of(&self, base: &Tensor, dim: i64) -> Result<Tensor, ModelError> {
        let from = Tensor::f_from_slice(&self.from)?.f_to_device(base.device())?;
        self.place(&base.f_index_select(dim, &from)?, dim)
    }

    /// Returns `kept`, whose axis `dim` holds the kept features only, with the dead ones in between as zeros.
    pub(crate) fn place(&self, kept: &Tensor, dim: i64) -> Result<Tensor, ModelError> {
        if self.from.len() as i64 == self.length {
            return Ok(kept.shallow_clone());
        }
        let mut shape = kept.size();
        shape[dim as usize] = self.length;
        let to = Tensor::f_from_slice(&self.to)?.f_to_device(kept.device())?;
        Ok(Tensor::f_zeros(shape, (kept.kind(), kept.device()))?.f_index_copy_(dim, &to, kept)?)
    }
}

/// How one tensor of a compact model is made. Where its layer has no new tensor, the base model's takes that one's place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Recipe<'a> {
    /// Rows of the new tensor, which has as many as the base model's: weights and biases of producers.
    Rows(&'a Selection, New<'a>),
    /// The new weight, which has the columns that are left and no others, or those columns of the base model's.
    Columns(&'a Selection, New<'a>),
    /// The whole new tensor.
    Whole(New<'a>),
    /// The base model's tensor.
    Base,
}

/// A tensor of a changed layer, read only when it is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct New<'a> {
    changed: &'a Changed<'a>,
    layer: &'a LayerId,
    part: Part,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Weight,
    Bias,
}

impl Part {
    const ALL: [Self; 2] = [Self::Weight, Self::Bias];

    /// Returns the name of this tensor of a layer.
    fn of(self, layer: &LayerId) -> String {
        match self {
            Self::Weight => format!("{layer}.weight"),
            Self::Bias => format!("{layer}.bias"),
        }
    }
}

/// The changed layers, and the one that was read last: its weight and its bias are in one file.
#[derive(Debug)]
struct Changed<'a> {
    overlay: &'a Overlay,
    last: RefCell<Option<(LayerId, LayerOverlay)>>,
}

impl New<'_> {
    /// Returns the tensor, if the layer has a new one.
    fn read(&self) -> Result<Option<Tensor>, ModelError> {
        let mut last = self.changed.last.borrow_mut();
        if last.as_ref().is_none_or(|(layer, _)| layer != self.layer) {
            *last = None; // one of them in memory, not two
            let mut read = self.changed.overlay.of_layers(&[self.layer], Device::Cpu)?.layers;
            *last = read.remove(self.layer).map(|new| (self.layer.clone(), new));
        }
        let new = last.as_ref().and_then(|(_, new)| match self.part {
            Part::Weight => new.weight.as_ref(),
            Part::Bias => new.bias.as_ref(),
        });
        Ok(new.map(Tensor::shallow_clone))
    }
}

/// One block of the compact model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its number in the base model.
    pub(crate) base: u32,
    /// How wide it is written.
    pub(crate) widths: BlockWidths,
}

/// What goes into it.
#[derive(Debug)]
struct CompactBlock {
    place: Place,
    q: Selection,
    kv: Selection,
    channels: Selection,
}

/// The compact model: its blocks, and a recipe for each tensor.
#[derive(Debug)]
pub(crate) struct Compaction<'a> {
    changed: Changed<'a>,
    layers: &'a [BlockLayers],
    names: &'a Names,
    blocks: Option<Vec<CompactBlock>>,
    padded: bool,
}

/// Returns whether blocks are of different widths.
pub(crate) fn differ(places: &[Place]) -> bool {
    places.windows(2).any(|pair| pair[0].widths != pair[1].widths)
}

impl CompactBlock {
    fn is_padded(&self) -> bool {
        [&self.q, &self.kv, &self.channels].iter().any(|selection| selection.from.len() as i64 != selection.length)
    }
}

/// Units that one block keeps, counted in the base model.
struct Kept {
    block: u32,
    /// Query heads of each kept kv head.
    groups: Vec<(i64, Vec<i64>)>,
    channels: Vec<i64>,
}

impl<'a> Compaction<'a> {
    /// Returns the compaction of `folder` under `overlay`.
    ///
    /// # Errors
    /// [`ModelError::Overlay`] for units that the model does not have.
    pub(crate) fn new(folder: &'a ModelFolder, overlay: &'a Overlay, breadth: Breadth) -> Result<Self, ModelError> {
        let (layers, names) = (folder.layers(), folder.names());
        let changed = Changed { overlay, last: RefCell::default() };
        let mut compaction = Self { changed, layers, names, blocks: None, padded: false };
        if overlay
            .layers
            .values()
            .any(|layer| matches!(layer.kind, UnitKind::Row | UnitKind::Column | UnitKind::Element))
        {
            return Ok(compaction);
        }
        let config = folder.config();
        let kept = (0..).zip(layers).map(|(block, layers)| Kept::new(config, (block, layers), overlay));
        let mut kept = kept.collect::<Result<Vec<_>, _>>()?;
        if kept.iter().any(|block| !block.is_gone(config)) {
            kept.retain(|block| !block.is_gone(config));
        }
        let widths = match breadth {
            Breadth::Common { multiple_of } => vec![common_widths(&kept, config.ffn, multiple_of.into()); kept.len()],
            Breadth::Own => kept.iter().map(Kept::own_widths).collect(),
        };
        let blocks = kept.iter().zip(widths).map(|(block, widths)| block.placed(widths, config.head_dim));
        let blocks: Vec<CompactBlock> = blocks.collect();
        compaction.padded = blocks.iter().any(CompactBlock::is_padded);
        compaction.blocks = Some(blocks);
        Ok(compaction)
    }

    /// Returns whether all tensors keep their shapes, and what went is zero.
    pub(crate) fn keeps_shapes(&self) -> bool {
        self.blocks.is_none()
    }

    /// Returns the blocks of the compact model: those of `config`, the base model's, where tensors keep their shapes.
    pub(crate) fn places(&self, config: &ModelConfig) -> Vec<Place> {
        match &self.blocks {
            Some(blocks) => blocks.iter().map(|block| block.place).collect(),
            None => (0..config.blocks).map(|base| Place { base, widths: config.widths(base) }).collect(),
        }
    }

    /// Returns whether dead units were put in.
    pub(crate) fn padded(&self) -> bool {
        self.padded
    }

    /// Returns the name in the compact model of a tensor of the base model; `None` for those of blocks that are left out.
    pub(crate) fn name(&self, base: &str) -> Option<String> {
        let number = self.blocks.as_ref().and_then(|_| self.names.block_of(base));
        let Some((number, part)) = number else { return Some(base.to_owned()) };
        let place = self.blocks.iter().flatten().position(|block| block.place.base == number)?;
        Some(format!("{}{place}.{part}", self.names.blocks()))
    }

    /// Returns the recipes of all tensors that differ from the base model's.
    pub(crate) fn recipes(&self) -> BTreeMap<String, Recipe<'_>> {
        let mut recipes = BTreeMap::new();
        let new = |layer, part| New { changed: &self.changed, layer, part };
        for layer in self.changed.overlay.layers.keys() {
            recipes.extend(Part::ALL.map(|part| (part.of(layer), Recipe::Whole(new(layer, part)))));
        }
        for block in self.blocks.iter().flatten() {
            let layers = &self.layers[block.place.base as usize];
            let mut rows = |layer, selection| {
                recipes.extend(Part::ALL.map(|part| (part.of(layer), Recipe::Rows(selection, new(layer, part)))));
            };
            rows(&layers.q, &block.q);
            rows(&layers.k, &block.kv);
            rows(&layers.v, &block.kv);
            layers.mlp.producers().into_iter().for_each(|layer| rows(layer, &block.channels));
            for (layer, selection) in [(&layers.o, &block.q), (layers.mlp.consumer(), &block.channels)] {
                recipes.insert(Part::Weight.of(layer), Recipe::Columns(selection, new(layer, Part::Weight)));
            }
        }
        recipes
    }
}

impl Kept {
    fn new(config: &ModelConfig, (block, layers): (u32, &BlockLayers), overlay: &Overlay) -> Result<Self, ModelError> {
        let base = config.widths(block);
        let per_group = base.heads_per_group();
        let cut = |layer: &LayerId| overlay.layers.get(layer).filter(|l| l.kind != UnitKind::Whole);
        let attention = cut(&layers.o);
        let (kv_heads, heads) = match attention {
            Some(o) if o.kind == UnitKind::KvGroup => (kept(&layers.o, o, base.kv_heads)?, None),
            Some(o) if o.kind == UnitKind::QueryHead => {
                ((0..base.kv_heads).collect(), Some(kept(&layers.o, o, base.heads)?))
            }
            Some(o) => return Err(foreign(&layers.o, format!("cannot lose units of kind {}", o.kind))),
            None => ((0..base.kv_heads).collect::<Vec<_>>(), None),
        };
        let heads_of = |group: i64| -> Vec<i64> {
            let all = group * per_group..(group + 1) * per_group;
            heads.as_ref().map_or_else(
                || all.clone().collect(),
                |heads| heads.iter().copied().filter(|h| all.contains(h)).collect(),
            )
        };
        let groups: Vec<_> = kv_heads.into_iter().map(|group| (group, heads_of(group))).collect();
        if groups.iter().any(|(_, heads)| heads.len() != groups[0].1.len() || heads.is_empty()) {
            return Err(foreign(&layers.o, "keeps different numbers of query heads in its kv groups".to_owned()));
        }
        let consumer = layers.mlp.consumer();
        let channels = match cut(consumer) {
            Some(mlp) if mlp.kind == UnitKind::FfnChannel => kept(consumer, mlp, base.ffn)?,
            Some(mlp) => return Err(foreign(consumer, format!("cannot lose units of kind {}", mlp.kind))),
            None => (0..base.ffn).collect(),
        };
        Ok(Self { block, groups, channels })
    }

    /// Returns whether nothing of the block is left: no unit, and no bias that it would add all the same.
    fn is_gone(&self, config: &ModelConfig) -> bool {
        self.groups.is_empty() && self.channels.is_empty() && !config.o_bias && !config.mlp_bias
    }

    fn heads_per_group(&self) -> i64 {
        self.groups.first().map_or(1, |(_, heads)| heads.len() as i64)
    }

    fn own_widths(&self) -> BlockWidths {
        let kv_heads = (self.groups.len() as i64).max(1);
        let ffn = (self.channels.len() as i64).max(1);
        BlockWidths { heads: kv_heads * self.heads_per_group(), kv_heads, ffn }
    }

    /// Returns where this block's features come from and go when it is written with `widths`.
    fn placed(&self, widths: BlockWidths, head_dim: i64) -> CompactBlock {
        let kv: Vec<_> = self.groups.iter().zip(0..).map(|((from, _), to)| (*from, to)).collect();
        let q = self.groups.iter().zip(0..).flat_map(|((_, heads), group)| {
            heads.iter().zip(0..).map(move |(from, to)| (*from, group * widths.heads_per_group() + to))
        });
        let channels: Vec<_> = self.channels.iter().copied().zip(0..).collect();
        CompactBlock {
            place: Place { base: self.block, widths },
            q: Selection::units(&q.collect::<Vec<_>>(), head_dim, widths.heads),
            kv: Selection::units(&kv, head_dim, widths.kv_heads),
            channels: Selection::units(&channels, 1, widths.ffn),
        }
    }
}

/// Returns the smallest widths that hold every block.
fn common_widths(kept: &[Kept], ffn: i64, multiple_of: i64) -> BlockWidths {
    let widest = |width: &dyn Fn(&BlockWidths) -> i64| kept.iter().map(|k| width(&k.own_widths())).max().unwrap_or(1);
    let channels = widest(&|w| w.ffn);
    let same = kept.iter().all(|k| k.own_widths().ffn == channels);
    let multiple_of = multiple_of.max(1);
    let rounded = ((channels + multiple_of - 1) / multiple_of * multiple_of).min(ffn.max(channels));
    let (kv_heads, per_group) = (widest(&|w| w.kv_heads), widest(&|w| w.heads_per_group()));
    BlockWidths { heads: kv_heads * per_group, kv_heads, ffn: if same { channels } else { rounded } }
}

/// Returns the kept units of a layer, checked against their number in the base model.
fn kept(id: &LayerId, layer: &LayerOverlay, units: i64) -> Result<Vec<i64>, ModelError> {
    let kept: Vec<i64> = layer.kept.iter().map(|unit| i64::from(*unit)).collect();
    let rising = kept.windows(2).all(|pair| pair[0] < pair[1]);
    if !rising || kept.last().is_some_and(|last| *last >= units) {
        return Err(foreign(id, format!("kept units must be rising and below {units}")));
    }
    Ok(kept)
}

fn foreign(id: &LayerId, reason: String) -> ModelError {
    ModelError::Overlay { layer: id.to_string(), reason }
}

impl Recipe<'_> {
    /// Returns the shape of the tensor for the compact model, from that of the base model's.
    pub(crate) fn shape(&self, base: &[i64]) -> Vec<i64> {
        let mut shape = base.to_vec();
        match self {
            Self::Rows(selection, _) => shape[0] = selection.length,
            Self::Columns(selection, _) => shape[1] = selection.length,
            Self::Whole(_) | Self::Base => {}
        }
        shape
    }

    /// Returns the tensor for the compact model, in `kind`; `base` reads the base model's.
    ///
    /// Zeros are positive: a sign on them would be lost by no one but seen by bitwise comparisons.
    pub(crate) fn make(
        &self,
        kind: Kind,
        base: impl FnOnce() -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        let typed =
            |new: Tensor| Ok::<_, ModelError>(new.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_add_scalar(0.0)?);
        let read = |new: &New<'_>| new.read()?.map(typed).transpose();
        match self {
            Self::Base => base(),
            Self::Whole(new) => read(new)?.map_or_else(base, Ok),
            Self::Rows(selection, new) => selection.of(&read(new)?.map_or_else(base, Ok)?, 0),
            Self::Columns(selection, new) => match read(new)? {
                Some(compact) => selection.place(&compact, 1),
                None => selection.of(&base()?, 1),
            },
        }
    }

    /// Has what the tensor is made of read while something else is done.
    pub(crate) fn read_ahead(&self) {
        if let Self::Whole(new) | Self::Rows(_, new) | Self::Columns(_, new) = self
            && new.changed.last.borrow().as_ref().is_none_or(|(layer, _)| layer != new.layer)
        {
            new.changed.overlay.read_ahead(new.layer);
        }
    }
}
