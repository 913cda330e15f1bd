//! Everything in a bucket instead of a folder: the same bits, and a journal that fences and survives kills there as well.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::cluster::{Cluster, until};
use e2e::disturbed::{Fate, tell_faults};
use e2e::{expect, folder_digest, glassllm, prune, python_program, root};
use std::collections::BTreeMap;
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

    /// Puts an object without a byte where a console would, to show a folder.
    fn mark_folder(&self, folder: &str) {
        self.ask(&format!("s3.put_object(Bucket='{BUCKET}', Key='{folder}/')"));
    }

    /// Puts the files of a folder below a prefix.
    fn put_folder(&self, folder: &Path, prefix: &str) {
        let walk = "import os; [s3.upload_file(os.path.join(d, f), B, P + os.path.relpath(os.path.join(d, f), R)) \
                    for d, _, fs in os.walk(R, followlinks=True) for f in fs]";
        self.ask(&format!("R='{}'; P='{prefix}/'; B='{BUCKET}'\n{walk}", folder.display()));
    }

    /// Copies what is below a prefix into a folder.
    fn get_folder(&self, prefix: &str, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let list = format!("s3.list_objects_v2(Bucket='{BUCKET}', Prefix='{prefix}/')['Contents']");
        let copy = format!("s3.download_file('{BUCKET}', f['Key'], R + f['Key'].rsplit('/', 1)[1])");
        self.ask(&format!("R='{}/'\n[{copy} for f in {list} if f['Size']]", folder.display()));
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
    tell_faults(kills, Fate::Survived, "SIGKILL of a service whose store is a bucket");
    let run = cluster.ask("list", &["--json"]);
    let run: serde_json::Value = serde_json::from_str(run.lines().next().unwrap()).unwrap();
    cluster.ask("delete", &[run["run"].as_str().unwrap()]);
    assert_eq!(moto.objects("one/two/runs/"), 0, "deleted is deleted in the bucket");
}

#[test]
fn a_model_text_and_output_in_a_bucket_give_the_same_bits() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    expect(&mut prune(&output), 0);

    let moto = Moto::start(temp.path());
    moto.put_folder(&glassllm(), "models/glassllm-en");
    moto.put_folder(&root().join("testdata/text"), "text");
    for folder in ["models/glassllm-en", "text", "text/calibration", "text/heldout", "out/one"] {
        moto.mark_folder(folder);
    }
    for (weights, out) in [("resident", "out/one"), ("stream", "out/two")] {
        let allow = format!("s3://{BUCKET}/models,s3://{BUCKET}/text,s3://{BUCKET}/out");
        let mut cluster = moto.cluster(&temp.path().join(weights), weights);
        cluster = cluster.with_worker_flags(&["--allow", &allow]).with_variables(&[("CALIBRATOR_WEIGHTS", weights)]);
        cluster.start(2, 1);
        cluster.wait_for_workers(3);
        let submit = |model: &str, to: &str| {
            let mut submit = cluster.client("submit");
            submit.arg(format!("s3://{BUCKET}/{model}")).args(["--data", &format!("s3://{BUCKET}/text/calibration")]);
            submit.args(["--eval-data", &format!("s3://{BUCKET}/text/heldout"), "--eval-samples", "8"]);
            submit.args(["--seq-len", "128", "--samples", "24", "--multiple-of", "1"]).args(TWO_SHOTS);
            submit.args(["--out", &format!("s3://{BUCKET}/{to}")]);
            submit
        };
        let said = expect(&mut submit("elsewhere/model", "out/none"), 66);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("--allow") && said.contains("elsewhere"), "{said}");
        expect(&mut submit("models/glassllm-en", out), 0);
        let found = temp.path().join(format!("found-{weights}"));
        moto.get_folder(out, &found);
        assert_eq!(numbers(&found), numbers(&output));
        assert_eq!(model_files(&found), model_files(&output), "{weights}");
        expect(&mut submit("models/glassllm-en", out), 0); // the same command finds its own run
        let mut another = submit("models/glassllm-en", out);
        let said = expect(another.args(["--seed", "7"]), 66);
        assert!(String::from_utf8_lossy(&said.stderr).contains(out), "another run's output is refused");
    }
}

/// Returns the content of all files of a written model, but of those that name places.
fn model_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path));
    let models =
        named.filter(|(name, _)| !["pruning_report.json", "README.md", "report.html"].contains(&name.as_str()));
    models.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

/// Returns what a report says of model, data, loss and shots.
fn numbers(folder: &Path) -> Vec<serde_json::Value> {
    let report = std::fs::read_to_string(folder.join("pruning_report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    ["model_digest", "data", "before", "after", "evaluation_before", "evaluation_after", "shots"]
        .map(|k| report[k].clone())
        .into()
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
    tell_faults(1, Fate::Survived, "a second coordinator on the bucket of a first");
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
