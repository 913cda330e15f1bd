//! `inspect`: figures that can be counted by hand.

use crate::place::Place;
use serde_json::Value;

#[test]
fn sizes_units_and_what_a_target_leaves_are_shown() {
    let place = Place::with("llama-gqa");
    let page = place.run(&["inspect", "model", "--target-size", "0.7", "--multiple-of", "8"]).done();
    for wanted in [
        "family      llama",
        "4 query, 2 key/value, 6 wide",
        // 2 blocks of 3 × 24 × 32 and 2 × 24 × 24 + 2 × 12 × 24 weights; 2 × 96 × 24 in embedding and head; 5 norms.
        "now                  8,064          12,792",
        "Blocks 0 to 1, each",
        "mlp.down_proj       24       32      768",
        "ffn-channel       32              8            72         288",
        "at most 5,644 prunable weights (70.0 %)",
        "1         24     5,184  64.3 %",
    ] {
        assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
    }
}

#[test]
fn json_has_the_description_and_the_choices() {
    let place = Place::with("llama-gqa");
    let args = ["inspect", "model", "--json", "--target-size", "0.7", "--multiple-of", "8", "--heads", "query-head"];
    let found: Value = serde_json::from_str(&place.run(&args).done()).unwrap();
    assert_eq!(found["dense"]["prunable"], 8064);
    assert_eq!(found["blocks"][0]["groups"][0]["kind"], "query-head");
    for choice in found["left"]["uniform"].as_array().unwrap() {
        assert!(choice["sizes"]["prunable"].as_u64().unwrap() <= 5644, "{choice}");
        assert_eq!(choice["ffn"].as_u64().unwrap() % 8, 0);
    }
    // A query head of each of 2 groups: 2 × (6 × 24 q rows + 24 × 6 o columns) a block.
    assert_eq!(found["left"]["uniform"].as_array().unwrap().len(), 2);
}

#[test]
fn every_family_is_shown() {
    for family in ["llama-gqa", "mistral", "qwen2", "qwen3", "opt"] {
        let place = Place::with(family);
        let page = place.run(&["inspect", "model", "--structure", "row-column"]).done();
        assert!(page.contains("every row and every column"), "{page}");
        let name = family.split('-').next().unwrap();
        assert!(page.contains(&format!("family      {name}")), "{page}");
    }
}

#[test]
fn targets_are_refused_as_prune_refuses_them() {
    let place = Place::with("llama-gqa");
    place.run(&["inspect", "model", "--target-size", "1.5"]).refused(64, &["1.5", "outside (0, 1]"]);
    place.run(&["inspect", "model", "--target-size", "0.1"]).refused(64, &["--target-size 0.1", "at least"]);
    let pattern = ["inspect", "model", "--structure", "2:4", "--target-size", "0.3"];
    place.run(&pattern).refused(64, &["--target-size 0.3", "2:4 leaves, 0.5"]);
    let page = place.run(&["inspect", "model", "--structure", "2:4", "--json"]).done();
    let found: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!(found["left"]["target"]["size"].as_f64(), Some(0.5), "{page}");
    place.run(&["inspect", "nowhere"]).refused(66, &["nowhere", "not a model folder"]);
}
