use super::*;
use coordinator::event::{
    CostCurve, CutChosen, Evaluated, Event, LayerCurve, Materialised, ShardCalibrated, SweepSeconds,
};
use types::{
    BlockDescription, DampingStep, DataDescription, Evaluation, FactorDamping, LayerCut, LayerDescription, LayerId,
    LayerReport, LayerState, ModelDescription, Precision, Shape, Sizes, Structure, Target, UnitGroup, UnitKind,
};

const BLOCKS: u32 = 3;

fn spec() -> RunSpec {
    RunSpec {
        eval_data: vec!["/e".into()],
        shape: Shape::PerLayer,
        multiple_of: 1,
        ..RunSpec::new("/models/tiny & <small>", "/d", "/out/small", Target::Size(0.8))
    }
}

fn data(seed: &str) -> DataDescription {
    DataDescription {
        digest: seed.repeat(64),
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

fn layer(block: u32) -> LayerId {
    LayerId::new(&format!("model.layers.{block}.mlp.down_proj")).unwrap()
}

fn block(block: u32) -> BlockDescription {
    let described = LayerDescription {
        layer: layer(block),
        rows: 4,
        columns: 10,
        bias: false,
        input: layer(block),
        curvature: true,
    };
    let group = UnitGroup {
        layer: layer(block),
        kind: UnitKind::FfnChannel,
        units: 10,
        together: 1,
        min_keep: 1,
        columns_per_unit: 1,
        freed_per_unit: Sizes { prunable: 12, parameters: 12, bytes: 48 },
    };
    BlockDescription { block, layers: vec![described], groups: vec![group] }
}

fn evaluated(shot: u32, perplexity: f64) -> Event {
    let evaluation = Evaluation {
        loss: perplexity.ln(),
        perplexity,
        segments: 12,
        segments_in_data: 87,
        seq_len: 8,
        dtype: "f32".into(),
        data: data("e"),
    };
    Event::Evaluated(Evaluated { shot, evaluation, tokens: 1000, seconds: 0.5, peak_memory: 1 << 30 })
}

fn report(block: u32, raised: u32) -> LayerReport {
    let step = DampingStep { lambda: 0.1, precision: Precision::F64, raised };
    let damping = FactorDamping { a: Some(step), ..FactorDamping::default() };
    LayerReport { layer: layer(block), removed: block.into(), left: 10, predicted: 0.05, damping }
}

fn journal() -> Vec<Event> {
    let dense = Sizes { prunable: 360, parameters: 500, bytes: 2000 };
    let model = ModelDescription {
        family: "llama".into(),
        digest: "m".repeat(64),
        hidden: 4,
        vocabulary: 5,
        max_positions: 16,
        own_widths_refused: String::new(),
        dense,
        blocks: (0..BLOCKS).map(block).collect(),
    };
    let layers: Vec<LayerReport> = (0..BLOCKS).map(|block| report(block, u32::from(block == 1))).collect();
    let curve = |block: u32| LayerCurve { layer: layer(block), points: vec![(0.0, 0.0), (0.5, 0.2), (0.9, 1.0)] };
    let state = |block: u32| LayerState {
        layer: layer(block),
        kind: UnitKind::FfnChannel,
        kept: (0..10 - block).collect(),
        kept_rows: vec![],
        zeros: 0,
        weights: None,
    };
    vec![
        Event::Created { spec: spec(), request_id: String::new() },
        Event::Prepared(Prepared { model, data: data("d"), eval_data: Some(data("e")), seconds: 0.75 }),
        evaluated(0, 20.0),
        Event::ShotOpened { shot: 1, limit: 324 },
        Event::ShardCalibrated(ShardCalibrated {
            shot: 1,
            shard: 0,
            loss_sum: 6.0,
            targets: 2,
            tokens: 16,
            seconds: SweepSeconds { total: 10.0, forward: 3.0, ..SweepSeconds::default() },
            factor_bytes: 2048,
            peak_memory: 3 << 30,
        }),
        Event::CutChosen(CutChosen {
            shot: 1,
            cuts: (0..BLOCKS).map(|block| LayerCut { layer: layer(block), steps: block, elements: None }).collect(),
            threshold: Some(1.5e-3),
            predicted: Some(0.15),
            predicted_other_shape: Some(0.25),
            freed_prunable: 36,
            damped_layers: 1,
            largest_damping: 0.1,
            shape: None,
            layers: layers.clone(),
            curve: Some(CostCurve {
                model: vec![(360, 0.0), (324, 0.15), (180, 1.0), (40, 9.0)],
                layers: (0..BLOCKS).map(curve).collect(),
            }),
        }),
        Event::BlockUpdated(coordinator::event::BlockUpdated {
            shot: 1,
            block: 0,
            layers: (0..BLOCKS).map(state).collect(),
            predicted: vec![0.05; 3],
            seconds: 1.25,
            peak_memory: 1 << 30,
        }),
        Event::ShotCommitted {
            shot: 1,
            checkpoint: "c".into(),
            sizes: Sizes { prunable: 324, parameters: 464, bytes: 1856 },
            layers,
            predicted: 0.15,
        },
        evaluated(1, 25.0),
        Event::Materialised(Materialised {
            shot: 1,
            output: "/out/small".into(),
            blake3: "b".repeat(64),
            bytes: 5300,
            logit_difference: 3e-6,
            seconds: 2.0,
            peak_memory: 1 << 30,
        }),
        Event::Succeeded,
    ]
}

fn told(events: Vec<Event>) -> Journal {
    let (mut history, mut timeline) = (History::default(), Timeline::default());
    for (at, event) in events.into_iter().enumerate() {
        timeline.record(&event, 1000 * at as u64);
        history.apply(event);
    }
    let warnings = vec!["<few> tokens".to_owned()];
    Journal { run: "r-1".into(), history, timeline, warnings, program: "llm-surgeon 0".into() }
}

fn page_of(events: Vec<Event>) -> String {
    let journal = told(events);
    render(&journal, &journal.history, "/out/small.state").unwrap()
}

#[test]
fn the_page_has_every_section_and_its_figures() {
    let page = page_of(journal());
    for wanted in [
        "tiny &amp; &lt;small&gt; at 90.0 % of its prunable weights",
        "LLM Surgeon; coupled, per-layer widths; 1 shot; run r-1",
        "20.00 → </span>25.00",
        "Perplexity on data eeeeeeeeeeee",
        "&lt;few&gt; tokens",
        "Gone are 10.0 % of 30 FFN channels.",
        "Removed from each block",
        "What each size was predicted to cost",
        "FFN channels, block by block",
        "Loss and size after each shot",
        "Predicted and measured rise of each shot",
        "1.50e-3 nats per token and freed weight",
        "0.1500 with per-layer widths, 0.2500 if each shot had taken uniform ones",
        "Layers whose damping was raised",
        "0.1 → 0.1 in f64",
        "3.0 GiB",
        &"b".repeat(64),
        "--target-size 0.8 --out /out/small --multiple-of 1 --shape per-layer",
        "pretrained=/out/small,dtype=float32",
        "max_damped_layers",
    ] {
        let wanted = wanted.replace('/', "&#x2f;");
        assert!(page.replace('/', "&#x2f;").contains(&wanted), "{wanted:?} is not in\n{page}");
    }
}

#[test]
fn the_page_needs_nothing_else_and_names_every_picture() {
    let page = page_of(journal());
    for foreign in ["<script", "src=", "<link", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let pictures = page.matches("<svg").count();
    assert_eq!(pictures, 5);
    assert_eq!(page.matches("<title id=").count(), pictures);
    assert_eq!(page.matches("<desc id=").count(), pictures);
    assert_eq!(page.matches("role=\"img\"").count(), pictures);
    assert_eq!(page, page_of(journal()), "the same journal gives the same page");
}

#[test]
fn a_run_that_has_not_ended_tells_what_is_known() {
    let events = journal();
    for known in 2..events.len() {
        let page = page_of(events[..known].to_vec());
        assert!(page.contains("this is what is committed so far"), "{known}");
    }
    let nothing = told(events[..1].to_vec());
    assert!(matches!(render(&nothing, &nothing.history, "/s"), Err(CliError::Usage(_))));
}

#[test]
fn journals_without_curves_say_so() {
    let mut events = journal();
    for event in &mut events {
        if let Event::CutChosen(cut) = event {
            cut.curve = None;
        }
    }
    assert!(page_of(events.clone()).contains("written by an earlier version"));
    for event in &mut events {
        if let Event::Created { spec, .. } = event {
            spec.structure = Structure::Element;
        }
    }
    assert!(page_of(events).contains("written by an earlier version"));
}
