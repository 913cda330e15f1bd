//! A bucket that refuses, forgets to answer, or hangs.

use e2e::cluster::{Cluster, until};
use e2e::dice::seed;
use e2e::disturbed::{Disturbed, Fate, tell, tell_faults, undisturbed};
use e2e::flaky::{FlakyStore, Shares};
use e2e::moto::{BUCKET, Moto, variables};

const FLAGS: [&str; 6] = ["--target-size", "0.8", "--shots", "1", "--memory", "16MiB"];
const SHARES: Shares = Shares { unavailable: 6, conflict: 20, lost: 10, hanging: 1 };

#[test]
fn a_run_in_a_bucket_that_fails_one_request_in_six_gives_the_same_bits() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &FLAGS);
    let moto = Moto::start(temp.path());
    let store = FlakyStore::start(moto.port(), SHARES, seed());
    let endpoint = store.endpoint();
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder).with_store(&format!("s3://{BUCKET}/flaky"), &variables(&endpoint));
    cluster.start(1, 1);
    assert!(until(|| cluster.client("list").output().unwrap().status.success().then_some(())).is_some());
    cluster.wait_for_workers(2);
    let mut run = Disturbed::start(cluster, &folder, &output, &FLAGS);
    let ended = run.finish();
    let (requests, faults, line) = store.told();
    tell(&format!("{line}, seed {}; the run {ended}", seed()));
    run.ends_as(&alone, &format!("{line}, seed {}", seed()));
    tell_faults(faults, Fate::Survived, "requests that a bucket refused, forgot to answer, or hung on");
    assert!(faults >= requests / 10, "only {line}");
}
