//! The loss on held-out text. Perplexity is its exponential; the protocol is that of [`crate::tokens::segments`].
//!
//! Does not cut text into segments and does not hold the logits of more than a few hundred tokens.

use crate::{Decoder, ModelError, NoTap, Tap};
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

/// Tokens whose logits exist at one time: 256 × 151,936 of f32 are 156 MB.
const HEAD_TOKENS: i64 = 256;

/// The loss of a model on some segments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Mean over the segments of the mean negative log-likelihood of each, nats per token.
    pub mean: f64,
    /// Tokens predicted: seqlen − 1 in each segment.
    pub tokens: u64,
    /// Segments scored.
    pub segments: u64,
}

/// Returns the mean loss of the decoder on segments of equal length, at least 2 tokens each.
///
/// `micro_batch` segments go through the model at a time; it sets memory, and the last bits of the result. `progress`
/// is told the segments done and their number, before the first and after each micro-batch, and may ask for an end.
///
/// # Errors
/// No segment or unequal ones, a loss that is not finite, a failed tensor operation, [`ModelError::Stopped`].
pub fn evaluate(
    decoder: &Decoder,
    segments: &[Vec<i64>],
    micro_batch: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Loss, ModelError> {
    evaluate_through(decoder, segments, micro_batch, &mut NoTap, progress)
}

/// Returns [`evaluate`] with `tap` in every block.
pub(crate) fn evaluate_through(
    decoder: &Decoder,
    segments: &[Vec<i64>],
    micro_batch: usize,
    tap: &mut dyn Tap,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Loss, ModelError> {
    let seq_len = checked(segments)?;
    let count = segments.len() as u64;
    let mut report = |done: u64| match progress(done, count) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::Stopped),
    };
    let _no_grad = tch::no_grad_guard();
    let targets = seq_len as u64 - 1;
    let mut sum = 0.0;
    let mut done = 0;
    report(done)?;
    let micro_batch = micro_batch.max(1);
    let rotary = decoder.rotary(seq_len)?;
    // All batches go through a block that is read for its use; one after the other through blocks in memory.
    let wave = if decoder.is_streamed() { segments.len() } else { micro_batch };
    for batches in segments.chunks(wave) {
        let batches: Vec<&[Vec<i64>]> = batches.chunks(micro_batch).collect();
        let ids = batches.iter().map(|batch| ids_of(batch, seq_len)).collect::<Result<Vec<_>, _>>()?;
        let mut states = ids.iter().map(|ids_bt| decoder.embed(ids_bt)).collect::<Result<Vec<_>, _>>()?;
        decoder.forward_wave(&mut states, &rotary, tap, &mut |_, _, _| {
            // A block that is read takes as long as a batch does otherwise.
            if decoder.is_streamed() { report(done) } else { Ok(()) }
        })?;
        for (ids_bt, x_btd) in ids.iter().zip(&states) {
            for nats in losses(decoder, ids_bt, x_btd)? {
                done += 1;
                if !nats.is_finite() {
                    return Err(ModelError::NotFinite { what: format!("the loss of segment {done} of {count}") });
                }
                sum += nats / targets as f64;
            }
            report(done)?;
        }
    }
    Ok(Loss { mean: sum / count as f64, tokens: targets * count, segments: count })
}

/// Returns the tokens of some segments, [b, t].
fn ids_of(segments: &[Vec<i64>], seq_len: i64) -> Result<Tensor, ModelError> {
    Ok(Tensor::f_from_slice(&segments.concat())?.f_view([segments.len() as i64, seq_len])?)
}

/// Returns the negative log-likelihood of each segment, summed over its targets, in nats, from its tokens, [b, t], and the
/// residual stream after the last block, [b, t, d].
fn losses(decoder: &Decoder, ids_bt: &Tensor, x_btd: &Tensor) -> Result<Vec<f64>, ModelError> {
    let &[batch, seq_len] = ids_bt.size().as_slice() else {
        return Err(ModelError::Shape { what: "token ids", expected: "[b, t]".to_owned(), found: ids_bt.size() });
    };
    let ids_bt = ids_bt.f_to_device(decoder.device())?;
    let mut nats = Vec::with_capacity(batch as usize);
    for segment in 0..batch {
        let (x_td, ids_t) = (x_btd.f_get(segment)?, ids_bt.f_get(segment)?);
        let mut sum = 0.0;
        let mut from = 0;
        while from < seq_len - 1 {
            let tokens = HEAD_TOKENS.min(seq_len - 1 - from);
            let logits_nv = decoder.logits(&x_td.f_narrow(0, from, tokens)?)?;
            let targets_n = ids_t.f_narrow(0, from + 1, tokens)?;
            sum += nll(&logits_nv, &targets_n)?;
            from += tokens;
        }
        nats.push(sum);
    }
    Ok(nats)
}

/// Returns −Σₙ log softmax(logitsₙ)[targetₙ], in nats: the softmax in f32, the sum in f64.
fn nll(logits_nv: &Tensor, targets_n: &Tensor) -> Result<f64, ModelError> {
    let log_p_nv = logits_nv.f_log_softmax(-1, Kind::Float).map_err(ModelError::torch("log-softmax of the logits"))?;
    let log_p_n = log_p_nv.f_gather(-1, &targets_n.f_unsqueeze(-1)?, false)?;
    Ok(-log_p_n.f_sum(Kind::Double)?.f_double_value(&[])?)
}

