//! A few tokens that the model thinks most likely, to see that it still speaks.
//!
//! Greedy, one text at a time, and without a cache of keys and values: each token runs the whole text again, which is
//! cheap for tens of tokens and not meant for more. Does not know text; that is [`crate::tokens`].

use crate::{Decoder, ModelError};
use std::ops::ControlFlow;
use tch::Tensor;

/// Why no more tokens came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As many as were asked for.
    Limit,
    /// The model ended its text.
    Eos,
    /// The caller wanted no more.
    Stopped,
}

/// Generates up to `limit` tokens after `prompt`, hands each to `each`, and returns why it ended.
///
/// Ends before a token that is one of `config.eos`; that token is not handed out.
///
/// # Errors
/// [`ModelError::Unsupported`] if prompt and answer are longer than the model can see; logits that are not finite; a
/// failed tensor operation.
pub fn greedy(
    decoder: &Decoder,
    prompt: &[i64],
    limit: u64,
    each: &mut dyn FnMut(i64) -> ControlFlow<()>,
) -> Result<End, ModelError> {
    let _no_grad = tch::no_grad_guard();
    let mut ids = prompt.to_vec();
    for _ in 0..limit {
        let id = most_likely(decoder, &ids)?;
        if decoder.config.eos.contains(&id) {
            return Ok(End::Eos);
        }
        if each(id).is_break() {
            return Ok(End::Stopped);
        }
        ids.push(id);
    }
    Ok(End::Limit)
}

/// Returns the token that the model thinks most likely after `ids`.
fn most_likely(decoder: &Decoder, ids: &[i64]) -> Result<i64, ModelError> {
    if ids.is_empty() {
        let expected = "[t], at least 1".to_owned();
        return Err(ModelError::Shape { what: "tokens to go on from", expected, found: vec![0] });
    }
    let ids_bt = Tensor::f_from_slice(ids)?.f_unsqueeze(0)?;
    let x_btd = decoder.forward(&ids_bt)?;
    let last = ids.len() as i64 - 1;
    let logits_v = decoder.logits(&x_btd.f_get(0)?.f_get(last)?)?;
    if !logits_v.f_max()?.f_double_value(&[])?.is_finite() {
        return Err(ModelError::NotFinite { what: format!("the largest logit after {} tokens", ids.len()) });
    }
    Ok(logits_v.f_argmax(-1, false)?.f_int64_value(&[])?)
}
