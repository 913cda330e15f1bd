//! The tensors of a GGUF file under llama.cpp's names, and a decoder made of them again to check the file.

use super::architecture::Architecture;
use super::container::{Entry, Value};
use super::encoding;
use crate::compact::{Compaction, Place, Recipe};
use crate::{
    Attention, Block, BlockWidths, Blocks, Decoder, HeadNorms, Linear, Mlp, ModelConfig, ModelError, ModelFolder, Norm,
};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};
use types::{GgufType, LayerId};

/// Version of the quantised formats.
pub(super) const QUANTIZATION_VERSION: u32 = 2;
/// How much slower each rotary pair turns than without scaling.
const ROTARY: &str = "rope_freqs.weight";

/// Names of the parts of a block: in the checkpoint, in the file.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A tensor of the file and where it comes from.
#[derive(Debug)]
pub(super) struct Source<'a> {
    name: String,
    shape: Vec<u64>,
    from: From<'a>,
}

#[derive(Debug)]
enum From<'a> {
    /// A tensor of the base model, by its name there.
    Base {
        name: &'a str,
        kind: Kind,
        recipe: Recipe<'a>,
        heads: Option<i64>,
    },
    Ready(Tensor),
}

impl Source<'_> {
    pub(super) fn entry(&self, gguf_type: GgufType) -> Entry {
        let encoding = encoding(gguf_type, &self.shape);
        Entry { name: self.name.clone(), shape: self.shape.clone(), encoding }
    }

    /// Has what it is made of read while something else is done.
    pub(super) fn read_ahead(&self) {
        if let From::Base { recipe, .. } = &self.from {
            recipe.read_ahead();
        }
    }

    /// Returns its numbers.
    pub(super) fn make(&self, folder: &ModelFolder) -> Result<Tensor, ModelError> {
        match &self.from {
            From::Ready(tensor) => Ok(tensor.shallow_clone()),
            From::Base { name, kind, recipe, heads } => {
                // By way of the base model's number format: both formats of one run hold the same numbers.
                let tensor = recipe.make(*kind, || folder.tensor(name, *kind, Device::Cpu))?;
                heads.map_or_else(|| Ok(tensor.shallow_clone()), |heads| paired(&tensor, heads))
            }
        }
    }
}

/// Returns all tensors that the model consists of.
pub(super) fn all<'a>(
    folder: &'a ModelFolder,
    compaction: &'a Compaction<'a>,
    blocks: &[Place],
    architecture: Architecture,
) -> Result<Vec<Source<'a>>, ModelError> {
    let mut recipes = compaction.recipes();
    let mut sources = Vec::new();
    for spec in folder.tensors() {
        let recipe = recipes.remove(&spec.name).unwrap_or(Recipe::Base);
        let Some(compact) = compaction.name(&spec.name) else { continue };
        let (name, block) = name_of(folder, &compact)?;
        let block = block.and_then(|block| blocks.get(block as usize));
        let shape = recipe.shape(&spec.shape).iter().map(|size| *size as u64).collect();
        let heads = block.filter(|_| architecture.adjacent_pairs()).and_then(|block| {
            let BlockWidths { heads, kv_heads, .. } = block.widths;
            let turned = [("attn_q.", heads), ("attn_k.", kv_heads)];
            turned.into_iter().find_map(|(part, heads)| name.contains(part).then_some(heads))
        });
        let from = From::Base { name: &spec.name, kind: spec.kind, recipe, heads };
        sources.push(Source { name, shape, from });
    }
    Ok(sources)
}

/// Returns the name in the file of a tensor of the compact model, and its block.
fn name_of(folder: &ModelFolder, compact: &str) -> Result<(String, Option<u32>), ModelError> {
    let names = folder.names();
    let Some((block, part)) = names.block_of(compact) else {
        let outside = [
            (names.embedding(), "token_embd.weight"),
            (format!("{}.weight", names.final_norm()), "output_norm.weight"),
            (names.head(), "output.weight"),
        ];
        let found = outside.into_iter().find(|(name, _)| name == compact);
        return found.map(|(_, name)| (name.to_owned(), None)).ok_or_else(|| unknown(folder, compact));
    };
    let (part, kind) = part.rsplit_once('.').ok_or_else(|| unknown(folder, compact))?;
    let (_, name) = PARTS.iter().find(|(known, _)| *known == part).ok_or_else(|| unknown(folder, compact))?;
    Ok((format!("blk.{block}.{name}.{kind}"), Some(block)))
}

fn unknown(folder: &ModelFolder, tensor: &str) -> ModelError {
    let reason = format!("llama.cpp has no place for the tensor '{tensor}'; take --format hf");
    ModelError::Unsupported { path: folder.path().to_owned(), reason }
}

/// Returns how much slower each pair turns than without scaling, where that differs from pair to pair.
pub(super) fn rotary(config: &ModelConfig) -> Result<Option<Source<'static>>, ModelError> {
    let Some(slowing) = config.rope.as_ref().map(|rope| rope.slowing(config.head_dim)).transpose()?.flatten() else {
        return Ok(None);
    };
    let shape = slowing.size().iter().map(|size| *size as u64).collect();
    Ok(Some(Source { name: ROTARY.to_owned(), shape, from: From::Ready(slowing) }))
}

/// Returns rows (or a bias) of heads with the two numbers of each rotary pair side by side: i and i + e/2 become 2i and 2i + 1.
fn paired(tensor: &Tensor, heads: i64) -> Result<Tensor, ModelError> {
    swapped(tensor, heads, [2, -1])
}

