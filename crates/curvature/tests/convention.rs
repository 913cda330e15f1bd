//! The convention of the crate, held against dense Fishers of toy networks in f64.

use curvature::{BlockFactors, Side};
use tch::{Device, Kind, Tensor};
use testkit::{kron, max_difference, random};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Returns the negative log-likelihood summed over tokens, in nats.
fn summed_loss(logits_nv: &Tensor, labels_n: &Tensor) -> Tensor {
    let picked = logits_nv.log_softmax(-1, Kind::Double).gather(1, &labels_n.unsqueeze(1), false);
    picked.sum(Kind::Double) * -1.0
}

/// Returns the loss summed over tokens of a toy network, its output of the layer (with gradient), from W and x.
fn forward(w_rc: &Tensor, x_nc: &Tensor, head_vr: &Tensor, labels_n: &Tensor) -> (Tensor, Tensor) {
    let y_nr = x_nc.matmul(&w_rc.tr());
    let logits_nv = y_nr.tanh().matmul(&head_vr.tr());
    (summed_loss(&logits_nv, labels_n), y_nr)
}

#[test]
fn g_kron_a_of_a_token_is_the_outer_product_of_its_weight_gradient() {
    let (r, c) = (3, 4);
    let head = random(&[5, r], 2);
    // The bias is the last column of W, and x gets a last 1.
    let x = Tensor::cat(&[random(&[1, c - 1], 3), Tensor::ones([1, 1], F64)], 1);
    let w = random(&[r, c], 1).set_requires_grad(true);
    let (loss, y) = forward(&w, &x, &head, &Tensor::from_slice(&[2_i64]));
    let gradients = Tensor::run_backward(&[loss], &[&y, &w], false, false);
    let mut factors = BlockFactors::new();
    factors.accumulate(Side::Input, "l", &x).unwrap();
    factors.accumulate(Side::Gradient, "l", &gradients[0]).unwrap();
    factors.add_tokens(1);
    let fisher = kron(&factors.finish(Side::Gradient, "l").unwrap(), &factors.finish(Side::Input, "l").unwrap());
    let dense = gradients[1].reshape([-1, 1]);
    assert!(max_difference(&fisher, &dense.matmul(&dense.tr())) < 1e-12);
}

#[test]
fn half_delta_f_delta_is_the_rise_of_the_mean_loss_per_token_in_nats() {
    // One input and labels in proportion to the model's own probabilities: then the weights are at the optimum, the
    // empirical Fisher is the true one, G ⊗ A is exact (A is the same for every token), and the loss rises by ½ δᵀ F δ.
    let counts = [3_i64, 5, 2, 6];
    let labels: Vec<i64> = counts.iter().enumerate().flat_map(|(v, &n)| vec![v as i64; n as usize]).collect();
    let n = labels.len() as i64;
    let x_c = random(&[1, 3], 4);
    // y are the logits, so W xᵀ = log counts.
    let log_counts = Tensor::from_slice(&counts).to_kind(Kind::Double).log().view([4, 1]);
    let w = (log_counts.matmul(&x_c) / x_c.square().sum(Kind::Double)).set_requires_grad(true);
    let loss_of = |w_rc: &Tensor, labels: &[i64]| {
        let y_nr = x_c.repeat([labels.len() as i64, 1]).matmul(&w_rc.tr());
        let labels = Tensor::from_slice(labels);
        (summed_loss(&y_nr, &labels), y_nr)
    };
    let mut factors = BlockFactors::new();
    // Two sequences of different length: the loss is summed over each.
    for sequence in [&labels[..6], &labels[6..]] {
        let (loss, y) = loss_of(&w, sequence);
        let gradients = Tensor::run_backward(&[loss], &[&y], false, false);
        factors.accumulate(Side::Input, "l", &x_c.repeat([sequence.len() as i64, 1])).unwrap();
        factors.accumulate(Side::Gradient, "l", &gradients[0]).unwrap();
        factors.add_tokens(sequence.len() as u64);
    }
    let fisher = kron(&factors.finish(Side::Gradient, "l").unwrap(), &factors.finish(Side::Input, "l").unwrap());
    let delta = random(&[4, 3], 6) * 1e-3;
    let vec_delta = delta.reshape([-1, 1]);
    let predicted = 0.5 * vec_delta.tr().matmul(&fisher.matmul(&vec_delta)).double_value(&[0, 0]);
    let mean_loss = |w_rc: &Tensor| loss_of(w_rc, &labels).0.double_value(&[]) / n as f64;
    let rise = tch::no_grad(|| mean_loss(&(&w + &delta)) - mean_loss(&w));
    assert!((rise / predicted - 1.0).abs() < 5e-3, "predicted {predicted:e}, rose by {rise:e}");
}
