//! The page that a run leaves in its folder, made again, and folders set side by side.

use crate::place::Place;
use serde_json::Value;
use std::fs;

const QUICK: &str = "--multiple-of 8 --shots 2 --samples 8 --seq-len 16 --eval-data text.txt --quiet";

/// Prunes to a size, into a folder named after it.
fn prune(place: &Place, size: &str) {
    let args = format!("prune model --data text.txt --target-size {size} --out out-{size} {QUICK}");
    place.run(&args.split_whitespace().collect::<Vec<_>>()).done();
}

#[test]
fn a_run_leaves_a_page_that_its_state_can_make_again() {
    let place = Place::with("llama-gqa");
    prune(&place, "0.6");
    let page = place.path("out-0.6/report.html");
    let first = fs::read_to_string(&page).unwrap();
    for wanted in ["What each size was predicted to cost", "Removed from each block", "lm_eval", "kv-group"] {
        assert!(first.contains(wanted), "{wanted:?} is not in\n{first}");
    }
    fs::remove_file(&page).unwrap();
    let said = place.run(&["report", "out-0.6.state"]).done();
    assert_eq!(fs::canonicalize(said.trim_end()).unwrap(), fs::canonicalize(&page).unwrap());
    assert_eq!(fs::read_to_string(&page).unwrap(), first);
    place.run(&["report", "out-0.6.state", "--out", "elsewhere.html"]).done();
    assert_eq!(fs::read_to_string(place.path("elsewhere.html")).unwrap(), first);
    // The folder is recognised as the run's own, with the page in it.
    prune(&place, "0.6");

    place.run(&["report", "out-0.6.state", "--run", "r-none"]).refused(64, &["has no run r-none"]);
    place.run(&["report", "model"]).refused(64, &["is no state folder"]);
    place.run(&["report", "out-0.6.state", "--out", "no/where.html"]).refused(73, &["cannot write no/where.html"]);
    fs::remove_dir_all(place.path("out-0.6")).unwrap();
    place.run(&["report", "out-0.6.state"]).refused(64, &["no output folder", "--out"]);
}

#[test]
fn folders_are_compared_and_what_is_none_is_refused() {
    let place = Place::with("llama-gqa");
    prune(&place, "0.8");
    prune(&place, "0.6");
    let page = place.run(&["compare", "out-0.8", "out-0.6"]).done();
    for wanted in ["out-0.8", "LLM Surgeon", "ratio to dense", "perplexity on data"] {
        assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
    }
    assert!(!page.contains("warning"), "{page}");
    let json = place.run(&["compare", "out-0.8", "out-0.6", "--json", "--html", "c.html"]).done();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["folders"][1]["shots"], 2);
    assert!(fs::read_to_string(place.path("c.html")).unwrap().contains("Perplexity against size"));

    let said = place.run(&["compare", "out-0.8", "model", "nowhere"]);
    said.refused(66, &["2 things are wrong", "model/pruning_report.json: there is no such report", "nowhere"]);
    place.write("out-0.6/pruning_report.json", "{\"format\": 9}");
    place.run(&["compare", "out-0.6"]).refused(66, &["has format 9", "this program reads 1"]);
}
