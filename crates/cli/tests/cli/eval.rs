//! `eval`: one protocol, printed with the figure; several folders side by side.

use crate::place::Place;
use serde_json::Value;
use std::fs;

#[test]
fn folders_are_put_side_by_side_under_one_protocol() {
    let place = Place::with("llama-gqa");
    let args = ["eval", "model", "model", "--data", "text.txt", "--seq-len", "16", "--samples", "5"];
    let page = place.run(&args).done();
    assert_eq!(page.matches("× 1.000").count(), 3, "{page}"); // both perplexities, and the first speed
    assert!(page.contains("seqlen 16, 5 of"), "{page}");
    assert!(page.contains("BOS no, f32"), "{page}");
    let found: Value = serde_json::from_str(&place.run(&[&args[..], &["--json"]].concat()).done()).unwrap();
    let loss = |n: usize| found[n]["evaluation"]["loss"].as_f64().unwrap();
    assert_eq!(loss(0).to_bits(), loss(1).to_bits());
    let perplexity = found[0]["evaluation"]["perplexity"].as_f64().unwrap();
    assert!((perplexity.ln() - loss(0)).abs() < 1e-12);
    assert_eq!(found[0]["evaluation"]["segments"], 5);
}

#[test]
fn what_is_missing_or_too_little_is_refused() {
    let place = Place::with("llama-gqa");
    place.run(&["eval", "model", "--data", "gone.txt"]).refused(66, &["--data gone.txt", "no such file"]);
    place.run(&["eval", "model", "nowhere", "--data", "text.txt"]).refused(66, &["nowhere", "not a model folder"]);
    place.write("short.txt", "a few words");
    place.run(&["eval", "model", "--data", "short.txt"]).refused(66, &["11 tokens", "64 are needed"]);
    place.write("empty.txt", " \n");
    place.run(&["eval", "model", "--data", "empty.txt"]).refused(66, &["empty.txt", "no text"]);
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    place.run(&["eval", "model", "--data", "text.txt"]).refused(66, &["no tokenizer.json"]);
}
