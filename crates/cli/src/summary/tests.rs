use super::*;
use coordinator::event::{
    BlockScored, BlockUpdated, CutChosen, Event, Materialised, Prepared, ShardCalibrated, SweepSeconds,
};
use types::{
    DampingStep, DataDescription, LayerId, LayerReport, ModelDescription, ObjectRef, Precision, RunSpec, Target,
};

fn spec() -> RunSpec {
    RunSpec {
        eval_data: vec!["/e".into()],
        shots: 1,
        samples: 2,
        seq_len: 8,
        damping_a: 0.01,
        max_damped_layers: 9,
        ..RunSpec::new("/m", "/d", "/out dir/small", Target::Size(0.8))
    }
}

fn data() -> DataDescription {
    DataDescription {
        digest: "d".repeat(64),
        tokenizer_digest: "t".repeat(64),
        documents: 3,
        skipped: 0,
        tokens: 100,
        samples: 2,
        sets: 1,
        seq_len: 8,
        overlap: 0,
        bos: true,
    }
}

fn evaluated(shot: u32, perplexity: f64) -> Event {
    let evaluation = Evaluation {
        loss: perplexity.ln(),
        perplexity,
        segments: 12,
        segments_in_data: 87,
        seq_len: 8,
        dtype: "f32".into(),
        data: data(),
    };
    Event::Evaluated(Evaluated { shot, evaluation, tokens: 1000, seconds: 0.5, peak_memory: 1 << 30 })
}

/// Returns a journal of one shot, a second between two records.
fn journal() -> Vec<Event> {
    let dense = Sizes { prunable: 1000, parameters: 1500, bytes: 6000 };
    let step = DampingStep { lambda: 0.1, precision: Precision::F64, raised: 1 };
    let layer = LayerReport {
        layer: LayerId::new("model.layers.0.mlp.down_proj").unwrap(),
        removed: 1,
        left: 1,
        predicted: 0.25,
        damping: FactorDamping { a: Some(step), ..FactorDamping::default() },
    };
    let object = ObjectRef { key: "k".into(), blake3: "0".repeat(64), bytes: 1 };
    let seconds = SweepSeconds { total: 10.0, forward: 3.0, head: 1.0, backward: 4.0, gram: 1.5, wait: 0.5 };
    vec![
        Event::Created { spec: spec(), request_id: String::new() },
        Event::TakenOver { epoch: 1 },
        Event::Prepared(Prepared {
            model: ModelDescription {
                family: "llama".into(),
                digest: "m".repeat(64),
                hidden: 4,
                vocabulary: 5,
                max_positions: 16,
                dense,
                blocks: vec![],
                own_widths_refused: String::new(),
            },
            data: data(),
            eval_data: Some(data()),
            seconds: 0.75,
        }),
        evaluated(0, 20.0),
        Event::ShotOpened { shot: 1, limit: 800 },
        Event::ShardCalibrated(ShardCalibrated {
            shot: 1,
            shard: 0,
            loss_sum: 6.0,
            targets: 2,
            tokens: 16,
            seconds,
            factor_bytes: 2048,
            peak_memory: 3 << 30,
        }),
        Event::BlockScored(BlockScored { shot: 1, block: 0, scores: object, seconds: 2.5, peak_memory: 2 << 30 }),
        Event::CutChosen(CutChosen {
            shot: 1,
            cuts: vec![],
            threshold: None,
            predicted: Some(0.25),
            predicted_other_shape: Some(0.125),
            shape: None,
            freed_prunable: 200,
            damped_layers: 1,
            largest_damping: 0.1,
            layers: vec![layer.clone()],
            curve: None,
        }),
        Event::BlockUpdated(BlockUpdated {
            shot: 1,
            block: 0,
            layers: vec![],
            predicted: vec![],
            seconds: 1.25,
            peak_memory: 2 << 30,
        }),
        Event::ShotCommitted {
            shot: 1,
            checkpoint: "c".into(),
            sizes: Sizes { prunable: 800, parameters: 1300, bytes: 5200 },
            layers: vec![layer],
            predicted: 0.25,
        },
        evaluated(1, 25.0),
        Event::Materialised(Materialised {
            shot: 1,
            output: "/out dir/small".into(),
            blake3: "b".repeat(64),
            bytes: 5300,
            logit_difference: 3e-6,
            seconds: 2.0,
            peak_memory: 1 << 30,
        }),
        Event::Succeeded,
    ]
}

fn summary() -> Summary {
    let (mut history, mut timeline) = (History::default(), Timeline::default());
    for (at, event) in journal().into_iter().enumerate() {
        timeline.record(&event, 1000 * at as u64);
        history.apply(event);
    }
    let warnings = vec!["few tokens".to_owned()];
    Summary::new("r-1", &history, timeline, warnings, Path::new("/out dir/small.state")).unwrap()
}

#[test]
fn the_page_has_every_figure_with_its_protocol() {
    let page = summary().render();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "from 1,500 to 1,300 parameters in 11.0 s (run r-1)",
        "prunable weights         1,000      800   80.0 %",
        "held-out perplexity     20.000   25.000  × 1.250",
        "tokens per second        2,000    2,000  × 1.000",
        "peak memory, evaluating  1.0 GiB  1.0 GiB  100.0 %",
        "peak memory of the run            3.0 GiB",
        "perplexity on data dddddddddddd, tokenizer tttttttttttt, seqlen 8, 12 of 87 segments, BOS yes, f32",
        "calibrate       10.0 s  2.0 KiB of factors",
        "    backward    4.00 s",
        "score           2.50 s",
        "allocate        1.00 s",
        "update          1.25 s",
        "evaluate        2.00 s",
        "0.2500 nats per token with uniform widths, 0.1250 if each shot had taken per-layer ones",
        "Largest damping used: 0.1 (asked: 0.01); raised for 1 layer: model.layers.0.mlp.down_proj.",
        "reading the folder back: 3.0e-6",
        "warning: few tokens",
        "output  /out dir/small (the folder has 5.2 KiB)",
        "lm_eval --model hf --model_args 'pretrained=/out dir/small,dtype=float32' --tasks wikitext",
    ] {
        assert!(words(&page).contains(&words(wanted)), "{wanted:?} is not in\n{page}");
    }
}

#[test]
fn the_json_object_is_named_and_carries_the_same_figures() {
    let json = serde_json::to_value(summary()).unwrap();
    assert_eq!(json["event"], "summary");
    assert_eq!(json["seconds"]["calibrate"]["gram"], 1.5);
    assert_eq!(json["peak_memory"], 3_u64 << 30);
    assert_eq!(json["raised_layers"][0], "model.layers.0.mlp.down_proj");
}

#[test]
fn a_run_without_its_end_has_no_summary() {
    let mut history = History::default();
    journal().into_iter().take(9).for_each(|e| history.apply(e));
    assert!(Summary::new("r-1", &history, Timeline::default(), vec![], Path::new("s")).is_none());
}

#[test]
fn the_line_for_another_program_names_the_folder() {
    assert_eq!(
        lm_eval("/a/b-1.0", &spec(), Shape::Uniform),
        "lm_eval --model hf --model_args pretrained=/a/b-1.0,dtype=float32 --tasks wikitext"
    );
}
