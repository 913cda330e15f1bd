//! The low-rank correction through the real binary: it helps where it says so, removed stays removed, and the written
//! folder is the corrected model.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::{prune, summary};

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
        let said = summary(prune(&output).args(["--correct-rank", "4", "--correct-steps", "6"]).args(options));
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
