//! What `prune` refuses before it starts anything, and what it prints when it is done.

use crate::place::Place;
use serde_json::{Value, json};
use std::fs;

const SIZE: [&str; 2] = ["--target-size", "0.8"];
/// Enough for a run of a second.
const QUICK: [&str; 11] =
    ["--target-size", "0.6", "--multiple-of", "8", "--shots", "1", "--samples", "8", "--seq-len", "16", "--eval-data"];

#[test]
fn what_is_no_model_folder_is_named_with_what_is_expected() {
    let place = Place::with("llama-gqa");
    fs::remove_file(place.path("model/config.json")).unwrap();
    place.prune(&SIZE).refused(66, &["model", "not a model folder", "config.json"]);
    let said = place.run(&["prune", "nowhere", "--data", "text.txt", "--out", "out", "--target-size", "0.8"]);
    said.refused(66, &["nowhere", "not a model folder"]);
    place.untouched();
}

#[test]
fn damaged_tensors_are_found_before_anything_starts() {
    let place = Place::with("llama-gqa");
    let file = place.path("model/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    place.prune(&SIZE).refused(66, &["model.safetensors", "damaged or incomplete", "fetch it again"]);
    let mut lying = bytes.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&file, &lying).unwrap();
    place.prune(&SIZE).refused(66, &["model.safetensors", "fetch it again"]);
    fs::write(&file, &bytes).unwrap();
    place.configure(&[("intermediate_size", json!(40))]);
    place.prune(&SIZE).refused(66, &["mlp.gate_proj.weight", "[32, 24]", "[40, 24]"]);
    place.configure(&[("intermediate_size", json!(32)), ("num_hidden_layers", json!(3))]);
    place.prune(&SIZE).refused(66, &["model.layers.2.", "missing"]);
    place.untouched();
}

#[test]
fn models_of_a_kind_that_is_not_supported_are_refused_with_64() {
    let place = Place::with("llama-gqa");
    place.configure(&[("quantization_config", json!({"quant_method": "gptq"}))]);
    place.prune(&SIZE).refused(64, &["config.json", "quantised", "gptq"]);
    place.configure(&[
        ("quantization_config", Value::Null),
        ("model_type", json!("mamba")),
        ("architectures", json!(["MambaForCausalLM"])),
    ]);
    place.prune(&SIZE).refused(64, &["config.json", "mamba", "llama"]);
    place.untouched();
}

#[test]
fn what_only_workers_reach_is_refused_and_leaves_nothing() {
    let place = Place::with("llama-gqa");
    let said = place.run(&["prune", "s3://b/m", "--data", "artifact:1", "--out", "s3://b/out", "--target-size", "0.8"]);
    said.refused(64, &["MODEL 's3://b/m'", "--data 'artifact:1'", "--out 's3://b/out'", "llm-surgeon submit"]);
    place.untouched();
}

#[test]
fn all_missing_inputs_are_told_at_once() {
    let place = Place::with("llama-gqa");
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    let said = place.prune(&["--data", "none/*.jsonl", "--eval-data", "gone.txt", "--target-size", "0.1"]);
    let parts = [
        "4 things are wrong",
        "--data",
        "none/*.jsonl",
        "--eval-data",
        "gone.txt",
        "no tokenizer.json",
        "--target-size 0.1",
    ];
    said.refused(66, &parts);
    place.untouched();
}

#[test]
fn targets_out_of_range_say_what_can_remain() {
    let place = Place::with("llama-gqa");
    for bad in ["0", "1.5", "-0.5", "NaN"] {
        place.prune(&[&format!("--target-size={bad}")]).refused(64, &[bad, "outside (0, 1]"]);
    }
    // 1 of 2 kv groups and 8 of 32 channels are 2880 of 8064 weights.
    let said = place.prune(&["--target-size", "0.3", "--multiple-of", "8"]);
    said.refused(64, &["--target-size 0.3", "at least 0.357", "--multiple-of"]);
    place.prune(&["--target-params", "1K"]).refused(64, &["--target-params 1000", "of 12,792", "embeddings and norms"]);
    place.prune(&["--target-bytes", "1KiB"]).refused(64, &["--target-bytes 1024", "of 50.0 KiB"]);
    let said = place.prune(&["--target-params", "1M", "--structure", "row-column"]);
    said.refused(64, &["row-column", "give a target size"]);
    let said = place.prune(&["--target-size", "0.8", "--structure", "row-column", "--shape", "uniform"]);
    said.refused(64, &["--shape", "no uniform shape"]);
    place.untouched();
}

#[test]
fn what_no_runtime_would_load_is_refused_with_what_works() {
    let prune = |place: &Place, more: &[&str]| place.prune(&[&SIZE, more].concat());
    let place = Place::with("opt");
    prune(&place, &["--format", "gguf"]).refused(64, &["--format gguf", "no OPT", "take --format hf"]);
    let place = Place::with("qwen3");
    prune(&place, &["--format", "both", "--shape", "per-layer"]).refused(64, &["norms of queries", "--shape uniform"]);
    let place = Place::with("llama-gqa");
    let adaptive = ["--shape", "auto", "--schedule", "adaptive", "--eval-data", "text.txt"];
    prune(&place, &adaptive).refused(64, &["--shape: auto", "take uniform"]);
    place.untouched();
}

