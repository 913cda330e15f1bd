//! Which rows and columns of the base model's tensors go where in a compact model.
//!
//! Blocks may keep different numbers of units. A Hugging Face config has one number for all, so the narrower blocks are
//! padded with dead units: zero rows in the producers and zero columns in the consumer, which is exact. Knows neither
//! files nor number formats.

use crate::{BlockLayers, ModelFolder};
use crate::{LayerOverlay, ModelConfig, ModelError, Overlay};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};
use types::{LayerId, UnitKind};

/// Widths that all blocks of a compact model have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widths {
    /// Query heads of one kv head.
    pub(crate) heads_per_group: i64,
    /// Key and value heads.
    pub(crate) kv_heads: i64,
    /// FFN channels.
    pub(crate) ffn: i64,
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

/// How one tensor of a compact model is made.
#[derive(Debug)]
pub(crate) enum Recipe<'a> {
    /// Rows of the base model's tensor, or of a new one of the same size: weights and biases of producers.
    Rows(&'a Selection, Option<&'a Tensor>),
    /// Columns of the base model's tensor, or of the new weight.
    Columns(&'a Selection, Option<&'a Tensor>),
    /// A whole new tensor.
    New(&'a Tensor),
    /// The base model's tensor.
    Base,
}

/// Selections of one block.
#[derive(Debug)]
struct BlockSelections {
    q: Selection,
    kv: Selection,
    channels: Selection,
}

/// The compact model: its widths, and a recipe for each tensor.
#[derive(Debug)]
pub(crate) struct Compaction<'a> {
    overlay: &'a Overlay,
    layers: &'a [BlockLayers],
    widths: Option<(Widths, Vec<BlockSelections>)>,
    padded: bool,
}

/// Units that one block keeps, counted in the base model.
struct Kept {
    /// Query heads of each kept kv head.
    groups: Vec<(i64, Vec<i64>)>,
    channels: Vec<i64>,
}

impl<'a> Compaction<'a> {
    /// Returns the compaction of `folder` under `overlay`. Where blocks differ, FFN widths are rounded up to
    /// `multiple_of`, but not beyond the base model's.
    ///
    /// # Errors
    /// [`ModelError::Overlay`] for units that the model does not have.
    pub(crate) fn new(folder: &'a ModelFolder, overlay: &'a Overlay, multiple_of: i64) -> Result<Self, ModelError> {
        let layers = folder.layers();
        let mut compaction = Self { overlay, layers, widths: None, padded: false };
        if overlay
            .layers
            .values()
            .any(|layer| matches!(layer.kind, UnitKind::Row | UnitKind::Column | UnitKind::Element))
        {
            return Ok(compaction);
        }
        let config = folder.config();
        let kept = layers.iter().map(|layers| Kept::new(config, layers, overlay)).collect::<Result<Vec<_>, _>>()?;
        let (widths, padded) = common_widths(&kept, config.ffn, multiple_of);
        compaction.padded = padded;
        compaction.widths = Some((widths, kept.iter().map(|k| k.selections(widths, config.head_dim)).collect()));
        Ok(compaction)
    }

    /// Returns the widths of the compact model; `None` if its tensors keep their shapes.
    pub(crate) fn widths(&self) -> Option<Widths> {
        self.widths.as_ref().map(|(widths, _)| *widths)
    }

    /// Returns whether dead units were put in so that all blocks are of one width.
    pub(crate) fn padded(&self) -> bool {
        self.padded
    }

    /// Returns the recipes of all tensors that differ from the base model's.
    pub(crate) fn recipes(&self) -> BTreeMap<String, Recipe<'_>> {
        let mut recipes = BTreeMap::new();
        for (id, layer) in &self.overlay.layers {
            let new = [("weight", &layer.weight), ("bias", &layer.bias)];
            recipes.extend(
                new.into_iter().filter_map(|(part, new)| Some((format!("{id}.{part}"), Recipe::New(new.as_ref()?)))),
            );
        }
        let Some((_, selections)) = &self.widths else { return recipes };
        for (layers, block) in self.layers.iter().zip(selections) {
            let mut rows = |layer: &LayerId, selection| {
                let new = self.overlay.layers.get(layer);
                let parts =
                    [("weight", new.and_then(|n| n.weight.as_ref())), ("bias", new.and_then(|n| n.bias.as_ref()))];
                for (part, new) in parts {
                    recipes.insert(format!("{layer}.{part}"), Recipe::Rows(selection, new));
                }
            };
            rows(&layers.q, &block.q);
            rows(&layers.k, &block.kv);
            rows(&layers.v, &block.kv);
            layers.mlp.producers().into_iter().for_each(|layer| rows(layer, &block.channels));
            for (layer, selection) in [(&layers.o, &block.q), (layers.mlp.consumer(), &block.channels)] {
                let new = self.overlay.layers.get(layer).and_then(|layer| layer.weight.as_ref());
                recipes.insert(format!("{layer}.weight"), Recipe::Columns(selection, new));
            }
        }
        recipes
    }
}