/// Undoes [`paired`].
fn halved(tensor: &Tensor, heads: i64) -> Result<Tensor, ModelError> {
    swapped(tensor, heads, [-1, 2])
}

fn swapped(tensor: &Tensor, heads: i64, halves: [i64; 2]) -> Result<Tensor, ModelError> {
    let shape = tensor.size();
    let rest = shape.get(1..).unwrap_or_default();
    let head_dim = shape[0] / heads;
    let halves = halves.map(|size| if size == 2 { 2 } else { head_dim / 2 });
    let split = [&[heads], halves.as_slice(), rest].concat();
    Ok(tensor.f_reshape(split)?.f_transpose(1, 2)?.f_reshape(shape)?)
}

/// Reads a tensor of the file by name.
type Lookup<'a> = dyn Fn(&str) -> Result<Option<Tensor>, ModelError> + 'a;

/// Returns the model that a file's keys and tensors describe; positions and ε are those of `base`.
pub(super) fn decoder(
    keys: &BTreeMap<String, Value>,
    tensor: &Lookup,
    base: &ModelConfig,
) -> Result<Decoder, ModelError> {
    let Some(Value::Text(architecture)) = keys.get("general.architecture") else {
        return Err(lacking("general.architecture"));
    };
    let number = |key: &str, block: usize| match keys.get(&format!("{architecture}.{key}")) {
        Some(Value::U32(n)) => Ok(i64::from(*n)),
        Some(Value::I32s(list)) => list.get(block).map(|n| i64::from(*n)).ok_or_else(|| lacking(key)),
        _ => Err(lacking(key)),
    };
    let blocks = number("block_count", 0)?;
    let adjacent = [Architecture::Llama, Architecture::Deci].iter().any(|known| known.name() == architecture);
    let parts = Parts { tensor, eps: base.norm_eps };
    let block = |index: usize| {
        let widths = BlockWidths {
            heads: number("attention.head_count", index)?,
            kv_heads: number("attention.head_count_kv", index)?,
            ffn: number("feed_forward_length", index)?,
        };
        parts.block(index, widths, (base, adjacent))
    };
    let embedding = parts.required("token_embd.weight")?;
    Ok(Decoder {
        config: base.clone(),
        head: tensor("output.weight")?.unwrap_or_else(|| embedding.shallow_clone()),
        embedding,
        positions: None,
        blocks: Blocks::Resident((0..blocks as usize).map(block).collect::<Result<_, _>>()?),
        final_norm: parts.norm("output_norm")?,
    })
}

fn lacking(what: &str) -> ModelError {
    ModelError::TensorFile { file: super::FILE.to_owned(), reason: format!("lacks {what}") }
}

struct Parts<'a> {
    tensor: &'a Lookup<'a>,
    eps: f64,
}

impl Parts<'_> {
    fn required(&self, name: &str) -> Result<Tensor, ModelError> {
        (self.tensor)(name)?.ok_or_else(|| lacking(name))
    }

    fn norm(&self, name: &str) -> Result<Norm, ModelError> {
        Ok(Norm::Rms { weight: self.required(&format!("{name}.weight"))?, eps: self.eps })
    }

    /// Returns a layer with its rows turned to halves of heads, where there are `heads` of them.
    fn linear(&self, name: &str, heads: Option<i64>) -> Result<Linear, ModelError> {
        let turn = |tensor: Tensor| heads.map_or_else(|| Ok(tensor.shallow_clone()), |heads| halved(&tensor, heads));
        let id = LayerId::new(name).map_err(|_| lacking(name))?;
        let bias = (self.tensor)(&format!("{name}.bias"))?.map(turn).transpose()?;
        Ok(Linear { name: id, weight: turn(self.required(&format!("{name}.weight"))?)?, bias })
    }

    fn block(
        &self,
        index: usize,
        widths: BlockWidths,
        (base, adjacent): (&ModelConfig, bool),
    ) -> Result<Block, ModelError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let turned = |heads| adjacent.then_some(heads);
        let head_norms = if base.qk_norm {
            Some(HeadNorms { q: self.norm(&name("attn_q_norm"))?, k: self.norm(&name("attn_k_norm"))? })
        } else {
            None
        };
        Ok(Block {
            index: index as u32,
            attention_norm: self.norm(&name("attn_norm"))?,
            attention: Attention {
                q: self.linear(&name("attn_q"), turned(widths.heads))?,
                k: self.linear(&name("attn_k"), turned(widths.kv_heads))?,
                v: self.linear(&name("attn_v"), None)?,
                o: self.linear(&name("attn_output"), None)?,
                head_norms,
                heads: widths.heads,
                kv_heads: widths.kv_heads,
                head_dim: base.head_dim,
            },
            mlp_norm: self.norm(&name("ffn_norm"))?,
            mlp: Mlp::Gated {
                gate: self.linear(&name("ffn_gate"), None)?,
                up: self.linear(&name("ffn_up"), None)?,
                down: self.linear(&name("ffn_down"), None)?,
                activation: base.activation,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_side_by_side_head_by_head_and_back() {
        let bias = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 5, 6, 7]);
        let turned = paired(&bias, 2).unwrap();
        assert_eq!(Vec::<i64>::try_from(&turned).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(halved(&turned, 2).unwrap(), bias);
        let weight = Tensor::f_arange(24, (Kind::Int64, Device::Cpu)).unwrap().view([12, 2]);
        assert_eq!(halved(&paired(&weight, 2).unwrap(), 2).unwrap(), weight);
    }
}