#[test]
fn numbers_out_of_range_are_told_at_once_by_their_flags() {
    let place = Place::with("llama-gqa");
    let said = place.prune(&["--target-size", "0.8", "--shots", "0", "--damping", "0.1,99", "--seq-len", "1"]);
    said.refused(64, &["--shots: 0", "--damping: 99", "--seq-len: 1"]);
    let place = Place::with("opt");
    place
        .prune(&["--target-size", "0.8", "--seq-len", "100"])
        .refused(64, &["--seq-len", "100", "64 learned positions"]);
    place.untouched();
}

#[test]
fn an_output_that_exists_is_left_alone() {
    let place = Place::with("llama-gqa");
    fs::create_dir(place.path("out")).unwrap();
    place.write("out/mine.txt", "precious");
    place.prune(&SIZE).refused(73, &["--out", "exists already", "name another folder"]);
    fs::create_dir(place.path("out.state")).unwrap();
    place.prune(&SIZE).refused(73, &["--out", "exists already"]);
    assert_eq!(fs::read_to_string(place.path("out/mine.txt")).unwrap(), "precious");
}

#[test]
fn an_output_that_cannot_be_created_is_refused_with_73() {
    let place = Place::with("llama-gqa");
    let prune = |out: &str, more: &[&str]| {
        place.run(&[&["prune", "model", "--data", "text.txt", "--target-size", "0.8", "--out", out], more].concat())
    };
    prune("text.txt/out", &[]).refused(73, &["--out", "text.txt/out", "cannot write in"]);
    prune("out", &["--state", "text.txt/state"]).refused(73, &["--state", "text.txt/state", "cannot write in"]);
    place.untouched();
}

#[test]
fn data_that_is_no_text_fails_the_run_with_66() {
    let place = Place::with("llama-gqa");
    fs::write(place.path("text.txt"), [0_u8, 159, 146, 150, 0]).unwrap();
    let said = place.prune(&SIZE);
    said.refused(66, &["INPUT_INVALID", "text.txt"]);
    place.write("text.txt", "too short");
    place.prune(&SIZE).refused(66, &["INPUT_INVALID", "tokens"]);
    assert!(!place.path("out").exists());
}

#[test]
fn a_finished_run_shows_its_summary_and_so_does_the_same_command_again() {
    let place = Place::with("llama-gqa");
    let args = [&QUICK[..], &["text.txt"]].concat();
    let first = place.prune(&args);
    assert!(first.stderr.contains("shot 1/1: cut chosen"), "{}", first.stderr);
    let page = first.done();
    for wanted in
        ["Pruned a llama model", "held-out perplexity", "tokens per second", "calibrate", "lm_eval --model hf"]
    {
        assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
    }
    assert!(page.contains("held-out documents are also calibration data"), "{page}");
    let again = place.prune(&args);
    assert!(again.stderr.contains("was finished before"), "{}", again.stderr);
    let steady = |page: &str| page.lines().filter(|l| !l.contains(" in ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(steady(&again.done()), steady(&page));

    let out = place.path("out");
    let quiet = place.prune(&[&args[..], &["--quiet"]].concat());
    assert_eq!(quiet.stderr, "");
    assert_eq!(fs::canonicalize(quiet.done().trim_end()).unwrap(), fs::canonicalize(&out).unwrap());

    fs::remove_dir_all(&out).unwrap();
    place.prune(&args).refused(73, &["was finished", "is gone", "--state"]);
}

#[test]
fn json_is_the_journal_and_then_the_summary() {
    let place = Place::with("llama-gqa");
    let out = place.prune(&[&QUICK[..], &["text.txt", "--json", "--quiet"]].concat());
    assert_eq!(out.stderr, "");
    let lines: Vec<Value> = out.done().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(&events[..3], ["created", "taken-over", "prepared"]);
    assert_eq!(&events[events.len() - 3..], ["materialised", "succeeded", "summary"]);
    let numbers: Vec<u64> = lines.iter().filter_map(|line| line["sequence"].as_u64()).collect();
    assert_eq!(numbers, (1..lines.len() as u64).collect::<Vec<_>>());
    let summary = &lines[lines.len() - 1];
    assert_eq!(summary["before"]["prunable"], 8064);
    assert!(summary["after"]["prunable"].as_u64().unwrap() <= 8064 * 6 / 10);
    assert!(summary["evaluation_after"]["perplexity"].as_f64().unwrap() > 1.0);
}

#[test]
fn a_signal_pauses_the_run_and_the_same_command_resumes_it() {
    let place = Place::with("llama-gqa");
    let args = "prune model --data text.txt --out out --target-size 0.6 --multiple-of 8 --shots 12 --samples 64 --seq-len 16 \
                --memory 1MiB";
    let args: Vec<&str> = args.split_whitespace().collect();
    for (signal, code, name) in [("INT", 130, "stopped by Ctrl-C"), ("TERM", 143, "stopped by SIGTERM")] {
        let said = place.interrupt(&args, "swept", signal);
        said.refused(code, &[name, "is paused", "of 12 shots are committed", "the same command resumes it"]);
        assert!(!said.stderr.contains("WARN"), "{}", said.stderr);
        assert!(!place.path("out").exists());
    }
    let said = place.run(&args);
    assert!(said.stderr.contains("resuming run r-"), "{}", said.stderr);
    assert!(said.done().contains("Pruned a llama model"));
    assert!(place.path("out/config.json").exists());
}
