//! Files between callers and the store of a coordinator, as real processes that are killed on the way: what arrives is whole, and nothing
//! is sent twice that was kept.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::cluster::{Cluster, until};
use e2e::disturbed::{Fate, tell_faults};
use e2e::expect;
use e2e::proxy::{Fault, Proxy};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;
/// So slow that there is time for a kill.
const SLOW: Fault = Fault::Slow { bytes_per_second: 16 << 20 };

/// Writes a file of bytes that differ from place to place; returns its digest.
fn write(path: &Path, bytes: u64) -> String {
    let mut content = vec![0; usize::try_from(bytes).unwrap()];
    blake3::Hasher::new().update(path.as_os_str().as_encoded_bytes()).finalize_xof().fill(&mut content);
    fs::write(path, &content).unwrap();
    blake3::hash(&content).to_hex().to_string()
}

/// Returns the files below a folder of the store, and their bytes.
fn below(folder: &Path) -> (Vec<PathBuf>, u64) {
    let mut found = (Vec::new(), 0);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let inner = below(&entry.path());
            found.0.extend(inner.0);
            found.1 += inner.1;
        } else {
            found.1 += entry.metadata().map_or(0, |meta| meta.len());
            found.0.push(entry.path());
        }
    }
    found
}

/// Returns the names of what is in the store whole.
fn whole(cluster: &Cluster) -> Vec<String> {
    let names = below(&cluster.store().join("artifacts")).0.into_iter();
    names.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).filter(|n| !n.contains('#')).collect()
}

/// Returns a request for a run whose data is brought first; nobody will carry it out.
fn submit(cluster: &Cluster, data: &Path) -> Command {
    let mut submit = cluster.client("submit");
    submit.args([
        "/nowhere",
        "--seq-len",
        "128",
        "--target-size",
        "0.8",
        "--out",
        "/nowhere-smaller",
        "--upload",
        "--data",
    ]);
    submit.arg(data).stdout(Stdio::null()).stderr(Stdio::null());
    submit
}

#[test]
fn an_upload_goes_on_after_kills_of_coordinator_and_caller_and_is_there_only_whole() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data.jsonl");
    let digest = write(&data, 40 * MIB);
    let mut cluster = Cluster::new(temp.path());
    cluster.start_one("coordinator");
    let proxy = Proxy::start(&temp.path().join("slow.sock"), &cluster.socket("coordinator"), SLOW, 1);
    cluster.detour_of_callers(proxy.endpoint());
    let parts = cluster.store().join("uploads");
    let mut caller = submit(&cluster, &data).spawn().unwrap();
    for kill in 1..=3 {
        until(|| (below(&parts).1 >= kill * 8 * MIB).then_some(())).unwrap();
        assert_eq!(whole(&cluster), [""; 0], "nothing is there half-written");
        if kill == 2 {
            caller.kill().unwrap();
            caller.wait().unwrap();
            caller = submit(&cluster, &data).spawn().unwrap();
        } else {
            cluster.kill("coordinator");
            cluster.start_one("coordinator");
        }
    }
    assert!(caller.wait().unwrap().success());
    assert_eq!(whole(&cluster), [digest.as_str()]);
    assert_eq!(
        blake3::hash(&fs::read(cluster.store().join("artifacts").join(&digest)).unwrap()).to_hex().as_str(),
        digest
    );
    tell_faults(3, Fate::Survived, "SIGKILL of coordinator or caller in the middle of an upload");
    assert_eq!(below(&parts).0, [""; 0].map(PathBuf::from), "no part stays behind");
    let sent = proxy.bytes();
    assert!(sent < 64 * MIB, "{sent} bytes for {} and three kills", 40 * MIB);
    let journal = below(&cluster.store().join("runs")).0.into_iter().find(|path| path.ends_with("journal/0000000001"));
    let asked = fs::read_to_string(journal.unwrap()).unwrap();
    assert!(asked.contains(&format!("artifact:{digest}.jsonl")), "{asked}");

    // The same data again moves next to nothing, whatever the file is called.
    fs::rename(&data, temp.path().join("renamed.jsonl")).unwrap();
    expect(submit(&cluster, &temp.path().join("renamed.jsonl")).stderr(Stdio::piped()), 0);
    assert!(proxy.bytes() < sent + MIB);
}

