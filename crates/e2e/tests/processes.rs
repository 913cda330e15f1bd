//! The three services as processes of their own: what one process gives, they give to the bit; any of them may be killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::cluster::{Cluster, until};
use e2e::disturbed::{Fate, tell_faults};
use e2e::{expect, folder_digest, journal, prune_to, root};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One process, with the flags of [`Cluster::submit`].
fn in_one_process(output: &Path, flags: &[&str]) -> String {
    let mut prune = prune_to(output);
    prune.arg("--eval-data").arg(root().join("testdata/text/heldout")).args(["--eval-samples", "8"]);
    expect(prune.args(flags), 0);
    let digest = folder_digest(output);
    std::fs::remove_dir_all(output).unwrap();
    digest
}

/// Runs on so many workers and returns the digest.
fn on_workers(temp: &Path, (calibrators, surgeons): (usize, usize), output: &Path, flags: &[&str]) -> String {
    let folder = temp.join(format!("c{calibrators}s{surgeons}"));
    let mut cluster = Cluster::new(&folder);
    cluster.start(calibrators, surgeons);
    cluster.wait_for_workers(calibrators + surgeons);
    expect(cluster.submit(output).arg("--follow").args(flags), 0);
    let digest = folder_digest(output);
    std::fs::remove_dir_all(output).unwrap();
    digest
}

/// Little memory, so that a sweep comes in several shards.
const SHARDED: [&str; 6] = ["--target-size", "0.8", "--shots", "2", "--memory", "16MiB"];

#[test]
fn any_number_of_processes_gives_the_bits_of_one() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = in_one_process(&output, &SHARDED);
    for calibrators in [1, 2, 4] {
        for surgeons in [1, 2, 3] {
            let layout = (calibrators, surgeons);
            assert_eq!(on_workers(temp.path(), layout, &output, &SHARDED), alone, "{layout:?}");
        }
    }
}

#[test]
fn calibrators_and_surgeons_in_one_process_give_the_same_bits_though_one_of_two_is_killed() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = in_one_process(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder).with_variables(&[("LLM_SURGEON_LOG", "info,surgeon=debug")]);
    for service in ["coordinator", "worker-0", "worker-1"] {
        cluster.start_one(service);
    }
    cluster.wait_for_workers(4);
    let mut run = Disturbed::of(cluster, &folder, &output);
    for _ in 0..4 {
        assert!(run.more_records(2), "it ended too early to be disturbed");
    }
    run.cluster.kill("worker-1");
    assert!(run.follower.wait().unwrap().success());
    assert_eq!(folder_digest(&output), alone);
    tell_faults(1, Fate::Survived, "SIGKILL of one of two that are calibrator and surgeon");
    let said = run.cluster.said("worker-0");
    assert!(said.contains("factors taken from the calibrator of this process"), "{said}");
    assert_eq!(run.cluster.terminate("worker-0"), Some(0), "{}", run.cluster.said("worker-0"));
}

#[test]
fn blocks_that_wait_in_files_give_the_same_bits_and_leave_none() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = in_one_process(&output, &SHARDED);
    let spill = temp.path().join("spill");
    let variables = [("CALIBRATOR_SPILL", spill.display().to_string())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut cluster = Cluster::new(&temp.path().join("cluster")).with_variables(&variables);
    cluster.start_one("coordinator");
    cluster.start_one("calibrator-0");
    cluster.wait_for_workers(1);
    let mut submit = cluster.submit(&output);
    let mut follower = submit.arg("--follow").args(SHARDED).stdout(Stdio::null()).spawn().unwrap();
    // Without a surgeon the first sweep puts two blocks into memory, the others into files.
    let files = || std::fs::read_dir(&spill).map_or(0, Iterator::count);
    assert!(until(|| (files() > 0).then_some(())).is_some(), "{}", cluster.said("calibrator-0"));
    cluster.start_one("surgeon-0");
    assert!(follower.wait().unwrap().success());
    assert_eq!(folder_digest(&output), alone);
    assert_eq!(files(), 0);
}