impl Kept {
    fn new(config: &ModelConfig, layers: &BlockLayers, overlay: &Overlay) -> Result<Self, ModelError> {
        let per_group = config.heads_per_group();
        let cut = |layer: &LayerId| overlay.layers.get(layer).filter(|l| l.kind != UnitKind::Whole);
        let attention = cut(&layers.o);
        let (kv_heads, heads) = match attention {
            Some(o) if o.kind == UnitKind::KvGroup => (kept(&layers.o, o, config.kv_heads)?, None),
            Some(o) if o.kind == UnitKind::QueryHead => {
                ((0..config.kv_heads).collect(), Some(kept(&layers.o, o, config.heads)?))
            }
            Some(o) => return Err(foreign(&layers.o, format!("cannot lose units of kind {}", o.kind))),
            None => ((0..config.kv_heads).collect::<Vec<_>>(), None),
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
            Some(mlp) if mlp.kind == UnitKind::FfnChannel => kept(consumer, mlp, config.ffn)?,
            Some(mlp) => return Err(foreign(consumer, format!("cannot lose units of kind {}", mlp.kind))),
            None => (0..config.ffn).collect(),
        };
        Ok(Self { groups, channels })
    }

    /// Returns where this block's features come from and go in a model of `widths`.
    fn selections(&self, widths: Widths, head_dim: i64) -> BlockSelections {
        let kv: Vec<_> = self.groups.iter().zip(0..).map(|((from, _), to)| (*from, to)).collect();
        let q = self.groups.iter().zip(0..).flat_map(|((_, heads), group)| {
            heads.iter().zip(0..).map(move |(from, to)| (*from, group * widths.heads_per_group + to))
        });
        let channels: Vec<_> = self.channels.iter().copied().zip(0..).collect();
        BlockSelections {
            q: Selection::units(&q.collect::<Vec<_>>(), head_dim, widths.kv_heads * widths.heads_per_group),
            kv: Selection::units(&kv, head_dim, widths.kv_heads),
            channels: Selection::units(&channels, 1, widths.ffn),
        }
    }
}

/// Returns the smallest widths that hold every block, and whether some block is narrower.
fn common_widths(kept: &[Kept], ffn: i64, multiple_of: i64) -> (Widths, bool) {
    let widest = |width: &dyn Fn(&Kept) -> usize| kept.iter().map(width).max().unwrap_or(0) as i64;
    let same = |width: &dyn Fn(&Kept) -> usize| kept.iter().all(|k| width(k) == width(&kept[0]));
    let (groups, heads) = (|k: &Kept| k.groups.len(), |k: &Kept| k.groups.first().map_or(0, |(_, heads)| heads.len()));
    let channels = |k: &Kept| k.channels.len();
    let multiple_of = multiple_of.max(1);
    let ffn = if same(&channels) {
        widest(&channels)
    } else {
        ((widest(&channels) + multiple_of - 1) / multiple_of * multiple_of).min(ffn)
    };
    // Where every block has lost a sub-block, a dead unit stays for it: no runtime takes a model without heads.
    let none = [widest(&groups), widest(&channels)].contains(&0);
    let widths = Widths { heads_per_group: widest(&heads).max(1), kv_heads: widest(&groups).max(1), ffn: ffn.max(1) };
    (widths, none || !(same(&groups) && same(&heads) && same(&channels)))
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
            Self::New(_) | Self::Base => {}
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
        let new = |tensor: &Tensor| {
            Ok::<_, ModelError>(tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(kind)?.f_add_scalar(0.0)?)
        };
        match self {
            Self::Base => base(),
            Self::New(tensor) => new(tensor),
            Self::Rows(selection, None) => selection.of(&base()?, 0),
            Self::Rows(selection, Some(tensor)) => selection.of(&new(tensor)?, 0),
            Self::Columns(selection, None) => selection.of(&base()?, 1),
            Self::Columns(selection, Some(tensor)) => selection.place(&new(tensor)?, 1),
        }
    }
}
