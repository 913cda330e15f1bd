//! Kill the real process at any moment, type the same command again: the same folder, byte for byte.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::disturbed::{Fate, tell_faults};
use e2e::{expect, folder_digest, journal, prune};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn state_of(output: &Path) -> std::path::PathBuf {
    let name = output.file_name().unwrap().to_string_lossy().into_owned();
    output.with_file_name(format!("{name}.state"))
}

/// Waits until the run's journal has `records` records; false when the process ended before.
fn reached(child: &mut Child, state: &Path, records: usize) -> bool {
    let deadline = Instant::now() + Duration::from_mins(2);
    while journal(state).len() < records {
        if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn a_run_killed_after_every_journal_record_ends_in_the_same_folder() {
    killed_after_every_record(&[]);
}

#[test]
fn so_does_one_of_several_passes() {
    let two_terms = ["--kronecker-rank", "2", "--half-steps", "2", "--scoring", "independent", "--shots", "1"];
    killed_after_every_record(&two_terms);
}

#[test]
fn and_one_of_several_rounds() {
    killed_after_every_record(&["--structure", "element", "--rounds", "3", "--shots", "1"]);
}

fn killed_after_every_record(options: &[&str]) {
    let prune = |output: &Path| {
        let mut prune = e2e::prune_to(output);
        prune.args(["--target-size", "0.8", "--eval-samples", "8", "--eval-data"]);
        prune.arg(e2e::root().join("testdata/text/heldout"));
        if options.is_empty() {
            prune.args(["--shots", "2"])
        } else {
            prune.args(options)
        };
        prune
    };
    let temp = tempfile::tempdir().unwrap();
    // The output's name is part of the spec and so of the report: every run writes to the same name, elsewhere.
    let output = temp.path().join("pruned");
    expect(&mut prune(&output), 0);
    let state = state_of(&output);
    let undisturbed = folder_digest(&output);
    let total = journal(&state).len();
    assert!(total > 20, "the journal has only {total} records");

    std::fs::remove_dir_all(&output).unwrap();
    std::fs::remove_dir_all(&state).unwrap();
    let mut kills = 0;
    let mut records = 1;
    loop {
        // One process after the other, each killed as soon as it has made one more record durable.
        let mut child = prune(&output).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let alive = reached(&mut child, &state, records);
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let now = journal(&state).len();
        if !alive || now >= 4 * total {
            break;
        }
        kills += 1;
        // Each start adds a record of its own, so the next kill is one beyond what the next start will have.
        records = now + 2;
        if output.exists() {
            break;
        }
    }
    assert!(kills >= total / 2, "only {kills} kills for a journal of {total} records");
    expect(&mut prune(&output), 0);
    assert_eq!(folder_digest(&output), undisturbed, "after {kills} kills");
    tell_faults(kills as u64, Fate::Survived, "SIGKILL of `prune` after a record of the journal");
    let left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "nothing half-written is left beside the folder and its state: {left:?}");
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_does() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let state = state_of(&output);
    let mut child = prune(&output).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(reached(&mut child, &state, 5), "the run did not get under way");
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("same command"), "{said}");
    assert!(!output.exists());
    expect(&mut prune(&output), 0);
    assert!(output.join("model.safetensors").is_file());
}
