//! Everything in a bucket instead of a folder: the same bits, and a journal that fences and survives kills there as well.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::cluster::{Cluster, until};
use e2e::{expect, folder_digest, prune, python_program};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const BUCKET: &str = "surgeon";

/// A server that answers as S3 does, on this host.
struct Moto {
    server: Child,
    endpoint: String,
}

impl Moto {
    fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(folder.join("moto.log")).unwrap();
        let server = Command::new(python_program("moto", "moto_server"))
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let moto = Self { server, endpoint: format!("http://127.0.0.1:{port}") };
        assert!(until(|| TcpStream::connect(("127.0.0.1", port)).ok()).is_some(), "moto does not start");
        moto.ask(&format!("s3.create_bucket(Bucket='{BUCKET}')"));
        moto
    }

    fn variables(&self) -> [(&str, &str); 5] {
        [
            ("AWS_ENDPOINT", &self.endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
    }

    /// Says a line of boto3, the usual client of S3, and returns what it prints.
    fn ask(&self, line: &str) -> String {
        let program = format!("import boto3; s3 = boto3.client('s3', endpoint_url='{}'); {line}", self.endpoint);
        let mut python = Command::new(python_program("moto", "python"));
        python.args(["-c", &program]).env("AWS_DEFAULT_REGION", "us-east-1");
        python.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        String::from_utf8_lossy(&expect(&mut python, 0).stdout).into_owned()
    }

    /// Returns the number of objects below a prefix.
    fn objects(&self, prefix: &str) -> usize {
        let list = format!("s3.list_objects_v2(Bucket='{BUCKET}', Prefix='{prefix}')['KeyCount']");
        self.ask(&format!("print({list})")).trim().parse().unwrap()
    }

    /// Returns the number of journal records below a prefix.
    fn records(&self, prefix: &str) -> usize {
        let list = format!("s3.list_objects_v2(Bucket='{BUCKET}', Prefix='{prefix}').get('Contents', [])");
        self.ask(&format!("print(sum('/journal/' in found['Key'] for found in {list}))")).trim().parse().unwrap()
    }

    fn cluster(&self, folder: &Path, prefix: &str) -> Cluster {
        Cluster::new(folder).with_store(&format!("s3://{BUCKET}/{prefix}"), &self.variables())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill(); // it may have ended
        let _ = self.server.wait();
    }
}

const TWO_SHOTS: [&str; 5] = ["--target-size", "0.8", "--shots", "2", "--follow"];

#[test]
fn a_run_in_a_bucket_survives_the_loss_of_every_service_and_gives_the_same_bits() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    expect(&mut prune(&output), 0);
    let alone = folder_digest(&output);
    std::fs::remove_dir_all(&output).unwrap();

    let moto = Moto::start(temp.path());
    let mut cluster = moto.cluster(&temp.path().join("cluster"), "one/two");
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let mut submit = cluster.submit(&output);
    let mut follower = submit.args(TWO_SHOTS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut kills = 0;
    for service in ["surgeon-0", "coordinator", "calibrator-0", "coordinator"] {
        let before = moto.records("one/two/runs/");
        // A coordinator that comes back adds two records before the run gets on.
        let moved = until(|| {
            let ended = follower.try_wait().unwrap().is_some();
            (ended || moto.records("one/two/runs/") > before + 2).then_some(ended)
        });
        match moved {
            None => panic!("the run stands still"),
            Some(true) => break,
            Some(false) => {}
        }
        cluster.kill(service);
        cluster.start_one(service);
        kills += 1;
    }
    assert!(kills >= 2, "only {kills} kills");
    assert!(follower.wait().unwrap().success());
    assert_eq!(folder_digest(&output), alone);
    let run = cluster.ask("list", &["--json"]);
    let run: serde_json::Value = serde_json::from_str(run.lines().next().unwrap()).unwrap();
    cluster.ask("delete", &[run["run"].as_str().unwrap()]);
    assert_eq!(moto.objects("one/two/runs/"), 0, "deleted is deleted in the bucket");
}

#[test]
fn of_two_coordinators_on_one_bucket_the_older_one_stops() {
    let temp = tempfile::tempdir().unwrap();
    let moto = Moto::start(temp.path());
    let mut first = moto.cluster(&temp.path().join("first"), "shared");
    first.start(1, 1);
    first.wait_for_workers(2);
    let output = temp.path().join("pruned");
    let mut submit = first.submit(&output);
    let long = ["--target-size", "0.5", "--shots", "24", "--follow"];
    let mut follower = submit.args(long).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let under_way = until(|| first.said("calibrator-0").contains("shard swept").then_some(()));
    assert!(under_way.is_some());

    let mut second = moto.cluster(&temp.path().join("second"), "shared");
    second.start_one("coordinator");
    let stopped = until(|| first.said("coordinator").contains("there must be one").then_some(()));
    assert!(stopped.is_some(), "{}", first.said("coordinator"));
    assert_eq!(first.ended("coordinator"), Some(75));
    // The second has the run; nothing is lost.
    assert!(second.ask("list", &["--json"]).contains("running"));
    let _ = follower.kill();
    let _ = follower.wait();
}

#[test]
fn a_bucket_that_is_not_there_is_told_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let moto = Moto::start(temp.path());
    let mut coordinator = Command::new(e2e::binary().with_file_name("coordinator"));
    coordinator.args(["--store", "s3://nowhere", "--listen", "127.0.0.1:0"]).envs(moto.variables());
    let said = expect(&mut coordinator, 74);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("s3://nowhere"), "{said}");
}
