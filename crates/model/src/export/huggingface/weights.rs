//! The tensor files of the pruned model, one tensor in memory at a time.

use crate::compact::{Compaction, Recipe};
use crate::export::staging::Staging;
use crate::tensor_file::{TensorSpec, bytes_of, write_to};
use crate::{ModelError, ModelFolder};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Device, Tensor};

/// Writes all tensors in the number formats of the base model: one file, or shards of at most `shard_bytes` with an index.
pub(super) fn write(
    folder: &ModelFolder,
    compaction: &Compaction,
    shard_bytes: u64,
    staging: &Staging,
) -> Result<(), ModelError> {
    let recipes = compaction.recipes();
    let recipe = |name: &str| recipes.get(name).unwrap_or(&Recipe::Base);
    let left = folder.tensors().iter().filter_map(|base| Some((base, compaction.name(&base.name)?)));
    let (bases, specs): (Vec<&TensorSpec>, Vec<TensorSpec>) = left
        .map(|(base, name)| (base, TensorSpec { name, shape: recipe(&base.name).shape(&base.shape), kind: base.kind }))
        .unzip();
    let tensor = |at: usize| -> Result<Tensor, ModelError> {
        if let Some(next) = bases.get(at + 1) {
            recipe(&next.name).read_ahead();
        }
        let TensorSpec { name, kind, .. } = bases[at];
        recipe(name).make(*kind, || folder.tensor(name, *kind, Device::Cpu))
    };
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let shards = cut(&specs, shard_bytes);
    let mut weight_map = BTreeMap::new();
    for (at, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
        };
        let (specs, first) = (&specs[shard.clone()], shard.start);
        staging.stream(&name, |out| write_to(out, &name, specs, &metadata, |at| tensor(first + at)).map(drop))?;
        weight_map.extend(specs.iter().map(|spec| (spec.name.clone(), Value::from(name.clone()))));
    }
    if shards.len() > 1 {
        let total: u64 = specs.iter().map(bytes_of).sum();
        let map: Map<String, Value> = weight_map.into_iter().collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        staging.write("model.safetensors.index.json", format!("{index:#}\n").as_bytes())?;
    }
    Ok(())
}

/// Cuts tensors into runs of at most `limit` bytes; a larger tensor is a run of its own.
fn cut(specs: &[TensorSpec], limit: u64) -> Vec<Range<usize>> {
    let (mut shards, mut start, mut filled) = (Vec::new(), 0, 0);
    for (at, bytes) in specs.iter().map(bytes_of).enumerate() {
        if at > start && filled + bytes > limit {
            shards.push(start..at);
            (start, filled) = (at, 0);
        }
        filled += bytes;
    }
    shards.push(start..specs.len());
    shards
}