#[test]
fn so_it_is_for_single_weights_whose_threshold_is_counted_on_all_surgeons() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let flags = ["--target-size", "0.6", "--structure", "element", "--shots", "1", "--memory", "16MiB"];
    let alone = in_one_process(&output, &flags);
    assert_eq!(on_workers(temp.path(), (2, 2), &output, &flags), alone);
}

#[test]
fn weights_that_are_streamed_give_the_bits_of_weights_in_memory() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = in_one_process(&output, &SHARDED);
    std::fs::remove_dir_all(temp.path().join("pruned.state")).unwrap(); // or the second is the first one's result
    let streamed = [&SHARDED[..], &["--weights", "stream"]].concat();
    assert_eq!(in_one_process(&output, &streamed), alone);
}

/// A run that is followed while services are killed.
struct Disturbed {
    cluster: Cluster,
    follower: Child,
    store: PathBuf,
    /// Where the follower's words are.
    said: PathBuf,
}

impl Disturbed {
    fn start(folder: &Path, output: &Path) -> Self {
        let mut cluster = Cluster::new(folder);
        cluster.start(1, 1);
        cluster.wait_for_workers(2);
        Self::of(cluster, folder, output)
    }

    /// Follows a run on a cluster that is up.
    fn of(cluster: Cluster, folder: &Path, output: &Path) -> Self {
        let mut submit = cluster.submit(output);
        let said = folder.join("follower");
        let log = std::fs::File::create(&said).unwrap();
        submit.arg("--follow").args(SHARDED).stdout(Stdio::null()).stderr(log);
        let (follower, store) = (submit.spawn().unwrap(), cluster.store());
        Self { cluster, follower, store, said }
    }

    fn records(&self) -> usize {
        journal(&self.store).len()
    }

    /// Waits for so many more records; false if the run ends before.
    fn more_records(&mut self, more: usize) -> bool {
        let wanted = self.records() + more;
        let moved = until(|| {
            let ended = self.follower.try_wait().unwrap().is_some();
            (ended || self.records() >= wanted).then_some(ended)
        });
        !moved.unwrap_or_else(|| panic!("the run stands still"))
    }
}

/// Kills a service after every record that is written, starts it again, and returns how often.
fn killed_after_every_record(service: &str) {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let undisturbed = in_one_process(&output, &SHARDED);
    let mut run = Disturbed::start(&temp.path().join("cluster"), &output);
    let mut kills = 0;
    // A coordinator that takes a run over adds two records of its own: that it has, and that the model is as it was.
    let more = if service == "coordinator" { 3 } else { 1 };
    while run.more_records(more) {
        run.cluster.kill(service);
        run.cluster.start_one(service);
        kills += 1;
        assert!(kills < 400, "the run does not get on");
    }
    let ended = run.follower.wait().unwrap();
    let said = std::fs::read_to_string(&run.said).unwrap();
    assert!(ended.success(), "the follower ended with {ended:?} after {kills} kills of the {service}: {said}");
    assert_eq!(folder_digest(&output), undisturbed, "after {kills} kills of the {service}");
    assert!(kills >= 10, "only {kills} kills");
    tell_faults(kills, Fate::Survived, &format!("SIGKILL of {service} after a record of the journal"));
}

#[test]
fn a_coordinator_killed_after_every_record_changes_nothing() {
    killed_after_every_record("coordinator");
}

#[test]
fn nor_does_a_calibrator() {
    killed_after_every_record("calibrator-0");
}

#[test]
fn nor_does_a_surgeon() {
    killed_after_every_record("surgeon-0");
}

