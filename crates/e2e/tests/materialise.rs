//! Other sizes from kept paths, through the real binary: what a run straight to the size gives, bit for bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::{binary, expect, folder_digest, prune_to, summary};
use std::path::Path;
use std::process::Command;

fn materialise(state: &Path, size: &str, output: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("materialise").arg(state).args(["--target-size", size, "--out"]).arg(output);
    command.args(["--device", "cpu", "--threads", "1"]).env("RUST_BACKTRACE", "0");
    command
}

/// Returns the digest of the tensors of a folder: its report names the run, which differs.
fn tensors(folder: &Path) -> String {
    let _ = std::fs::remove_file(folder.join("pruning_report.json"));
    folder_digest(folder)
}

fn text() -> String {
    e2e::root().join("testdata/text/heldout").display().to_string()
}

#[test]
fn one_shot_s_paths_give_every_size_that_a_run_of_its_own_gives() {
    let temp = tempfile::tempdir().unwrap();
    let text = text();
    let cases: [(&str, &[&str]); 4] = [
        ("uniform", &["--eval-data", &text, "--eval-samples", "8"]),
        ("per-layer", &["--shape", "per-layer", "--correct-rank", "2", "--correct-steps", "2"]),
        ("row-column", &["--structure", "row-column"]),
        ("element", &["--structure", "element"]),
    ];
    for (name, options) in cases {
        let at = |what: &str| temp.path().join(format!("{name}-{what}"));
        let kept = ["--shots", "1", "--target-size", "0.7", "--keep-paths"];
        summary(prune_to(&at("kept")).args(kept).args(options));
        let order = walk(&temp.path().join(format!("{name}-kept.state")), "removal_order.jsonl");
        assert_eq!(order.is_some(), name != "element", "{name}");
        for size in ["0.8", "0.6"] {
            let said = summary(&mut materialise(&at("kept.state"), size, &at(size)));
            summary(prune_to(&at("own")).args(["--shots", "1", "--target-size", size]).args(options));
            let left = said["after"]["prunable"].as_f64().unwrap() / said["before"]["prunable"].as_f64().unwrap();
            assert!(left <= size.parse().unwrap(), "{name} {size}: {left}");
            assert_eq!(said["evaluation_after"].is_object(), name == "uniform", "{name} {size}");
            assert_eq!(tensors(&at(size)), tensors(&at("own")), "{name} {size}");
            std::fs::remove_dir_all(at("own")).unwrap();
            std::fs::remove_dir_all(at("own.state")).unwrap();
        }
    }
}

/// Returns the first line of a file of this name below a folder.
fn walk(folder: &Path, name: &str) -> Option<String> {
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for path in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_some_and(|n| n == name) {
                return std::fs::read_to_string(path).unwrap().lines().next().map(str::to_owned);
            }
        }
    }
    None
}

#[test]
fn sizes_between_the_shots_begin_with_the_shots_above_them() {
    let temp = tempfile::tempdir().unwrap();
    let kept = temp.path().join("kept");
    let state = temp.path().join("kept.state");
    let text = text();
    let options = ["--shots", "3", "--decay", "0.5", "--target-size", "0.7", "--keep-paths"];
    let all = summary(prune_to(&kept).args(options).args(["--eval-data", &text, "--eval-samples", "8"]));
    // 0.9 is the first shot's own size, 0.85 lies in the second.
    for (size, shots) in [("0.9", 1), ("0.85", 2), ("0.65", 3)] {
        let output = temp.path().join(size);
        let said = summary(&mut materialise(&state, size, &output));
        let of_shots = said["shots"].as_array().unwrap();
        assert_eq!(of_shots.len(), shots, "{size}");
        for (own, first) in of_shots.iter().zip(all["shots"].as_array().unwrap()).take(shots - 1) {
            assert_eq!(own, first, "{size}");
        }
        let (found, again) = (&said["evaluation_after"]["perplexity"], e2e::perplexity(&output));
        assert!((again / found.as_f64().unwrap() - 1.0).abs() < 1e-4, "{size}: summary {found}, eval {again}");
        let again = expect(&mut materialise(&state, size, &output), 0); // finished before: nothing is written anew
        assert!(String::from_utf8(again.stderr).unwrap().contains("was finished before"));
    }
    // By another figure than the run's: 750,000 parameters lie in the second shot.
    let output = temp.path().join("parameters");
    let mut command = Command::new(binary());
    command.arg("materialise").arg(&state).args(["--target-params", "750000", "--out"]).arg(&output);
    let said = summary(command.args(["--device", "cpu", "--threads", "1"]));
    assert_eq!(said["shots"].as_array().unwrap().len(), 2);
    let parameters = said["after"]["parameters"].as_u64().unwrap();
    assert!(parameters <= 750_000 && parameters > 700_000, "{parameters}");
    let output = temp.path().join("other");
    let said = expect(&mut materialise(&state, "1.0", &output), 66);
    assert!(String::from_utf8(said.stderr).unwrap().contains("nothing has to go"));
    let plain = temp.path().join("plain");
    summary(prune_to(&plain).args(["--shots", "1", "--target-size", "0.9"]));
    let said = expect(&mut materialise(&temp.path().join("plain.state"), "0.8", &output), 64);
    assert!(String::from_utf8(said.stderr).unwrap().contains("--keep-paths"));
    let said = expect(&mut materialise(temp.path(), "0.8", &output), 64);
    assert!(String::from_utf8(said.stderr).unwrap().contains("no state folder"));
}

#[test]
fn rounds_and_passes_of_a_later_shot_are_done_again_from_kept_factors() {
    let temp = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str]); 2] =
        [("rounds", &["--structure", "element", "--decay", "1"]), ("passes", &["--half-steps", "2"])];
    for (name, options) in cases {
        let kept = temp.path().join(name);
        let state = temp.path().join(format!("{name}.state"));
        let both = ["--shots", "2", "--target-size", "0.7", "--keep-paths"];
        summary(prune_to(&kept).args(both).args(options));
        // As far as the run itself went, its own weights; between its shots, others.
        let same = temp.path().join(format!("{name}-same"));
        summary(&mut materialise(&state, "0.7", &same));
        assert_eq!(tensors(&same), tensors(&kept), "{name}");
        let between = temp.path().join(format!("{name}-between"));
        let said = summary(&mut materialise(&state, "0.8", &between));
        assert_eq!(said["shots"].as_array().unwrap().len(), 2, "{name}");
    }
}
