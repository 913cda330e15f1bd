//! Causal attention with grouped key and value heads.

use super::{HeadNorms, Tap};
use crate::rotary::Rotary;
use crate::{Linear, ModelError};
use tch::Tensor;

/// The attention of one block. Query heads `j·g .. (j+1)·g` use key/value head j, where g = `heads / kv_heads`.
#[derive(Debug)]
pub struct Attention {
    /// Queries, [heads · e, d].
    pub q: Linear,
    /// Keys, [kv heads · e, d].
    pub k: Linear,
    /// Values, [kv heads · e, d].
    pub v: Linear,
    /// Output, [d, heads · e].
    pub o: Linear,
    /// Norms over heads, before rotation (Qwen3).
    pub head_norms: Option<HeadNorms>,
    /// Query heads that are left.
    pub heads: i64,
    /// Key/value heads that are left.
    pub kv_heads: i64,
    /// Size e of a head.
    pub head_dim: i64,
}

impl Attention {
    /// Returns what the attention adds to the residual stream, [b, t, d], for the normed stream `x_btd`.
    pub(super) fn forward(&self, x_btd: &Tensor, rotary: &Rotary, tap: &mut dyn Tap) -> Result<Tensor, ModelError> {
        let mut feed = |layer: &Linear, x: &Tensor| -> Result<Tensor, ModelError> {
            let input = if layer.name == self.o.name { &self.o.name } else { &self.q.name };
            tap.linear(layer, input, x)
        };
        if self.heads == 0 {
            let size = x_btd.size();
            return feed(&self.o, &x_btd.f_new_zeros([size[0], size[1], 0], (x_btd.kind(), x_btd.device()))?);
        }
        let mut q_bhte = self.split(&feed(&self.q, x_btd)?, self.heads)?;
        let mut k_bhte = self.split(&feed(&self.k, x_btd)?, self.kv_heads)?;
        let v_bhte = self.split(&feed(&self.v, x_btd)?, self.kv_heads)?;
        if let Some(norms) = &self.head_norms {
            q_bhte = norms.q.forward(&q_bhte)?;
            k_bhte = norms.k.forward(&k_bhte)?;
        }
        let (q_bhte, k_bhte) = (rotary.apply(&q_bhte)?, rotary.apply(&k_bhte)?);
        let (k_bhte, v_bhte) = (self.repeat(&k_bhte)?, self.repeat(&v_bhte)?);
        let y_bhte =
            Tensor::f_scaled_dot_product_attention(&q_bhte, &k_bhte, &v_bhte, None::<&Tensor>, 0.0, true, None, false)?;
        let (batch, tokens) = (x_btd.size()[0], x_btd.size()[1]);
        let y_btc = y_bhte.f_transpose(1, 2)?.f_reshape([batch, tokens, self.heads * self.head_dim])?;
        feed(&self.o, &y_btc)
    }

    /// Returns [b, t, h · e] as [b, h, t, e].
    fn split(&self, y: &Tensor, heads: i64) -> Result<Tensor, ModelError> {
        let (batch, tokens) = (y.size()[0], y.size()[1]);
        Ok(y.f_view([batch, tokens, heads, self.head_dim])?.f_transpose(1, 2)?)
    }

    /// Returns key or value heads once for each query head that uses them. Repeating them here rather than inside the
    /// attention keeps libtorch on its fused kernels, which do not all know groups.
    fn repeat(&self, y_bhte: &Tensor) -> Result<Tensor, ModelError> {
        let group = self.heads / self.kv_heads;
        if group == 1 {
            return Ok(y_bhte.shallow_clone());
        }
        let [batch, _, tokens, size] = y_bhte.size()[..] else { unreachable!("split gives four dimensions") };
        let spread = y_bhte.f_unsqueeze(2)?.f_expand([batch, self.kv_heads, group, tokens, size], false)?;
        Ok(spread.f_reshape([batch, self.heads, tokens, size])?)
    }
}
