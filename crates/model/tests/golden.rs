//! Tiny models of every family against what transformers computes from them (`testdata/make_golden.py`).

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on fails

mod common;

use common::{ALL, Copy, golden, tensors};
use model::{Decoder, ModelConfig, ModelFolder, NoTap, Overlay, RopeScaling};
use serde_json::{Value, json};
use std::path::Path;
use tch::{Device, Kind, Tensor};

fn load(path: &Path, kind: Kind) -> Decoder {
    let folder = ModelFolder::open(path).unwrap();
    Decoder::load(&folder, &Overlay::default(), kind, Device::Cpu).unwrap()
}

/// Returns the largest difference between our logits and those expected.
fn error(path: &Path, kind: Kind) -> f64 {
    let expected = tensors(&path.join("expected.safetensors"));
    let logits = load(path, kind).forward_logits(&expected["ids"]).unwrap();
    assert_eq!(logits.size(), expected["logits"].size());
    (logits.to_kind(Kind::Double) - &expected["logits"]).abs().max().double_value(&[])
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in ALL {
        let found = error(&golden(name), Kind::Float);
        assert!(found < 1e-4, "{name}: logits differ by {found}");
    }
}

#[test]
fn half_formats_come_close() {
    for name in ALL {
        let found = error(&golden(name), Kind::BFloat16);
        assert!(found > 0.0 && found < 0.8, "{name}: logits differ by {found}");
    }
}

#[test]
fn the_loss_equals_an_independent_one() {
    for name in ["llama-gqa", "opt"] {
        let expected = tensors(&golden(name).join("factors.safetensors"));
        let logits = load(&golden(name), Kind::Double).forward_logits(&expected["ids"]).unwrap();
        let tokens = expected["ids"].size()[1];
        let logits = logits.narrow(1, 0, tokens - 1).flatten(0, 1);
        let targets = expected["ids"].narrow(1, 1, tokens - 1).flatten(0, 1);
        let loss = logits.log_softmax(-1, Kind::Double).nll_loss(&targets);
        let difference = loss.double_value(&[]) - expected["loss"].double_value(&[]);
        assert!(difference.abs() < 1e-10, "{name}: loss differs by {difference}");
    }
}

#[test]
fn every_part_of_a_config_shows_in_the_logits() {
    // Each change is a mistake that a reader could make; all must be far outside the tolerance above.
    let cases: [(&str, &str, Value); 8] = [
        ("llama-tied-llama3", "rope_scaling", Value::Null),
        ("llama-tied-llama3", "rope_theta", json!(10_000.0)),
        ("llama-tied-llama3", "rms_norm_eps", json!(0.1)),
        ("llama-gqa", "hidden_act", json!("gelu")),
        ("qwen2", "rope_parameters", Value::Null),
        ("qwen3", "rope_parameters", json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0})),
        ("opt", "activation_function", json!("gelu")),
        ("mistral", "hidden_act", json!("gelu_pytorch_tanh")),
    ];
    for (name, key, value) in cases {
        let copy = Copy::of(name);
        copy.config(|config| drop(config.insert(key.to_owned(), value)));
        let found = error(copy.path(), Kind::Float);
        assert!(found > 1e-3, "{name}: {key} changes the logits by {found} only");
    }
}

#[test]
fn gradients_reach_the_input_of_a_block() {
    for name in ["qwen3", "opt"] {
        let decoder = load(&golden(name), Kind::Double);
        let ids = tensors(&golden(name).join("expected.safetensors"))["ids"].shallow_clone();
        let rotary = decoder.rotary(ids.size()[1]).unwrap();
        let x = decoder.embed(&ids).unwrap();
        let run = |x: &Tensor| {
            decoder.resident().unwrap()[0].forward(x, &rotary, &mut NoTap).unwrap().square().sum(Kind::Double)
        };
        let probe = x.set_requires_grad(true);
        let gradient = Tensor::run_backward(&[run(&probe)], &[&probe], false, false).remove(0);
        let direction = (Tensor::arange(x.numel() as i64, (Kind::Double, Device::Cpu)) * 0.7).sin().view_as(&x);
        let step = 1e-6;
        let numeric = (run(&(x.detach() + &direction * step)) - run(&(x.detach() - &direction * step))) / (2.0 * step);
        let exact = (gradient * direction).sum(Kind::Double).double_value(&[]);
        let numeric = numeric.double_value(&[]);
        assert!((numeric - exact).abs() < 1e-5 * exact.abs().max(1.0), "{name}: {exact} against {numeric}");
    }
}

#[test]
fn old_and_new_keys_mean_the_same() {
    let copy = Copy::of("llama-tied-llama3");
    let old = ModelConfig::read(&copy.file("config.json")).unwrap();
    assert!(matches!(old.rope.unwrap().scaling, RopeScaling::Llama3 { .. }));
    assert_eq!((old.eos.as_slice(), old.bos, old.head_dim), ([2, 3].as_slice(), Some(1), 12));
    copy.config(|config| {
        let mut rope = config.remove("rope_scaling").unwrap();
        rope["rope_theta"] = config.remove("rope_theta").unwrap();
        rope["rope_type"] = rope.as_object_mut().unwrap().remove("type").unwrap();
        config.insert("rope_parameters".to_owned(), rope);
    });
    let new = ModelConfig::read(&copy.file("config.json")).unwrap();
    assert_eq!(old.rope, new.rope);
}

