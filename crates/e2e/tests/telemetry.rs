//! What real services tell a real collector: one connected trace a shot, also when the coordinator dies in it, and no span
//! or metric that `docs/telemetry.json` does not list, nor the other way round.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::cluster::{Cluster, until};
use e2e::rotel::{Rotel, Span};
use e2e::{expect, root};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

fn cluster(folder: &Path, endpoint: &str) -> Cluster {
    let soon = [("OTEL_BSP_SCHEDULE_DELAY", "100"), ("OTEL_METRIC_EXPORT_INTERVAL", "300")];
    let cluster = Cluster::new(folder).with_variables(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]);
    cluster.with_variables(&soon)
}

fn end(cluster: &mut Cluster) {
    for service in ["surgeon-0", "calibrator-0", "coordinator"] {
        assert_eq!(cluster.terminate(service), Some(0), "{service}");
    }
}

fn records(cluster: &Cluster) -> usize {
    let runs = std::fs::read_dir(cluster.store().join("runs")).into_iter().flatten().flatten();
    runs.map(|run| std::fs::read_dir(run.path().join("journal")).into_iter().flatten().count()).sum()
}

/// Returns the spans of each shot, after checking that they are one connected trace that is linked to the run's.
fn traces(spans: &[Span], shots: u32) -> Vec<Vec<&Span>> {
    let of_run: Vec<&Span> = spans.iter().filter(|s| s.name == "run").collect();
    assert_eq!(of_run.len(), 1, "{of_run:?}");
    let mut traces = Vec::new();
    for shot in 1..=shots {
        let shot = shot.to_string();
        let roots: Vec<&Span> = spans.iter().filter(|s| s.name == "shot" && s.attributes["shot"] == shot).collect();
        let [whole] = roots.as_slice() else { panic!("shot {shot} was told {} times", roots.len()) };
        assert!(whole.parent.is_empty() && whole.links == [of_run[0].trace.clone()], "{whole:?}");
        let trace: Vec<&Span> = spans.iter().filter(|s| s.trace == whole.trace).collect();
        let ids: BTreeSet<&str> = trace.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids.len(), trace.len(), "ids are unique");
        for span in &trace {
            assert!(span.id == whole.id || ids.contains(span.parent.as_str()), "nobody told the parent of {span:?}");
        }
        let elsewhere = spans.iter().find(|s| s.trace != whole.trace && s.attributes.get("shot") == Some(&shot));
        assert_eq!(elsewhere, None, "of another trace");
        let services: BTreeSet<&str> = trace.iter().map(|s| s.service.as_str()).collect();
        assert_eq!(services, BTreeSet::from(["calibrator", "coordinator", "surgeon"]));
        traces.push(trace);
    }
    traces
}

fn count(trace: &[&Span], service: &str, name: &str) -> usize {
    trace.iter().filter(|s| s.service == service && s.name == name).count()
}

#[test]
fn a_shot_is_one_trace_over_three_processes() {
    let temp = tempfile::tempdir().unwrap();
    let rotel = Rotel::start(temp.path());
    let mut cluster = cluster(temp.path(), &rotel.endpoint());
    cluster.start(1, 1);
    let mut submit = cluster.submit(&temp.path().join("pruned"));
    expect(submit.args(["--target-size", "0.8", "--shots", "2", "--follow"]), 0);
    end(&mut cluster);
    for trace in traces(&rotel.spans(), 2) {
        let blocks = 4;
        assert_eq!(count(&trace, "calibrator", "calibrate"), 1, "one a shard");
        assert_eq!(count(&trace, "surgeon", "score"), blocks);
        assert_eq!(count(&trace, "surgeon", "update"), blocks);
        assert!(count(&trace, "surgeon", "layer") >= 2 * blocks, "the sites of each block, scored and updated");
        assert!(trace.len() < 100, "{} spans", trace.len());
    }
}

#[test]
fn a_shot_stays_one_trace_when_the_coordinator_is_killed_in_it() {
    let temp = tempfile::tempdir().unwrap();
    let rotel = Rotel::start(temp.path());
    let mut cluster = cluster(temp.path(), &rotel.endpoint());
    cluster.start(1, 1);
    let mut submit = cluster.submit(&temp.path().join("pruned"));
    let mut follower = submit.args(["--target-size", "0.8", "--shots", "2", "--follow"]).spawn().unwrap();
    for kills in 1..=3 {
        // In the middle of the first shot, then wherever it is.
        until(|| (records(&cluster) >= 8 + 6 * (kills - 1)).then_some(())).unwrap();
        cluster.kill("coordinator");
        cluster.start_one("coordinator");
    }
    assert!(follower.wait().unwrap().success());
    end(&mut cluster);
    traces(&rotel.spans(), 2);
}

