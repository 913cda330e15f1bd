//! Final norm, head and loss in chunks of tokens, with the gradient at the last boundary.
//!
//! The gradient of the head is written out (softmax less the label) rather than left to autograd, and two buffers of
//! [chunk, vocabulary] serve all chunks: no more of that size ever exists.

use super::{Batch, SweepOptions, labels};
use crate::{Decoder, ModelError};
use tch::{Kind, Tensor};
use types::Fisher;

/// The head over all micro-batches.
pub(super) struct Head<'a> {
    decoder: &'a Decoder,
    fisher: Fisher,
    seed: u64,
    /// Whether anyone needs the gradient.
    gradient: bool,
    /// Logits, [chunk, v], in the number format of the passes.
    logits_nv: Tensor,
    /// Log-likelihoods, then likelihoods, [chunk, v], in f32 or f64.
    p_nv: Tensor,
    loss_sum: f64,
}

impl<'a> Head<'a> {
    pub(super) fn new(decoder: &'a Decoder, options: &SweepOptions, gradient: bool) -> Result<Self, ModelError> {
        let size = [options.head_chunk.max(1) as i64, decoder.config.vocab];
        let kind = decoder.kind();
        let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let buffer =
            |kind| Tensor::f_empty(size, (kind, decoder.device())).map_err(ModelError::torch("buffers of the head"));
        Ok(Self {
            decoder,
            fisher: options.fisher,
            seed: options.seed,
            gradient,
            logits_nv: buffer(kind)?,
            p_nv: buffer(wide)?,
            loss_sum: 0.0,
        })
    }

    /// Returns the sum of the loss over what has passed, in nats.
    pub(super) fn loss_sum(&self) -> f64 {
        self.loss_sum
    }

    /// Adds the loss of a micro-batch; returns the gradient of its sum with respect to `x_btd`, the output of the last
    /// block. The last token of a sample has no label: its gradient is zero.
    pub(super) fn pass(&mut self, x_btd: &Tensor, batch: &Batch) -> Result<Tensor, ModelError> {
        let (b, t, d) = x_btd.size3()?;
        let targets = t - 1;
        let x_nd = x_btd.f_narrow(1, 0, targets)?.f_reshape([b * targets, d])?;
        let label_n = batch.ids_bt.f_narrow(1, 1, targets)?.f_reshape([b * targets])?;
        let u_n = match self.fisher {
            Fisher::Empirical => None,
            Fisher::Sampled => Some(
                labels::uniform(self.seed, batch.first_sample, b as u64, targets)
                    .f_view([-1])?
                    .f_to_device(x_btd.device())?,
            ),
        };
        let gradient_btd = x_btd.f_zeros_like()?;
        let mut chunks = Vec::new();
        let chunk = self.logits_nv.size()[0];
        let mut loss_sum = 0.0;
        for start in (0..b * targets).step_by(chunk as usize) {
            let n = chunk.min(b * targets - start);
            let cut = |x: &Tensor| x.f_narrow(0, start, n);
            let u_n = u_n.as_ref().map(cut).transpose()?;
            let (loss, gradient_nd) = self.chunk(&cut(&x_nd)?, &cut(&label_n)?, u_n.as_ref())?;
            loss_sum += loss;
            chunks.extend(gradient_nd);
        }
        if !loss_sum.is_finite() {
            let last = batch.first_sample + b as u64 - 1;
            return Err(ModelError::NotFinite {
                what: format!("the loss of samples {} to {last}", batch.first_sample),
            });
        }
        self.loss_sum += loss_sum;
        if self.gradient {
            gradient_btd.f_narrow(1, 0, targets)?.f_copy_(&Tensor::f_cat(&chunks, 0)?.f_view([b, targets, d])?)?;
        }
        Ok(gradient_btd)
    }

    /// Returns the summed loss of a chunk of tokens and, if asked for, its gradient with respect to `x_nd`.
    fn chunk(
        &mut self,
        x_nd: &Tensor,
        label_n: &Tensor,
        u_n: Option<&Tensor>,
    ) -> Result<(f64, Option<Tensor>), ModelError> {
        let n = x_nd.size()[0];
        let x_nd = x_nd.f_detach()?.f_set_requires_grad(self.gradient)?;
        let norm_nd = tch::with_grad(|| self.decoder.final_norm.forward(&x_nd))?;
        let head_vd = &self.decoder.head;
        let logits_nv = self.logits_nv.f_narrow(0, 0, n)?;
        let _ =
            norm_nd.f_detach()?.f_mm_out(&logits_nv, &head_vd.f_transpose(0, 1)?).map_err(ModelError::torch("head"))?;
        let mut p_nv = self.p_nv.f_narrow(0, 0, n)?;
        if logits_nv.kind() == p_nv.kind() {
            let _ = logits_nv.f_internal_log_softmax_out(&p_nv, 1, false)?;
        } else {
            p_nv.f_copy_(&logits_nv.f_log_softmax(1, p_nv.kind())?)?;
        }
        let label_n1 = label_n.f_unsqueeze(1)?;
        let loss = -p_nv.f_gather(1, &label_n1, false)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        if !self.gradient {
            return Ok((loss, None));
        }
        let _ = p_nv.f_exp_()?;
        let label_n1 = match u_n {
            Some(u_n) => labels::draw(&p_nv, u_n)?.f_unsqueeze(1)?,
            None => label_n1,
        };
        let _ = p_nv.f_scatter_add_(1, &label_n1, &Tensor::f_full([n, 1], -1.0, (p_nv.kind(), p_nv.device()))?)?;
        let gradient_nd =
            p_nv.f_to_kind(head_vd.kind())?.f_matmul(head_vd).map_err(ModelError::torch("head, backward"))?;
        let s = tch::with_grad(|| norm_nd.f_mul(&gradient_nd)?.f_sum(None))?;
        Ok((loss, Tensor::f_run_backward(&[s], &[x_nd], false, false)?.pop()))
    }
}
