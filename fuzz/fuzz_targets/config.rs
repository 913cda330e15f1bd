//! `config.json` of every family: what is accepted can be planned with, and says the same when it is read again.

#![no_main]

use fuzz::{example, plant};
use libfuzzer_sys::fuzz_target;
use model::{Family, ModelConfig};
use planning::forecast::{Machines, Request, Sites, Widths, forecast};
use serde_json::{Value, json};
use std::path::Path;

fuzz_target!(init: plant(seeds), |text: &[u8]| {
    let Ok(raw) = serde_json::from_slice::<Value>(text) else { return };
    let path = Path::new("config.json");
    let Ok(config) = ModelConfig::from_json(&raw, path) else { return };
    assert_eq!(ModelConfig::from_json(&config.raw, path).expect("it was read before"), config);
    check_widths(&config);
    for tokens in [1, 2048, i64::MAX] {
        let _ = config.check_length(tokens);
    }
    plan(&config);
});

/// Blocks that exist have heads that can be shared out, and channels.
fn check_widths(config: &ModelConfig) {
    assert!(config.blocks >= 1 && config.hidden >= 1 && config.vocab >= 1 && config.head_dim >= 1);
    assert!(config.own_widths.keys().all(|block| *block < config.blocks), "{:?}", config.own_widths);
    for block in config.own_widths.keys().copied().chain([0, config.blocks - 1]) {
        let widths = config.widths(block);
        assert!(widths.ffn >= 1 && widths.heads_per_group() >= 1, "{widths:?}");
        assert_eq!(widths.heads_per_group() * widths.kv_heads, widths.heads, "{widths:?}");
        for layer in [widths.heads, widths.kv_heads].map(|heads| heads.checked_mul(config.head_dim)) {
            assert!(layer.is_some(), "{widths:?}");
        }
    }
}

/// Does what `llm-surgeon plan` does with no more than the config.
fn plan(config: &ModelConfig) {
    let widths = Widths {
        blocks: config.blocks.into(),
        hidden: config.hidden.unsigned_abs(),
        ffn: config.ffn.unsigned_abs(),
        gated: config.family != Family::Opt,
        heads: config.heads.unsigned_abs(),
        kv_heads: config.kv_heads.unsigned_abs(),
        head_dim: config.head_dim.unsigned_abs(),
        vocabulary: config.vocab.unsigned_abs(),
        tied: config.tied,
    };
    let machines = Machines { workers: 4, memory: 80 << 30, flops: 1e14, network: 1e9 };
    for sites in [Sites::Consumers, Sites::All] {
        let request =
            Request { sites, samples: 128, seq_len: 2048, shots: 4, eval_samples: 64, dtype_bytes: 2, memory: 8 << 30 };
        let found = forecast(&widths, &request, &machines);
        assert!(found.prunable <= found.parameters);
        assert!(found.total_seconds >= 0.0);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let golden = ["llama-bias", "llama-gqa", "llama-tied-llama3", "mistral", "opt", "qwen2", "qwen3"];
    let mut all: Vec<_> = golden.iter().map(|name| example(&format!("golden/{name}/config.json"))).collect();
    let base = json!({
        "model_type": "llama", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": 32,
    });
    let variants = [
        json!({"architectures": ["LlamaForCausalLM"], "model_type": null}),
        json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}}),
        json!({"rope_scaling": {"type": "default"}, "rope_theta": 5e5, "partial_rotary_factor": 1}),
        json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 32, "max_window_layers": 1}),
        json!({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"], "head_dim": 2}),
        json!({"model_type": "mistral", "sliding_window": null, "eos_token_id": [1, 2], "bos_token_id": 0}),
        json!({"per_layer_config": {"01": {"intermediate_size": 3, "num_attention_heads": 2}, "0": {}}}),
        json!({"model_type": "opt", "ffn_dim": 16, "word_embed_proj_dim": 8, "do_layer_norm_before": true}),
        json!({"quantization_config": {"quant_method": "awq"}}),
    ];
    for variant in variants {
        let mut config = base.clone();
        for (key, value) in variant.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        all.push(config.to_string().into_bytes());
    }
    all
}
