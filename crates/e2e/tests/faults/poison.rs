//! A model with one token whose embedding is not a number: whatever has that token has no loss.

use e2e::cluster::Cluster;
use e2e::disturbed::{Disturbed, Fate, tell_faults};
use e2e::{binary, expect, folder_digest, glassllm, journal, root};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::{Path, PathBuf};
use std::process::Command;

const EMBEDDING: &str = "model.embed_tokens.weight";
/// Bits of what half-precision numbers can be besides finite.
const NAN: u16 = 0x7e00;
const INFINITY: u16 = 0x7c00;

/// Writes glassllm with another row for one token. The head gets a sound copy of the embedding, so that only texts with that
/// token are hit.
fn poisoned(folder: &Path, token: usize, bits: u16) {
    std::fs::create_dir(folder).unwrap();
    for entry in std::fs::read_dir(glassllm()).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let config = folder.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let untied = text.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert_ne!(untied, text);
    std::fs::write(&config, untied).unwrap();
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = file.tensor(EMBEDDING).unwrap();
    assert_eq!(embedding.dtype(), Dtype::F16);
    let (shape, sound) = (embedding.shape().to_vec(), embedding.data().to_vec());
    let row = 2 * shape[1];
    let mut spoilt = sound.clone();
    spoilt[token * row..(token + 1) * row].copy_from_slice(&bits.to_le_bytes().repeat(shape[1]));
    let view = |data| TensorView::new(Dtype::F16, shape.clone(), data).unwrap();
    let mut tensors: Vec<(String, TensorView<'_>)> =
        file.tensors().into_iter().filter(|(name, _)| name != EMBEDDING).collect();
    tensors.push((EMBEDDING.to_owned(), view(&spoilt)));
    tensors.push(("lm_head.weight".to_owned(), view(&sound)));
    let written = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(&weights, written).unwrap();
}

/// Returns the id of a word in the vocabulary.
fn token(word: &str) -> usize {
    let text = std::fs::read(glassllm().join("tokenizer.json")).unwrap();
    let tokenizer: serde_json::Value = serde_json::from_slice(&text).unwrap();
    tokenizer["model"]["vocab"][word].as_u64().unwrap() as usize
}

/// Runs a poisoned model on two workers of each kind; it must fail and say all `words`, and leave nothing.
fn fails_with((word, bits): (&str, u16), held_out: &[&str], words: &[&str]) {
    let temp = tempfile::tempdir().unwrap();
    let (model, output) = (temp.path().join("model"), temp.path().join("pruned"));
    poisoned(&model, token(word), bits);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(2, 2);
    cluster.wait_for_workers(4);
    let mut submit = cluster.client("submit");
    submit.arg(&model).arg("--data").arg(root().join("testdata/text/calibration")).args(held_out);
    submit.args(["--seq-len", "128", "--samples", "24", "--multiple-of", "1", "--target-size", "0.8", "--shots", "2"]);
    submit.args(["--memory", "16MiB"]).arg("--out").arg(&output);
    let mut run = Disturbed::follow(cluster, submit, &folder, &output);
    let ended = run.finish();
    assert_eq!(ended.code(), Some(1), "{}", run.said());
    for part in words {
        assert!(run.said().contains(part), "'{part}' is not said: {}", run.said());
    }
    let listed = run.cluster.ask("list", &["--json"]);
    assert!(listed.contains("\"failed\"") && listed.contains("\"NUMERICAL\""), "{listed}");
    let mut left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["cluster", "model"], "something half-written is left");
    let said = run.said();
    tell_faults(1, Fate::Told, &format!("text whose loss is not finite ({})", said.lines().last().unwrap_or_default()));
}

#[test]
fn a_token_without_a_number_fails_the_run_and_the_samples_that_have_it_are_named() {
    fails_with(("7", NAN), &[], &["calibrate failed", "not finite", "samples ["]);
}

#[test]
fn so_does_one_that_is_infinite() {
    fails_with(("7", INFINITY), &[], &["calibrate failed", "not finite", "samples ["]);
}

#[test]
fn in_the_held_out_text_the_segment_is_named() {
    let held_out = root().join("testdata/text/heldout").display().to_string();
    let flags = ["--eval-data", &held_out, "--eval-samples", "8"];
    fails_with(("▁the", NAN), &flags, &["evaluate failed", "not finite", "segment"]);
}

/// Asks for a run in which every sample is a shard of its own, and half of a shot's samples may be left out.
fn leave_out(command: &mut Command, model: &Path, output: &Path) {
    command.arg(model).arg("--data").arg(root().join("testdata/text/calibration"));
    command.args(["--seq-len", "128", "--samples", "24", "--multiple-of", "1", "--target-size", "0.8", "--shots", "2"]);
    command.args(["--shards", "24", "--max-poison-fraction", "0.5", "--decay", "1"]).arg("--out").arg(output);
}

#[test]
fn a_run_that_may_do_without_them_ends_in_the_same_bytes_on_any_workers_and_says_what_it_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let (model, output) = (temp.path().join("model"), temp.path().join("pruned"));
    poisoned(&model, token("7"), NAN);
    let mut prune = Command::new(binary());
    leave_out(prune.arg("prune"), &model, &output);
    expect(prune.args(["--device", "cpu", "--threads", "1"]), 0);
    let digest = folder_digest(&output);
    let report = std::fs::read_to_string(output.join("pruning_report.json")).unwrap();
    assert!(report.contains("calibration samples were left out"), "{report}");
    std::fs::remove_dir_all(&output).unwrap();

    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(2, 2);
    cluster.wait_for_workers(4);
    let mut submit = cluster.client("submit");
    leave_out(&mut submit, &model, &output);
    let mut run = Disturbed::follow(cluster, submit, &folder, &output);
    // Once in the first sweep, once later.
    let mut kills = 0;
    while kills < 2 && run.more_records(20) {
        run.cluster.kill("coordinator");
        run.cluster.start_one("coordinator");
        kills += 1;
    }
    run.ends_as(&digest, "samples that are not finite, and a coordinator that was killed");
    let records = journal(&run.cluster.store());
    let says = |record: &&PathBuf| std::fs::read_to_string(record).unwrap().contains("shard-quarantined");
    let quarantined = records.iter().filter(says).count();
    assert!(quarantined > 0, "nothing was left out");
    tell_faults(
        quarantined as u64 + kills,
        Fate::Survived,
        "shards that are not finite, and SIGKILL of their coordinator",
    );
}