#[test]
fn services_stop_within_their_bound_and_a_run_goes_on_with_who_comes_next() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let undisturbed = in_one_process(&output, &SHARDED);
    let mut run = Disturbed::start(&temp.path().join("cluster"), &output);
    assert!(run.more_records(1));
    for service in ["surgeon-0", "calibrator-0", "coordinator"] {
        assert_eq!(run.cluster.terminate(service), Some(0), "{service}: {}", run.cluster.said(service));
    }
    for service in ["coordinator", "calibrator-1", "surgeon-1"] {
        run.cluster.start_one(service);
    }
    assert!(run.follower.wait().unwrap().success());
    assert_eq!(folder_digest(&output), undisturbed);
}

#[test]
fn of_two_coordinators_on_one_store_the_older_one_stops_and_nothing_is_lost() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let undisturbed = in_one_process(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut run = Disturbed::start(&folder, &output);
    for _ in 0..3 {
        run.more_records(3);
    }
    let store = run.store.display().to_string();
    let mut second = Cluster::new(&temp.path().join("second")).with_store(&store, &[]);
    second.start(1, 1);
    assert_eq!(run.cluster.ended("coordinator"), Some(75), "{}", run.cluster.said("coordinator"));
    let run_name = serde_json::from_str::<serde_json::Value>(&second.ask("list", &["--json"])).unwrap();
    expect(second.client("watch").arg(run_name["run"].as_str().unwrap()).arg("--quiet"), 0);
    assert_eq!(folder_digest(&output), undisturbed);
    tell_faults(1, Fate::Survived, "a second coordinator on the folder of a first");
    let _ = run.follower.kill(); // it waits for the coordinator that has gone
    let _ = run.follower.wait();
}

fn submitted(submit: &mut Command) -> String {
    String::from_utf8_lossy(&expect(submit, 0).stdout).trim().to_owned()
}

#[test]
fn runs_are_queued_paused_resumed_cancelled_and_deleted() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(&temp.path().join("cluster"));
    cluster.start_one("coordinator"); // no workers: nothing can end meanwhile
    let first = until(|| {
        let mut submit = cluster.submit(&temp.path().join("a"));
        let done = submit.args(SHARDED).output().unwrap();
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
    });
    let first = first.unwrap();
    let again = submitted(cluster.submit(&temp.path().join("a")).args(SHARDED));
    assert_eq!(again, first, "the same command finds the same run");
    let second = submitted(cluster.submit(&temp.path().join("b")).args(SHARDED));
    let third = submitted(cluster.submit(&temp.path().join("c")).args(SHARDED));
    let state = |cluster: &Cluster, run: &str| {
        let list = cluster.ask("list", &["--json"]);
        let of_run = list.lines().find(|line| line.contains(run)).unwrap_or_default().to_owned();
        let value: serde_json::Value = serde_json::from_str(&of_run).unwrap_or_default();
        value["state"].as_str().unwrap_or("gone").to_owned()
    };
    assert_eq!(state(&cluster, &second), "running", "two at a time");
    assert_eq!(state(&cluster, &third), "queued");
    assert!(cluster.ask("pause", &[&first]).contains("paused"));
    assert!(until(|| (state(&cluster, &third) == "running").then_some(())).is_some(), "the next in turn");
    let refused = expect(cluster.client("delete").arg(&second), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("pause or cancel it first"));
    assert!(cluster.ask("cancel", &[&second]).contains("cancelled"));

    // A pause outlasts the coordinator; what was under way goes on by itself.
    cluster.kill("coordinator");
    cluster.start_one("coordinator");
    let back = until(|| cluster.client("list").output().unwrap().status.success().then_some(()));
    assert!(back.is_some());
    assert_eq!(state(&cluster, &first), "paused");
    assert_eq!(state(&cluster, &second), "cancelled");
    assert_eq!(state(&cluster, &third), "running");
    assert!(cluster.ask("resume", &[&first]).contains("running"));
    assert!(cluster.ask("delete", &[&second]).contains("deleted"));
    assert_eq!(state(&cluster, &second), "gone");

    // With workers both end.
    cluster.start_one("calibrator-0");
    cluster.start_one("surgeon-0");
    for run in [&first, &third] {
        expect(cluster.client("watch").arg(run).arg("--quiet"), 0);
    }
    let (a, c) = (temp.path().join("a"), temp.path().join("c"));
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&a) == weights(&c), "two runs at a time do not mix");
}

