//! The low-rank correction through the real binary: it helps where it says so, removed stays removed, and the written
//! folder is the corrected model.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::{expect, folder_digest, prune};
use serde_json::Value;
use std::path::Path;

fn corrected(output: &Path, options: &[&str]) -> Value {
    let common = ["--correct-rank", "4", "--correct-steps", "6", "--json"];
    let run = expect(prune(output).args(common).args(options), 0);
    serde_json::from_str(String::from_utf8(run.stdout).unwrap().lines().last().unwrap()).unwrap()
}

#[test]
fn every_structure_can_be_corrected_and_the_folder_holds_what_was_measured() {
    let temp = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str]); 5] = [
        ("uniform", &[]),
        ("per-layer", &["--shape", "per-layer", "--decay", "0.5"]),
        ("query-heads", &["--heads", "query-head", "--shape", "per-layer"]),
        ("row-column", &["--structure", "row-column"]),
        ("element", &["--structure", "element"]),
    ];
    for (name, options) in cases {
        let output = temp.path().join(name);
        let said = corrected(&output, options);
        for shot in said["shots"].as_array().unwrap() {
            let correction = &shot["correction"];
            let loss = |when: &str| correction[format!("loss_{when}")].as_f64().unwrap();
            assert!(loss("after") < loss("before"), "{name}: {correction}");
        }
        let left = said["after"]["prunable"].as_f64().unwrap() / said["before"]["prunable"].as_f64().unwrap();
        assert!(left <= 0.8 && left > 0.77, "{name}: {left}");
        let again = e2e::perplexity(&output);
        let found = said["evaluation_after"]["perplexity"].as_f64().unwrap();
        assert!((again / found - 1.0).abs() < 1e-4, "{name}: summary {found}, eval {again}");
    }
}

#[test]
fn the_same_correction_gives_the_same_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let digests = [(); 2].map(|()| {
        corrected(&output, &["--decay", "1"]);
        let digest = folder_digest(&output);
        std::fs::remove_dir_all(&output).unwrap();
        std::fs::remove_dir_all(temp.path().join("pruned.state")).unwrap();
        digest
    });
    assert_eq!(digests[0], digests[1]);
}
