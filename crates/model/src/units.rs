//! The unit table: what can be removed from each family, where its cost arises and what its removal saves.
//!
//! | unit | slices that go | consumer |
//! |---|---|---|
//! | FFN channel j | gate row j, up row j, down column j (OPT: fc1 row and bias, fc2 column) | down / fc2 |
//! | kv group j | k and v rows of kv head j, q rows of its query heads, o columns of those heads | o |
//! | query head | q rows and o columns of one query head in every kv group | o |
//!
//! OPT's attention has no units: no runtime loads it with a head size other than hidden / heads. Does not score anything.

use crate::checkpoint::ModelFolder;
use crate::export;
use crate::tensor_file::TensorSpec;
use crate::{BlockLayers, Family, ModelError};
use std::collections::BTreeMap;
use types::{
    AttentionUnit, BlockDescription, LayerDescription, LayerId, ModelDescription, RunSpec, Sizes, Structure, UnitGroup,
    UnitKind,
};

/// Returns what a model offers to a run.
///
/// # Errors
/// As [`describe`].
pub fn describe_for(folder: &ModelFolder, spec: &RunSpec) -> Result<ModelDescription, ModelError> {
    let mut description = describe(folder, spec.structure, spec.attention_unit)?;
    description.blocks = blocks_for(folder, spec);
    description.own_widths_refused = export::refusal(folder.config(), spec.format, true).unwrap_or_default();
    Ok(description)
}

/// Returns the blocks of [`describe_for`]. Reads no weights: [`ModelDescription::digest`] takes them all.
pub fn blocks_for(folder: &ModelFolder, spec: &RunSpec) -> Vec<BlockDescription> {
    let mut blocks = blocks(folder, spec.structure, spec.attention_unit);
    for group in blocks.iter_mut().flat_map(|b| &mut b.groups).filter(|_| spec.sub_blocks) {
        group.min_keep = 0;
    }
    blocks
}

/// Returns what is in `folder` and what `structure` can remove from it.
///
/// For [`UnitKind::QueryHead`], [`UnitGroup::units`] counts the heads of one kv group; they go one out of every kv group
/// at the same time, which [`UnitGroup::together`] says. `columns_per_unit` and `freed_per_unit` are those of one head.
pub fn describe(
    folder: &ModelFolder,
    structure: Structure,
    attention_unit: AttentionUnit,
) -> Result<ModelDescription, ModelError> {
    let config = folder.config();
    Ok(ModelDescription {
        family: config.family.name().to_owned(),
        digest: folder.digest()?,
        hidden: config.hidden as u64,
        vocabulary: config.vocab as u64,
        max_positions: config.max_positions as u64,
        dense: folder.sizes(),
        blocks: blocks(folder, structure, attention_unit),
        own_widths_refused: String::new(),
    })
}

fn blocks(folder: &ModelFolder, structure: Structure, attention_unit: AttentionUnit) -> Vec<BlockDescription> {
    let table = Table { tensors: folder.tensors().iter().map(|spec| (spec.name.as_str(), spec)).collect() };
    let blocks = (0..).zip(folder.layers()).map(|(block, layers)| BlockDescription {
        block,
        layers: table.layers(layers, structure),
        groups: match structure {
            Structure::Coupled => table.groups(folder, (block, layers), attention_unit),
            Structure::RowColumn | Structure::Element | Structure::NofM => Vec::new(),
        },
    });
    blocks.collect()
}

/// The tensors of a folder by name.
struct Table<'a> {
    tensors: BTreeMap<&'a str, &'a TensorSpec>,
}

impl Table<'_> {
    fn weight(&self, layer: &LayerId) -> Option<&TensorSpec> {
        self.tensors.get(format!("{layer}.weight").as_str()).copied()
    }

    fn bias(&self, layer: &LayerId) -> Option<&TensorSpec> {
        self.tensors.get(format!("{layer}.bias").as_str()).copied()
    }

    fn layers(&self, layers: &BlockLayers, structure: Structure) -> Vec<LayerDescription> {
        let consumers = [&layers.o, layers.mlp.consumer()];
        let first_producer = layers.mlp.producers()[0];
        let describe = |layer: &LayerId| {
            let weight = self.weight(layer)?;
            let input = if [&layers.q, &layers.k, &layers.v].contains(&layer) {
                &layers.q
            } else if consumers.contains(&layer) {
                layer
            } else {
                first_producer
            };
            Some(LayerDescription {
                layer: layer.clone(),
                rows: weight.shape[0] as u64,
                columns: weight.shape[1] as u64,
                bias: self.bias(layer).is_some(),
                input: input.clone(),
                curvature: structure.keeps_shapes() || consumers.contains(&layer),
            })
        };
        layers.all().into_iter().filter_map(describe).collect()
    }

    fn groups(
        &self,
        folder: &ModelFolder,
        (block, layers): (u32, &BlockLayers),
        attention_unit: AttentionUnit,
    ) -> Vec<UnitGroup> {
        let config = folder.config();
        let widths = config.widths(block);
        let (e, kv, per_group) = (config.head_dim as u64, widths.kv_heads as u64, widths.heads_per_group() as u64);
        let mut groups = Vec::new();
        let mut add = |kind, layer: &LayerId, (units, together): (u64, u64), columns: u64, freed_per_unit: Sizes| {
            groups.push(UnitGroup {
                layer: layer.clone(),
                kind,
                units: units as u32,
                together: together as u32,
                min_keep: 1,
                columns_per_unit: columns as u32,
                freed_per_unit,
            });
        };
        match attention_unit {
            // No class of transformers takes OPT heads of another size than hidden / heads.
            _ if config.family == Family::Opt => {}
            AttentionUnit::Keep => {}
            AttentionUnit::KvGroup => {
                let freed = self.rows(&layers.k, e)
                    + self.rows(&layers.v, e)
                    + self.rows(&layers.q, e * per_group)
                    + self.columns(&layers.o, e * per_group);
                add(UnitKind::KvGroup, &layers.o, (kv, 1), e * per_group, freed);
            }
            AttentionUnit::QueryHead => {
                let freed = self.rows(&layers.q, e) + self.columns(&layers.o, e);
                add(UnitKind::QueryHead, &layers.o, (per_group, kv), e, freed);
            }
        }
        let consumer = layers.mlp.consumer();
        let produced = layers.mlp.producers().into_iter().map(|layer| self.rows(layer, 1));
        let freed = produced.fold(self.columns(consumer, 1), |sum, rows| sum + rows);
        add(UnitKind::FfnChannel, consumer, (widths.ffn as u64, 1), 1, freed);
        groups
    }

    /// Returns what `count` rows of a layer take, with their biases.
    fn rows(&self, layer: &LayerId, count: u64) -> Sizes {
        let weight = self.weight(layer).map(|w| prunable(w, w.shape[1] as u64 * count)).unwrap_or_default();
        let bias = self.bias(layer).map(|b| Sizes { prunable: 0, ..prunable(b, count) }).unwrap_or_default();
        weight + bias
    }

    /// Returns what `count` columns of a layer take.
    fn columns(&self, layer: &LayerId, count: u64) -> Sizes {
        self.weight(layer).map(|w| prunable(w, w.shape[0] as u64 * count)).unwrap_or_default()
    }
}

/// Returns the size of `count` numbers of a linear layer's weight.
fn prunable(tensor: &TensorSpec, count: u64) -> Sizes {
    Sizes { prunable: count, parameters: count, bytes: count * tensor.kind.elt_size_in_bytes() as u64 }
}
