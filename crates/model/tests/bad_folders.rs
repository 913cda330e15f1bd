//! Folders that are no models, or broken ones: each error says what is wrong, where, and what to do.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on fails

mod common;

use common::{Copy, golden};
use model::{ModelError, ModelFolder};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};

/// Returns the error of opening `path`, which must contain every one of `words`.
fn refused(path: &Path, words: &[&str]) -> ModelError {
    let error = ModelFolder::open(path).expect_err("the folder is broken");
    for word in words {
        assert!(error.to_string().contains(word), "'{error}' should say '{word}'");
    }
    error
}

#[test]
fn what_is_no_model_folder_is_said() {
    let copy = Copy::of("llama-gqa");
    refused(Path::new("/nowhere/at/all"), &["/nowhere/at/all", "nothing at this path", "never downloaded"]);
    refused(&copy.file("model.safetensors"), &["is a file", "name the folder"]);
    fs::create_dir_all(copy.file("cache/snapshots/abc")).unwrap();
    refused(&copy.file("cache"), &["hub cache", "snapshots"]);
    fs::create_dir(copy.file("adapter")).unwrap();
    fs::write(copy.file("adapter/adapter_config.json"), "{}").unwrap();
    refused(&copy.file("adapter"), &["LoRA"]);
    fs::create_dir(copy.file("empty")).unwrap();
    refused(&copy.file("empty"), &["no config.json"]);
    fs::remove_file(copy.file("model.safetensors")).unwrap();
    refused(copy.path(), &["neither model.safetensors nor pytorch_model.bin"]);
    fs::write(copy.file("pytorch_model.bin"), "pickle").unwrap();
    refused(copy.path(), &["pytorch_model.bin", "no PyTorch file"]);
    fs::write(copy.file("pytorch_model.bin"), b"\x80\x02}.").unwrap();
    let error = refused(copy.path(), &["pytorch_model.bin", "before 1.6", "save_pretrained"]);
    assert!(matches!(error, ModelError::Unsupported { .. }));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_is_cut() {
    let copy = Copy::of("llama-gqa");
    let file = copy.file("model.safetensors");
    let whole = fs::read(golden("llama-gqa").join("model.safetensors")).unwrap();
    for (length, word) in [
        (0, ""),
        (5, "too few"),
        (100, "announces a header"),
        (whole.len() / 2, "is said to lie at bytes"),
        (whole.len() - 1, "is said to lie at bytes"),
    ] {
        fs::write(&file, &whole[..length]).unwrap();
        refused(copy.path(), &["model.safetensors", word]);
    }
    fs::write(&file, [whole.as_slice(), b"more"].concat()).unwrap();
    refused(copy.path(), &["4 bytes after its last tensor", "fetch it again"]);
}

#[test]
fn a_lying_header_is_refused() {
    let copy = Copy::of("llama-gqa");
    let file = copy.file("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&(u64::MAX - 3).to_le_bytes());
    fs::write(&file, huge).unwrap();
    refused(copy.path(), &["announces a header of 18446744073709551612 bytes"]);

    // The header's text with one thing changed to something of the same length.
    let changed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(whole[8..end].to_vec()).unwrap();
        assert!(header.contains(from), "{header}");
        let bytes = [&whole[..8], header.replacen(from, to, 1).as_bytes(), &whole[end..]].concat();
        fs::write(&file, bytes).unwrap();
    };
    changed("\"F32\"", "\"F64\"");
    refused(copy.path(), &["does not fit its"]);
    changed("\"F32\"", "\"F99\"");
    refused(copy.path(), &["unknown number format 'F99'"]);
    changed("[96,24]", "[24,96]");
    refused(copy.path(), &["lm_head.weight", "[24, 96]", "[96, 24]"]);
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let copy = Copy::of("opt");
    let name = "model.decoder.layers.1.fc1.bias";
    copy.weights(|all| drop(all.remove(name)));
    let error = refused(copy.path(), &[name, "[32]", "missing"]);
    assert!(matches!(error, ModelError::MissingTensor { .. }));
    copy.weights(|all| drop(all.insert(name.to_owned(), Tensor::zeros([31], (Kind::Float, tch::Device::Cpu)))));
    let error = refused(copy.path(), &[name, "[31]", "[32]", "model.safetensors"]);
    assert!(matches!(error, ModelError::TensorShape { .. }));
    copy.weights(|all| drop(all.insert(name.to_owned(), Tensor::zeros([32], (Kind::Int8, tch::Device::Cpu)))));
    refused(copy.path(), &[name, "stored as I8", "BF16, F16 and F32"]);
}

#[test]
fn weights_that_would_be_lost_are_refused_and_others_ignored() {
    let vector = || Tensor::zeros([4], (Kind::Float, tch::Device::Cpu));
    let copy = Copy::of("llama-gqa");
    copy.weights(|all| drop(all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vector())));
    assert!(ModelFolder::open(copy.path()).is_ok());
    let extra = "model.layers.0.mlp.router.weight";
    copy.weights(|all| drop(all.insert(extra.to_owned(), vector())));
    assert!(matches!(refused(copy.path(), &[extra, "llama"]), ModelError::UnexpectedTensor { .. }));
    // The config announces fewer blocks than the file holds.
    let copy = Copy::of("llama-gqa");
    copy.config(|config| drop(config.insert("num_hidden_layers".to_owned(), json!(1))));
    refused(copy.path(), &["model.layers.1.", "would be lost"]);
}