#[test]
fn an_upload_outlasts_connections_that_are_cut_anywhere() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data.txt");
    let digest = write(&data, 24 * MIB);
    let mut cluster = Cluster::new(temp.path());
    cluster.start_one("coordinator");
    let cut = Fault::CutWithin { bytes: 6 * MIB, most: 12 };
    let proxy = Proxy::start(&temp.path().join("cut.sock"), &cluster.socket("coordinator"), cut, 7);
    cluster.detour_of_callers(proxy.endpoint());
    expect(submit(&cluster, &data).stderr(Stdio::piped()), 0);
    assert_eq!(whole(&cluster), [digest.as_str()]);
    assert!(proxy.faults() >= 4, "{} cuts", proxy.faults());
    let back = temp.path().join("back");
    cluster.ask("fetch", &[&format!("artifacts/{digest}"), "--out", back.to_str().unwrap()]);
    assert_eq!(fs::read(&back).unwrap(), fs::read(&data).unwrap());
    tell_faults(proxy.faults(), Fate::Survived, "connections of an upload cut at random bytes");
}

#[test]
fn a_fetch_goes_on_after_kills_and_the_file_has_its_name_only_when_it_is_whole() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(temp.path());
    let artifacts = cluster.store().join("artifacts");
    fs::create_dir_all(&artifacts).unwrap();
    let digest = write(&artifacts.join("new"), 40 * MIB);
    fs::rename(artifacts.join("new"), artifacts.join(&digest)).unwrap();
    cluster.start_one("coordinator");
    let proxy = Proxy::start(&temp.path().join("slow.sock"), &cluster.socket("coordinator"), SLOW, 1);
    cluster.detour_of_callers(proxy.endpoint());
    let (name, back) = (format!("artifacts/{digest}"), temp.path().join("back"));
    let fetch = || {
        let mut fetch = cluster_fetch(&cluster, &name, &back);
        fetch.stdout(Stdio::null()).stderr(Stdio::piped());
        fetch
    };
    let partial = || {
        let files = fs::read_dir(temp.path()).unwrap().flatten();
        files.map(|file| file.path()).find(|path| path.extension().is_some_and(|ending| ending == "part"))
    };
    let has = |bytes: u64| partial().is_some_and(|path| fs::metadata(path).is_ok_and(|meta| meta.len() >= bytes));

    let mut killed = fetch().spawn().unwrap();
    until(|| has(8 * MIB).then_some(())).unwrap();
    let taken = expect(&mut fetch(), 73);
    assert!(String::from_utf8_lossy(&taken.stderr).contains("another fetch is at it"));
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!back.exists());

    let second = fetch().spawn().unwrap();
    until(|| has(16 * MIB).then_some(())).unwrap();
    cluster_restart(&mut cluster);
    let second = second.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.success() && said.contains("goes on after"), "{said}");
    assert_eq!(blake3::hash(&fs::read(&back).unwrap()).to_hex().as_str(), digest);
    assert_eq!(partial(), None);
    tell_faults(2, Fate::Survived, "SIGKILL of caller or coordinator in the middle of a fetch");
    assert!(proxy.bytes() < 60 * MIB, "{} bytes for {}", proxy.bytes(), 40 * MIB);

    let again = cluster_fetch(&cluster, &name, &back).output().unwrap();
    assert!(again.status.success(), "what is here already is no error");
    fs::write(&back, "something else").unwrap();
    expect(&mut cluster_fetch(&cluster, &name, &back), 73);
    assert_eq!(fs::read(&back).unwrap(), b"something else");
}