#[test]
fn missing_and_null_keys_have_their_defaults() {
    let copy = Copy::of("llama-bias");
    copy.config(|config| {
        config.remove("num_key_value_heads");
        config.remove("head_dim");
        config.insert("rope_parameters".to_owned(), Value::Null);
        config.insert("eos_token_id".to_owned(), Value::Null);
    });
    let config = ModelConfig::read(&copy.file("config.json")).unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.eos.len()), (4, 8, 0));
    copy.config(|config| drop(config.insert("head_dim".to_owned(), Value::Null)));
    assert_eq!(ModelConfig::read(&copy.file("config.json")).unwrap().head_dim, 8);
    assert!(error(copy.path(), Kind::Float) < 1e-4);
}

#[test]
fn a_sliding_window_is_accepted_only_where_it_hides_nothing() {
    let window = |name: &str, keys: &[(&str, Value)]| {
        let copy = Copy::of(name);
        copy.config(|config| {
            for (key, value) in keys {
                config.insert((*key).to_owned(), value.clone());
            }
        });
        ModelConfig::read(&copy.file("config.json")).unwrap()
    };
    let mistral = window("mistral", &[("sliding_window", json!(16))]);
    assert!(mistral.check_length(16).is_ok());
    let refused = mistral.check_length(17).unwrap_err().to_string();
    assert!(refused.contains("sliding window of 16"), "{refused}");
    assert_eq!(window("mistral", &[]).sliding_window, None);
    let on = ("use_sliding_window", json!(true));
    let width = ("sliding_window", json!(8));
    assert_eq!(window("qwen2", std::slice::from_ref(&width)).sliding_window, None);
    let types = |kind: &str| ("layer_types", json!(["full_attention", kind]));
    assert_eq!(window("qwen2", &[width.clone(), on.clone(), types("sliding_attention")]).sliding_window, Some(8));
    assert_eq!(window("qwen2", &[width, on, types("full_attention")]).sliding_window, None);
}

#[test]
fn checkpoints_of_the_bare_decoder_have_the_same_logits() {
    for (name, prefix) in [("opt", "model."), ("llama-tied-llama3", "model.")] {
        let copy = Copy::of(name);
        copy.weights(|all| {
            let renamed = std::mem::take(all).into_iter();
            all.extend(renamed.map(|(name, t)| (name.strip_prefix(prefix).unwrap_or(&name).to_owned(), t)));
        });
        assert!(error(copy.path(), Kind::Float) < 1e-4, "{name}");
        let folder = ModelFolder::open(copy.path()).unwrap();
        assert!(!folder.layers()[0].o.as_str().starts_with(prefix));
    }
}

#[cfg(unix)]
#[test]
fn a_hub_cache_snapshot_is_read_through_its_links() {
    let copy = Copy::of("qwen3");
    let snapshot = copy.file("snapshots");
    std::fs::create_dir(&snapshot).unwrap();
    for entry in std::fs::read_dir(golden("qwen3")).unwrap() {
        let name = entry.unwrap().file_name();
        std::os::unix::fs::symlink(copy.file("").join(&name), snapshot.join(&name)).unwrap();
    }
    assert!(error(&snapshot, Kind::Float) < 1e-4);
}

#[test]
fn sizes_and_digest_describe_the_whole_model() {
    let folder = ModelFolder::open(&golden("mistral")).unwrap();
    let block = 2 * 32 * 32 + 2 * 8 * 32 + 3 * 32 * 56;
    let sizes = folder.sizes();
    assert_eq!(sizes.prunable, 2 * block);
    assert_eq!(sizes.parameters, 2 * (block + 64) + 32 + 2 * 96 * 32);
    assert_eq!(sizes.bytes, 2 * sizes.parameters);
    let tied = ModelFolder::open(&golden("qwen2")).unwrap();
    assert!(tied.shape("lm_head.weight").is_none());
    assert_eq!(folder.digest().unwrap().len(), 64);
    assert_ne!(folder.digest().unwrap(), tied.digest().unwrap());
    assert_eq!(folder.digest().unwrap(), ModelFolder::open(Copy::of("mistral").path()).unwrap().digest().unwrap());
}

#[test]
fn a_token_without_embedding_is_an_error() {
    let decoder = load(&golden("llama-gqa"), Kind::Float);
    let refused = decoder.forward(&Tensor::from_slice(&[5i64, 96]).view([1, 2])).unwrap_err().to_string();
    assert!(refused.contains("tokenizer belongs to another model"), "{refused}");
    let long = Tensor::ones([1, 65], (Kind::Int64, Device::Cpu));
    assert!(decoder.forward(&long).is_ok(), "rotary positions have no end");
    let refused = load(&golden("opt"), Kind::Float).forward(&long).unwrap_err().to_string();
    assert!(refused.contains("64 learned positions"), "{refused}");
}
