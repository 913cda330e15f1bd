//! Single weights through the real binary: sizes and patterns are exact, seen by a reader that is not ours.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::{prune_plain, summary};
use safetensors::{SafeTensors, tensor::TensorView};
use std::path::Path;

/// Layers of glassllm that are pruned.
const LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Returns for each weight of a tensor whether it is zero.
fn zeros(view: &TensorView) -> Vec<bool> {
    let size = view.data().len() / view.shape().iter().product::<usize>();
    view.data().chunks(size).map(|value| value.iter().all(|byte| *byte == 0)).collect()
}

/// Prunes and calls `look` with the name, width and zeros of each pruned tensor.
fn pruned(output: &Path, options: &[&str], mut look: impl FnMut(&str, usize, Vec<bool>)) -> serde_json::Value {
    let said = summary(prune_plain(output).args(options));
    let file = std::fs::read(output.join("model.safetensors")).unwrap();
    let mut found = 0;
    for (name, view) in SafeTensors::deserialize(&file).unwrap().iter() {
        if LAYERS.iter().any(|layer| name.ends_with(&format!("{layer}.weight"))) {
            look(name, view.shape()[1], zeros(&view));
            found += 1;
        }
    }
    assert_eq!(found, 4 * LAYERS.len());
    said
}

#[test]
fn half_of_all_weights_go_to_the_weight_whatever_the_update() {
    let temp = tempfile::tempdir().unwrap();
    let mut predicted = Vec::new();
    for update in ["correlated", "grouped", "two-sided", "independent", "none"] {
        let (mut gone, mut all) = (0, 0);
        let options = ["--structure", "element", "--target-size", "0.5", "--update", update];
        let said = pruned(&temp.path().join(update), &options, |_, _, zeros| {
            gone += zeros.iter().filter(|zero| **zero).count();
            all += zeros.len();
        });
        assert_eq!(gone, all - all / 2, "{update}");
        assert_eq!(said["after"]["prunable"].as_u64(), Some(all as u64 / 2), "{update}");
        predicted.push(said["predicted"].as_f64().unwrap());
    }
    let (correlated, others) = predicted.split_first().unwrap();
    assert!(others.iter().all(|other| correlated < other), "{predicted:?}");
}

#[test]
fn every_window_keeps_n_of_m_and_the_tail_stays() {
    let temp = tempfile::tempdir().unwrap();
    for (n, m) in [(2, 4), (4, 8), (1, 3)] {
        let pattern = format!("{n}:{m}");
        let output = temp.path().join(pattern.replace(':', "-"));
        pruned(&output, &["--structure", &pattern], |name, width, zeros| {
            for row in zeros.chunks(width) {
                let (windows, tail) = row.split_at(width / m * m);
                let gone = windows.chunks(m).map(|window| window.iter().filter(|zero| **zero).count());
                assert!(gone.clone().all(|gone| gone >= m - n), "{pattern} {name}: {:?}", gone.collect::<Vec<_>>());
                assert!(tail.iter().filter(|zero| **zero).count() <= 1, "{pattern} {name}: FFN 341 leaves a tail");
            }
        });
    }
}
