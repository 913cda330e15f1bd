//! A store that fills up under a run in several processes. On a real, small file system; needs the right to mount one.

use e2e::cluster::Cluster;
use e2e::disturbed::{Disturbed, Fate, SHARDED, tell, tell_faults, undisturbed};
use std::path::Path;
use std::process::Command;

/// A small file system, unmounted when dropped.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn mount<'a>(at: &'a Path, size: &str) -> Option<Small<'a>> {
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|s| s.success()).then_some(Small(at))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Returns one field of the only run.
fn field(cluster: &Cluster, name: &str) -> String {
    let run: serde_json::Value = serde_json::from_str(&cluster.ask("list", &["--json"])).unwrap();
    run[name].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_full_store_pauses_the_run_again_and_again_and_room_lets_it_end() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let folder = temp.path().join("cluster");
    let store = folder.join("store");
    std::fs::create_dir_all(&store).unwrap();
    let Some(disk) = Small::mount(&store, "600k") else {
        tell("skipped: this user may not mount a small file system");
        return;
    };
    let alone = undisturbed(&output, &SHARDED);
    let mut cluster = Cluster::new(&folder);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let paused = run.finish();
    assert_eq!(paused.code(), Some(74), "{}", run.said());
    let mut codes = Vec::new();
    // Room is made little by little: the run meets the end of the disk in several places.
    for kilobytes in (0..).map(|n: u32| 1000 << n) {
        assert_eq!(field(&run.cluster, "state"), "paused");
        let code = field(&run.cluster, "reason_code");
        // A worker's task tells the coordinator no more of its store than that it fails.
        assert!(code == "STORE_FULL", "{code}: {}", field(&run.cluster, "reason"));
        codes.push(code);
        assert!(!output.exists(), "nothing half-written under the final name");
        assert!(kilobytes < 256_000, "{codes:?}");
        disk.resize(&format!("{kilobytes}k"));
        let id = field(&run.cluster, "run");
        run.cluster.ask("resume", &[&id]);
        let watched = run.cluster.client("watch").arg(&id).arg("--quiet").output().unwrap();
        if watched.status.success() {
            break;
        }
    }
    assert_eq!(e2e::folder_digest(&output), alone, "after {codes:?}");
    tell_faults(codes.len() as u64, Fate::Survived, "a store without room");
}
