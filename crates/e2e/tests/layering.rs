//! The dependency rules of the README's layout, checked against `cargo metadata`: maths knows no transport, transport takes
//! no decision.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::BTreeMap;

/// What a crate's normal dependencies may not name, and why.
fn forbidden() -> BTreeMap<&'static str, (Vec<&'static str>, &'static str)> {
    let transport = ["tonic", "prost", "tokio", "clap", "opentelemetry", "proto", "service"];
    let maths = ["tch", "torch-sys", "model", "curvature", "pruning"];
    let workers = ["calibrator", "surgeon", "coordinator", "cli"];
    let join = |parts: &[&[&'static str]]| parts.concat();
    let only_data = "types is plain data: std, serde, thiserror";
    let pure = "decisions are pure";
    let maths_only = "crates/ computes, the services talk";
    BTreeMap::from([
        ("types", (join(&[&transport, &maths, &workers, &["planning", "tracing"]]), only_data)),
        ("planning", (join(&[&transport, &maths, &workers]), pure)),
        (
            "curvature",
            (join(&[&transport, &workers, &["model", "pruning", "planning", "safetensors", "tokenizers"]]), maths_only),
        ),
        ("pruning", (join(&[&transport, &workers, &["model", "planning", "safetensors", "tokenizers"]]), maths_only)),
        ("model", (join(&[&transport, &workers, &["curvature", "pruning", "planning"]]), maths_only)),
        ("proto", (join(&[&maths, &workers, &["tokio", "clap", "planning"]]), "the contract holds no program")),
        ("service", (join(&[&maths, &workers, &["planning"]]), "the shell does not know the algorithm")),
        ("calibrator", (vec!["surgeon", "coordinator", "planning", "pruning", "cli"], "a calibrator decides nothing")),
        ("surgeon", (vec!["calibrator", "coordinator", "planning", "cli"], "a surgeon does not decide the threshold")),
        (
            "coordinator",
            (join(&[&maths, &["calibrator", "surgeon", "cli"]]), "the coordinator computes no number from tensors"),
        ),
    ])
}

#[test]
fn every_crate_keeps_to_its_layer() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let mut checked = 0;
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let rules = forbidden();
        let Some((names, reason)) = rules.get(package.name.as_str()) else { continue };
        checked += 1;
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            if names.contains(&dependency.name.as_str()) {
                broken.push(format!("{} depends on {}: {reason}", package.name, dependency.name));
            }
        }
    }
    assert_eq!(checked, forbidden().len(), "every rule names a crate of the workspace");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn test_crates_are_only_ever_dev_dependencies() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    for package in metadata.packages.iter().filter(|p| p.name.as_str() != "e2e") {
        for dependency in package.dependencies.iter().filter(|d| ["testkit", "e2e"].contains(&d.name.as_str())) {
            assert_eq!(dependency.kind, DependencyKind::Development, "{} names {}", package.name, dependency.name);
        }
    }
}