#[test]
fn a_tied_head_that_differs_is_refused() {
    let copy = Copy::of("qwen2");
    let embedding = |all: &std::collections::BTreeMap<String, Tensor>| all["model.embed_tokens.weight"].copy();
    copy.weights(|all| drop(all.insert("lm_head.weight".to_owned(), embedding(all))));
    assert!(ModelFolder::open(copy.path()).is_ok());
    copy.weights(|all| drop(all.insert("lm_head.weight".to_owned(), embedding(all) + 1.0)));
    refused(copy.path(), &["lm_head.weight", "tie_word_embeddings"]);
}

#[test]
fn configs_that_are_not_supported_are_refused_with_a_word() {
    let cases: [(&str, &str, Value, &[&str]); 16] = [
        (
            "llama-gqa",
            "model_type",
            json!("gpt_neox"),
            &["'gpt_neox' is not supported", "llama, mistral, qwen2, qwen3, opt"],
        ),
        ("llama-gqa", "model_type", json!(7), &["'model_type' is 7", "text"]),
        (
            "llama-gqa",
            "quantization_config",
            json!({"quant_method": "gptq"}),
            &["quantised", "gptq", "original weights"],
        ),
        ("llama-gqa", "rope_parameters", json!({"rope_type": "yarn", "factor": 2.0}), &["'yarn'", "llama3"]),
        ("llama-gqa", "rope_parameters", json!({"rope_type": "linear"}), &["'factor'", "missing"]),
        ("llama-gqa", "rope_parameters", json!({"rope_theta": -1.0}), &["rope_theta"]),
        ("llama-gqa", "hidden_act", json!("mish"), &["'mish'", "silu"]),
        ("llama-gqa", "hidden_size", json!("24"), &["'hidden_size' is \"24\"", "whole number"]),
        ("llama-gqa", "hidden_size", Value::Null, &["'hidden_size' is missing"]),
        ("llama-gqa", "num_key_value_heads", json!(3), &["4 attention heads", "3 key/value heads"]),
        ("llama-gqa", "num_attention_heads", json!(0), &["attention heads is 0"]),
        ("llama-gqa", "num_hidden_layers", json!(-1), &["num_hidden_layers"]),
        ("llama-gqa", "vocab_size", json!(1i64 << 40), &["vocabulary size"]),
        ("qwen3", "layer_types", json!(["full_attention", "mamba", "x"]), &["'mamba'"]),
        ("opt", "word_embed_proj_dim", json!(12), &["word_embed_proj_dim", "opt-350m"]),
        ("opt", "do_layer_norm_before", json!(false), &["do_layer_norm_before"]),
    ];
    for (name, key, value, words) in cases {
        let copy = Copy::of(name);
        copy.config(|config| {
            config.insert(key.to_owned(), value);
            config.insert("use_sliding_window".to_owned(), json!(true));
        });
        refused(copy.path(), words);
    }
    let copy = Copy::of("llama-gqa");
    fs::write(copy.file("config.json"), "{ not json").unwrap();
    refused(copy.path(), &["config.json", "not valid JSON"]);
    fs::write(copy.file("config.json"), "[]").unwrap();
    refused(copy.path(), &["no JSON object"]);
}

#[test]
fn a_broken_index_is_refused() {
    let copy = Copy::of("qwen3");
    let shard = copy.file("model-00002-of-00004.safetensors");
    let second = fs::read(&shard).unwrap();
    fs::remove_file(&shard).unwrap();
    refused(copy.path(), &["index.json", "model-00002-of-00004.safetensors", "not there"]);
    fs::write(&shard, fs::read(copy.file("model-00001-of-00004.safetensors")).unwrap()).unwrap();
    refused(copy.path(), &["another shard holds as well"]);
    fs::write(&shard, second).unwrap();
    assert!(ModelFolder::open(copy.path()).is_ok());
    let index = copy.file("model.safetensors.index.json");
    for (text, word) in [
        ("{", "not valid JSON"),
        ("{}", "no 'weight_map'"),
        (r#"{"weight_map": {}}"#, "names no shards"),
        (r#"{"weight_map": {"a": 1}}"#, "names no shard for tensor 'a'"),
        (r#"{"weight_map": {"a": "../../etc/passwd"}}"#, "not a plain file name"),
    ] {
        fs::write(&index, text).unwrap();
        refused(copy.path(), &[word]);
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_is_named() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let copy = Copy::of("llama-gqa");
    let file = copy.file("model.safetensors");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    // Whoever runs as root may read it all the same.
    if fs::File::open(&file).is_err() {
        refused(copy.path(), &["cannot read", "model.safetensors"]);
    }
    fs::remove_file(&file).unwrap();
    symlink("blobs/gone", &file).unwrap();
    refused(copy.path(), &["link to its weights leads nowhere"]);
}