/// Returns the segments' length.
fn checked(segments: &[Vec<i64>]) -> Result<i64, ModelError> {
    let seq_len = segments.first().map_or(0, Vec::len);
    match segments.iter().map(Vec::len).find(|&len| len != seq_len || len < 2) {
        None if !segments.is_empty() => Ok(seq_len as i64),
        odd => Err(ModelError::Shape {
            what: "segments",
            expected: "at least one, all of the same length of 2 tokens or more".to_owned(),
            found: vec![segments.len() as i64, odd.unwrap_or(0) as i64],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelFolder, Overlay, tensor_file};
    use std::collections::BTreeMap;
    use std::path::Path;
    use tch::Device;

    const VOCAB: i64 = 11;

    /// Returns a tiny Llama with random weights.
    fn decoder(folder: &Path) -> Decoder {
        let config = serde_json::json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "float32",
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        tch::manual_seed(3);
        let mut tensors = Vec::new();
        let mut add = |name: &str, shape: &[i64]| {
            tensors.push((format!("{name}.weight"), Tensor::randn(shape, (Kind::Float, Device::Cpu))));
        };
        add("model.embed_tokens", &[VOCAB, 8]);
        for block in 0..2 {
            for (name, shape) in [
                ("input_layernorm", &[8][..]),
                ("post_attention_layernorm", &[8]),
                ("self_attn.q_proj", &[8, 8]),
                ("self_attn.k_proj", &[4, 8]),
                ("self_attn.v_proj", &[4, 8]),
                ("self_attn.o_proj", &[8, 8]),
                ("mlp.gate_proj", &[12, 8]),
                ("mlp.up_proj", &[12, 8]),
                ("mlp.down_proj", &[8, 12]),
            ] {
                add(&format!("model.layers.{block}.{name}"), shape);
            }
        }
        add("model.norm", &[8]);
        add("lm_head", &[VOCAB, 8]);
        let bytes = tensor_file::encode(&tensors, &BTreeMap::new()).unwrap();
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
        let folder = ModelFolder::open(folder).unwrap();
        Decoder::load(&folder, &Overlay::default(), Kind::Float, Device::Cpu).unwrap()
    }

    fn segments(count: i64, len: i64) -> Vec<Vec<i64>> {
        (0..count).map(|s| (0..len).map(|t| (s * 7 + t * t) % VOCAB).collect()).collect()
    }

    fn go_on(_: u64, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn the_loss_is_the_mean_over_segments_of_the_mean_over_all_but_the_first_token() {
        let folder = tempfile::tempdir().unwrap();
        let decoder = decoder(folder.path());
        // longer than one chunk of the head, and no multiple of it
        let len = 2 * HEAD_TOKENS + 9;
        let segments = segments(3, len);
        let expected: f64 = segments
            .iter()
            .map(|ids| {
                let ids_bt = Tensor::from_slice(ids).view([1, len]);
                let logits = decoder.forward_logits(&ids_bt).unwrap().to_kind(Kind::Double).squeeze_dim(0);
                let logits = logits.narrow(0, 0, len - 1);
                logits.cross_entropy_for_logits(&Tensor::from_slice(&ids[1..])).double_value(&[])
            })
            .sum::<f64>()
            / 3.0;
        for micro_batch in [1, 2, 3, 64] {
            let loss = evaluate(&decoder, &segments, micro_batch, &mut go_on).unwrap();
            assert!((loss.mean - expected).abs() < 1e-5, "{} {expected}", loss.mean);
            assert_eq!((loss.segments, loss.tokens), (3, 3 * (len as u64 - 1)));
        }
    }

    #[test]
    fn a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() {
        let folder = tempfile::tempdir().unwrap();
        let mut decoder = decoder(folder.path());
        decoder.head = decoder.head.zeros_like();
        let loss = evaluate(&decoder, &segments(2, 5), 2, &mut go_on).unwrap();
        assert!((loss.mean - (VOCAB as f64).ln()).abs() < 1e-6);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_an_error_that_names_the_segment() {
        let folder = tempfile::tempdir().unwrap();
        let mut decoder = decoder(folder.path());
        decoder.embedding = decoder.embedding.copy();
        let _ = decoder.embedding.get(9).fill_(f64::NAN);
        let segments = [vec![1, 2, 3], vec![4, 9, 5]];
        let error = evaluate(&decoder, &segments, 2, &mut go_on).unwrap_err();
        assert_eq!(error.to_string(), "the loss of segment 2 of 2 is not finite");
    }

    #[test]
    fn progress_counts_segments_and_can_stop() {
        let folder = tempfile::tempdir().unwrap();
        let decoder = decoder(folder.path());
        let mut seen = Vec::new();
        let result = evaluate(&decoder, &segments(5, 4), 2, &mut |done, all| {
            seen.push((done, all));
            if done < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(matches!(result, Err(ModelError::Stopped)));
        assert_eq!(seen, [(0, 5), (2, 5), (4, 5)]);
    }

    #[test]
    fn segments_that_cannot_be_scored_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let decoder = decoder(folder.path());
        for bad in [vec![], vec![vec![1]], vec![vec![1, 2], vec![1, 2, 3]]] {
            assert!(matches!(evaluate(&decoder, &bad, 1, &mut go_on), Err(ModelError::Shape { what: "segments", .. })));
        }
    }
}