fn cluster_fetch(cluster: &Cluster, name: &str, out: &Path) -> Command {
    let mut fetch = cluster.client("fetch");
    fetch.arg(name).arg("--out").arg(out);
    fetch
}

fn cluster_restart(cluster: &mut Cluster) {
    cluster.kill("coordinator");
    cluster.start_one("coordinator");
}

#[test]
fn refusals_say_what_is_wrong_and_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(temp.path());
    cluster.start_one("coordinator");
    let out = temp.path().join("back");
    let said = |command: &mut Command, code| String::from_utf8_lossy(&expect(command, code).stderr).into_owned();
    let absent = said(&mut cluster_fetch(&cluster, &format!("artifacts/{}", "0".repeat(64)), &out), 66);
    assert!(absent.contains("there is no artifact") && absent.contains("llm-surgeon artifacts"), "{absent}");
    for hidden in ["runs/r/journal/0000000001", "artifacts/../runs/r", "/etc/passwd"] {
        let refused = said(&mut cluster_fetch(&cluster, hidden, &out), 64);
        assert!(refused.contains("names no artifact"), "{refused}");
    }
    let data = temp.path().join("no.format");
    write(&data, 10);
    let unknown = said(submit(&cluster, &data).stderr(Stdio::piped()), 66);
    assert!(unknown.contains("no.format") && unknown.contains(".jsonl"), "{unknown}");
    let mut early = cluster.client("submit");
    early.args(["/nowhere", "--seq-len", "128", "--target-size", "0.8", "--out", "/nowhere-smaller"]);
    let address = format!("artifact:{}.txt", "0".repeat(64));
    let early = said(early.args(["--data", &address]), 64);
    assert!(early.contains("upload it first"), "{early}");
    assert_eq!(cluster.ask("artifacts", &[]).trim(), "no artifacts");

    let data = temp.path().join("data.txt");
    let digest = write(&data, 10);
    let mut brought = submit(&cluster, &data);
    let run = expect(brought.stdout(Stdio::piped()).stderr(Stdio::piped()), 0);
    let run = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    let name = format!("artifacts/{digest}");
    let listed: serde_json::Value = serde_json::from_str(&cluster.ask("artifacts", &["artifacts", "--json"])).unwrap();
    assert_eq!((listed["artifact"].as_str(), listed["bytes"].as_u64()), (Some(name.as_str()), Some(10)));
    let used = said(cluster.client("artifacts").args(["--delete", &name]), 1);
    assert!(used.contains(&run) && used.contains("cancel it first"), "{used}");
    cluster.ask("cancel", &[&run]);
    cluster.ask("artifacts", &["--delete", &name]);
    assert_eq!(cluster.ask("artifacts", &[]).trim(), "no artifacts");
}

#[test]
fn a_run_on_text_that_was_brought_gives_the_model_of_the_run_on_the_file() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(&temp.path().join("cluster"));
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let text = temp.path().join("text.txt");
    let calibration = fs::read_dir(e2e::root().join("testdata/text/calibration")).unwrap();
    let all: Vec<String> = calibration.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    fs::write(&text, all.join("\n")).unwrap();
    let run = |output: &Path, more: &[&str]| {
        let mut submit = cluster.client("submit");
        submit.arg(e2e::glassllm()).arg("--data").arg(&text).arg("--out").arg(output);
        submit.args(["--seq-len", "128", "--samples", "16", "--multiple-of", "1", "--target-size", "0.8", "--follow"]);
        expect(submit.args(more), 0);
        fs::read(output.join("model.safetensors")).unwrap()
    };
    let from_file = run(&temp.path().join("from-file"), &[]);
    let brought = run(&temp.path().join("brought"), &["--upload"]);
    assert!(from_file == brought);
    assert_eq!(whole(&cluster).len(), 1);
    assert!(cluster.said("calibrator-0").contains("model and data are ready"));
    let report = fs::read_to_string(temp.path().join("brought/pruning_report.json")).unwrap();
    assert!(report.contains("artifact:"), "the report says where the text came from");
}