#[test]
fn a_collector_that_is_not_there_or_does_not_answer_fails_no_run_and_no_stop() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // connections are made, and nobody reads
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for endpoint in ["http://127.0.0.1:9", &silent] {
        let temp = tempfile::tempdir().unwrap();
        let mut cluster = cluster(temp.path(), endpoint);
        cluster.start(1, 1);
        let mut submit = cluster.submit(&temp.path().join("pruned"));
        expect(submit.args(["--target-size", "0.8", "--shots", "1", "--follow"]), 0);
        end(&mut cluster);
    }
}

/// Compares what was emitted with what is listed, both ways; returns what is wrong.
fn differences(rotel: &Rotel, contract: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = rotel.metrics();
    let listed: BTreeMap<String, &Value> =
        contract["metrics"].as_array().unwrap().iter().map(|m| (text(&m["name"]), m)).collect();
    for (name, metric) in &found {
        let Some(entry) = listed.get(name) else {
            wrong.push(format!("metric {name} is not listed"));
            continue;
        };
        let kind = match metric.kind.as_str() {
            "Sum" => "counter",
            "Gauge" => "gauge",
            _ => "histogram",
        };
        if (kind, metric.unit.as_str()) != (entry["kind"].as_str().unwrap(), entry["unit"].as_str().unwrap()) {
            wrong.push(format!("metric {name} is a {kind} in '{}'", metric.unit));
        }
        let services: BTreeSet<String> = entry["services"].as_array().unwrap().iter().map(text).collect();
        // Who is not called measures no call.
        if metric.services != services && !(kind == "histogram" && metric.services.is_subset(&services)) {
            wrong.push(format!("metric {name} comes from {:?}", metric.services));
        }
        let labels = entry["labels"].as_object().unwrap();
        let keys: BTreeSet<String> = labels.keys().map(|key| dotted(key)).collect();
        if metric.labels.keys().cloned().collect::<BTreeSet<_>>() != keys {
            wrong.push(format!("metric {name} has the labels {:?}, listed are {keys:?}", metric.labels.keys()));
        }
        for (key, values) in labels {
            let Some(allowed) = values.as_array() else { continue };
            let allowed: BTreeSet<String> = allowed.iter().map(text).collect();
            let emitted = metric.labels.get(&dotted(key)).cloned().unwrap_or_default();
            if !emitted.is_subset(&allowed) {
                wrong.push(format!("metric {name} has {key} {emitted:?}"));
            }
        }
    }
    let missing = listed.iter().filter(|(name, m)| !found.contains_key(*name) && m.get("only_with").is_none());
    wrong.extend(missing.map(|(name, _)| format!("metric {name} is listed and was not emitted")));

    let spans = rotel.spans();
    let shape = |s: &Span| (s.service.clone(), s.name.clone(), s.attributes.keys().cloned().collect::<BTreeSet<_>>());
    let found: BTreeSet<_> = spans.iter().map(shape).collect();
    let listed = contract["spans"].as_array().unwrap().iter();
    let listed: BTreeSet<_> = listed
        .map(|s| {
            (text(&s["service"]), text(&s["name"]), s["attributes"].as_array().unwrap().iter().map(text).collect())
        })
        .collect();
    wrong.extend(found.difference(&listed).map(|span| format!("span {span:?} is not listed")));
    wrong.extend(listed.difference(&found).map(|span| format!("span {span:?} is listed and was not emitted")));
    wrong
}

/// Returns a label as OpenTelemetry has it.
fn dotted(label: &str) -> String {
    match label {
        "rpc_system_name" | "rpc_method" => label.replace('_', "."),
        "rpc_response_status_code" => "rpc.response.status_code".to_owned(),
        _ => label.to_owned(),
    }
}

#[test]
fn everything_that_is_told_is_listed_and_everything_listed_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let rotel = Rotel::start(temp.path());
    let mut cluster = cluster(temp.path(), &rotel.endpoint());
    cluster.start(1, 1);
    let follow = |command: &mut Command| expect(command.args(["--follow"]), 0);
    let runs: [&[&str]; 3] = [
        &["--target-size", "0.8", "--shots", "1", "--correct-rank", "2", "--correct-steps", "2"],
        &["--target-size", "0.8", "--shots", "1", "--structure", "element", "--rounds", "1"],
        &["--target-size", "0.8", "--shots", "1", "--half-steps", "2"],
    ];
    for (number, words) in runs.iter().enumerate() {
        follow(cluster.submit(&temp.path().join(format!("pruned-{number}"))).args(*words));
    }
    end(&mut cluster);
    let contract = std::fs::read(root().join("docs/telemetry.json")).unwrap();
    let wrong = differences(&rotel, &serde_json::from_slice(&contract).unwrap());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
