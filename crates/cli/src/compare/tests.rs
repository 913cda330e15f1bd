use super::*;
use std::fs;
use types::{DataDescription, Evaluation, RunSpec, ShotReport, Target};

fn data() -> DataDescription {
    DataDescription {
        digest: "d".repeat(64),
        tokenizer_digest: "t".repeat(64),
        documents: 1,
        skipped: 0,
        tokens: 9,
        samples: 1,
        sets: 1,
        seq_len: 8,
        overlap: 0,
        bos: false,
    }
}

fn evaluation(perplexity: f64, seq_len: u64) -> Evaluation {
    let (loss, data) = (perplexity.ln(), data());
    Evaluation { loss, perplexity, segments: 1, segments_in_data: 1, seq_len, dtype: "f32".into(), data }
}

fn report(model: &str, perplexity: f64, seq_len: u64) -> RunReport {
    let shot = ShotReport {
        shot: 1,
        limit: 800,
        taken_back: 0,
        sizes: Sizes::default(),
        threshold: None,
        calibration_loss: 1.0,
        predicted: 0.125,
        predicted_other_shape: None,
        correction: None,
        evaluation: None,
        layers: vec![],
    };
    RunReport {
        format: 1,
        program: "llm-surgeon 0".into(),
        run: "r-1".into(),
        spec: RunSpec::new(&format!("/models/{model}"), "/d", "/o", Target::Size(0.8)),
        family: "llama".into(),
        model_digest: model.repeat(64),
        data: data(),
        before: Sizes { prunable: 1000, parameters: 1500, bytes: 6000 },
        after: Sizes { prunable: 800, parameters: 1300, bytes: 5200 },
        evaluation_before: Some(evaluation(20.0, seq_len)),
        evaluation_after: Some(evaluation(perplexity, seq_len)),
        shape_choice: None,
        shots: vec![shot],
        kept: vec![],
        warnings: vec![],
    }
}

fn comparison(reports: &[(&str, RunReport)]) -> Comparison {
    let folders: Vec<Compared> =
        reports.iter().map(|(folder, report)| Compared::new((*folder).to_owned(), report)).collect();
    Comparison { warnings: warnings(&folders), folders }
}

#[test]
fn equal_models_and_protocols_stand_side_by_side() {
    let two = comparison(&[("x/a", report("m", 25.0, 8)), ("y/b", report("m", 30.0, 8))]);
    let page = render::text(&two);
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "a b model m (llama) m (llama)",
        "perplexity 25.000 30.000 ratio to dense × 1.250 × 1.500",
        "method LLM Surgeon LLM Surgeon structure coupled, uniform coupled, uniform shots 1 1",
        "prunable left 80.0 % 80.0 %",
        "predicted rise 0.1250 0.1250",
    ] {
        assert!(words.contains(wanted), "{wanted:?} is not in\n{page}");
    }
    assert_eq!(page.matches("perplexity on").count(), 1);
    assert!(!page.contains("warning"), "{page}");
    let html = render::page(&two).unwrap();
    assert!(html.contains("<svg") && html.contains("held-out perplexity"), "{html}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let page = render::text(&comparison(&[("x/a", report("m", 25.0, 8)), ("y/a", report("n", 30.0, 16))]));
    for wanted in
        ["base models differ", "protocols of the perplexities differ", "x/a: perplexity on", "y/a: perplexity"]
    {
        assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
    }
}

#[test]
fn folders_without_a_report_that_can_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let said = |content: Option<&str>| {
        if let Some(content) = content {
            fs::write(dir.path().join("pruning_report.json"), content).unwrap();
        }
        read::report(dir.path()).unwrap_err().to_string()
    };
    assert!(said(None).contains("there is no such report"));
    assert!(said(Some("[]")).contains("no report of a pruning"));
    assert!(said(Some("{\"format\": 2}")).contains("has format 2, this program reads 1"));
    assert!(said(Some("{\"format\": 1}")).contains("another version"));
    fs::write(dir.path().join("pruning_report.json"), serde_json::to_string(&report("m", 25.0, 8)).unwrap()).unwrap();
    assert_eq!(read::report(dir.path()).unwrap(), report("m", 25.0, 8));
}