#[test]
fn a_drained_worker_gets_no_tasks() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(&temp.path().join("cluster"));
    cluster.start(1, 2);
    cluster.wait_for_workers(3);
    assert!(cluster.ask("workers", &["--drain", "surgeon-0"]).contains("draining"));
    expect(cluster.submit(&temp.path().join("out")).args(SHARDED).arg("--follow"), 0);
    assert!(!cluster.said("surgeon-0").contains("block scored"), "{}", cluster.said("surgeon-0"));
    assert!(cluster.said("surgeon-1").contains("block scored"), "{}", cluster.said("surgeon-1"));
}

#[test]
fn bad_flags_are_told_before_anything_is_opened() {
    let temp = tempfile::tempdir().unwrap();
    let store = temp.path().join("store").display().to_string();
    let program = |name: &str, words: &[&str]| {
        let mut command = Command::new(e2e::binary().with_file_name(name));
        if !words.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(words).env("RUST_BACKTRACE", "0");
        command
    };
    let told = |name: &str, words: &[&str], code: i32, parts: &[&str]| {
        let said = String::from_utf8_lossy(&expect(&mut program(name, words), code).stderr).into_owned();
        for part in parts {
            assert!(said.contains(part), "{name} {words:?}: {said}");
        }
    };
    told("coordinator", &["--store", &store, "--listen", "0.0.0.0:0"], 64, &["--insecure", "--tls-cert"]);
    told("coordinator", &["--store", "ftp://x"], 74, &["is no store"]);
    told("coordinator", &["--store", &store, "--tls-cert", "a"], 64, &["--tls-key is missing"]);
    let any = ["--store", &store, "--listen", "0.0.0.0:0", "--insecure", "--coordinator", "ftp://x"];
    told("surgeon", &any, 64, &["--advertise", "--coordinator"]);
    told("calibrator", &["--store", &store, "--listen", "127.0.0.1:0", "--worker", "a b"], 64, &["--worker"]);
    told("calibrator", &["--store", &store, "--listen", "127.0.0.1:0", "--device", "cuda:99"], 71, &["cuda:99"]);
    let help = expect(&mut program("calibrator", &["--help"]), 0);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("CALIBRATOR_LISTEN") && help.contains("127.0.0.1:7101"), "{help}");
    let worker = |words: &[&str], code: i32| {
        let mut command = Command::new(e2e::binary());
        expect(command.args(["serve", "worker"]).args(words).env("RUST_BACKTRACE", "0"), code)
    };
    let help = String::from_utf8_lossy(&worker(&["--help"], 0).stdout).into_owned();
    let flags = ["WORKER_LISTEN", "127.0.0.1:7101", "WORKER_SURGEON_LISTEN", "127.0.0.1:7102", "WORKER_RECEIVE_MEMORY"];
    for part in flags.into_iter().chain(["WORKER_SPILL_LIMIT", "Exit codes:", "Usage: llm-surgeon serve worker"]) {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
    let anywhere = ["--listen", "127.0.0.1:0", "--surgeon-listen", "0.0.0.0:0", "--insecure", "--worker", "a b"];
    let refused = worker(&[&["--store", &store][..], &anywhere].concat(), 64);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--surgeon-advertise") && said.contains("--worker"), "{said}");
    let lost = expect(Command::new(e2e::binary()).args(["list", "--coordinator", "http://127.0.0.1:1"]), 69);
    assert!(String::from_utf8_lossy(&lost.stderr).contains("no coordinator answers"));
}
