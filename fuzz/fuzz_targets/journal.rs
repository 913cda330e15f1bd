//! Records of a run's journal: what is read back is what was written, and can be folded into a history.
//!
//! An input is a record; the target adds its checksum, which no mutation would find. After a `=` it is the whole object.

#![no_main]

use bytes::Bytes;
use coordinator::event::{
    BlockRefined, BlockScored, BlockUpdated, BlockWeighed, CostCurve, CutChosen, Evaluated, Event, History, LayerCurve,
    Materialised, Prepared, RoundDone, ShardCalibrated, ShotCorrected, SweepSeconds,
};
use coordinator::journal::{Journal, replay};
use futures::executor::block_on;
use fuzz::plant;
use libfuzzer_sys::fuzz_target;
use service::{Store, keys};
use types::{
    BlockDescription, CorrectionReport, DampingStep, DataDescription, ElementCut, Evaluation, FactorDamping, LayerCut,
    LayerDescription, LayerId, LayerReport, LayerState, ModelDescription, ObjectRef, Precision, RunId, RunSpec, Shape,
    ShapeChoice, Sizes, Target, UnitGroup, UnitKind,
};

/// Says that an input is an object of the store as it is.
const RAW: u8 = b'=';

fuzz_target!(init: plant(seeds), |input: &[u8]| {
    let object = match input.split_first() {
        Some((&RAW, object)) => object.to_vec(),
        _ => sealed(input),
    };
    block_on(check(object));
});

async fn check(object: Vec<u8>) {
    let (store, run) = (Store::memory(), run());
    store.put(&keys::record(&run, 1), Bytes::from(object)).await.expect("memory takes an object");
    let Ok(records) = replay(&store, &run).await else { return };
    let [(stored, event)] = records.as_slice() else { panic!("{} records of one object", records.len()) };
    assert_eq!(stored.sequence, 1);
    fold(event);
    let (journal, _) =
        Journal::open(store.clone(), run.clone(), "writer".to_owned()).await.expect("it was read before");
    let again = journal.append(event, stored.time_ms).await.expect("what was read can be written");
    assert_eq!((again.sequence, again.time_ms), (2, stored.time_ms));
    let records = replay(&store, &run).await.expect("what was written can be read");
    assert_eq!(records.get(1), Some(&(again, event.clone())));
}

/// Folds an event, on its own and after itself, and asks for all that a history tells.
fn fold(event: &Event) {
    let mut history = History::default();
    history.apply(event.clone());
    let once = history.clone();
    history.apply(event.clone());
    let counts = match event {
        Event::ShotTakenBack { .. } | Event::Inherited { .. } => true,
        Event::RoundDone(done) => done.round > 0,
        _ => false,
    };
    if !counts {
        assert_eq!(history, once, "a repeated step does no harm");
    }
    let _ = (history.written(), history.shape(), history.planned_shots(), history.shots_done(), event.shot());
    for shot in history.shots.keys().copied() {
        let _ = (history.is_last(shot), history.checkpoint(shot), history.sizes(shot), history.checkpoint_after(shot));
    }
}

fn run() -> RunId {
    RunId::new("r1").expect("a good name")
}

fn sealed(record: &[u8]) -> Vec<u8> {
    let crc = format!(r#"{{"crc32c":{},"record":"#, crc32c::crc32c(record));
    [crc.as_bytes(), record, b"}"].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let records = events().into_iter().map(|event| block_on(record(&event)));
    let mut all: Vec<_> = records.collect();
    let whole = [b"=".as_slice(), &sealed(&all[0])].concat();
    all.push(whole);
    all
}

/// Returns the record that a journal makes of an event.
async fn record(event: &Event) -> Vec<u8> {
    let (journal, _) = Journal::open(Store::memory(), run(), "writer".to_owned()).await.expect("an empty store opens");
    journal.append(event, 1_700_000_000_000).await.expect("memory takes a record").json.into_bytes()
}

/// Returns an event of each kind, without those that differ from another in numbers only.
fn events() -> Vec<Event> {
    let spec = RunSpec::new("/m", "/d", "/o", Target::Size(0.5));
    let layer = LayerId::new("model.layers.0.mlp.down_proj").expect("a good name");
    let object = |key: &str| ObjectRef { key: key.to_owned(), blake3: "0".repeat(64), bytes: 9 };
    let step = Some(DampingStep { lambda: 0.1, precision: Precision::F32, raised: 0 });
    let damping = FactorDamping { a: step, g: None, floored: Some(0.5) };
    let report = || LayerReport { layer: layer.clone(), removed: 1, left: 1, predicted: 0.5, damping };
    let state = || LayerState {
        layer: layer.clone(),
        kind: UnitKind::FfnChannel,
        kept: vec![0, 2],
        kept_rows: vec![],
        zeros: 0,
        weights: Some(object("w")),
    };
    let correction = CorrectionReport { loss_before: 1.0, loss_after: 0.5, steps_done: 2, steps_kept: 1 };
    let scored = BlockScored { shot: 1, block: 0, scores: object("s"), seconds: 0.5, peak_memory: 1 };
    vec![
        Event::Created { spec: spec.clone(), request_id: "request".into() },
        Event::TakenOver { epoch: 2 },
        Event::Inherited {
            from: run(),
            events: vec![Event::Created { spec, request_id: String::new() }, Event::BlockScored(scored.clone())],
        },
        Event::Prepared(Prepared { model: model(&layer), data: data(), eval_data: Some(data()), seconds: 0.5 }),
        Event::Evaluated(Evaluated {
            shot: 0,
            evaluation: Evaluation {
                loss: 1.0,
                perplexity: 2.7,
                segments: 1,
                segments_in_data: 1,
                seq_len: 8,
                dtype: "f32".to_owned(),
                data: data(),
            },
            tokens: 8,
            seconds: 0.5,
            peak_memory: 9,
        }),
        Event::ShotOpened { shot: 1, limit: History::UNDECIDED },
        Event::ShardCalibrated(ShardCalibrated {
            shot: 1,
            shard: 0,
            loss_sum: 1.5,
            targets: 7,
            tokens: 8,
            seconds: SweepSeconds::default(),
            factor_bytes: 9,
            peak_memory: 9,
        }),
        Event::BlockWeighed(BlockWeighed { shot: 1, pass: 0, block: 0, seconds: 0.5 }),
        Event::BlockScored(scored),
        Event::BlockRefined(BlockRefined { shot: 1, block: 0, histograms: object("h"), seconds: 0.5 }),
        Event::CutChosen(CutChosen {
            shot: 1,
            cuts: vec![LayerCut {
                layer: layer.clone(),
                steps: 1,
                elements: Some(ElementCut { bits: 1, ties: 0, items: 1 }),
            }],
            threshold: Some(0.5),
            predicted: None,
            predicted_other_shape: None,
            shape: Some(ShapeChoice { shape: Shape::Uniform, reason: "r".to_owned() }),
            freed_prunable: 4,
            damped_layers: 0,
            largest_damping: 0.1,
            layers: vec![report()],
            curve: Some(CostCurve {
                model: vec![(9, 0.0), (4, 0.5)],
                layers: vec![LayerCurve { layer: layer.clone(), points: vec![(0.5, 0.5)] }],
            }),
        }),
        Event::BlockUpdated(BlockUpdated {
            shot: 1,
            block: 0,
            layers: vec![state()],
            predicted: vec![0.5],
            seconds: 0.5,
            peak_memory: 1 << 30,
        }),
        Event::RoundDone(RoundDone {
            shot: 1,
            round: 0,
            checkpoint: "c".to_owned(),
            predicted: vec![(layer.clone(), 0.5)],
        }),
        Event::ShotCommitted {
            shot: 1,
            checkpoint: "c".to_owned(),
            sizes: Sizes::default(),
            layers: vec![report()],
            predicted: 0.5,
        },
        Event::ShotTakenBack { shot: 1, measured: 0.5, freed: 4 },
        Event::ShotCorrected(ShotCorrected {
            shot: 1,
            checkpoint: "c".to_owned(),
            layers: vec![state()],
            report: correction,
            seconds: 0.5,
            peak_memory: 9,
        }),
        Event::Materialised(Materialised {
            shot: 1,
            output: "/o".to_owned(),
            blake3: "0".repeat(64),
            bytes: 9,
            logit_difference: 0.0,
            seconds: 0.5,
            peak_memory: 1 << 30,
        }),
        Event::Paused,
        Event::Succeeded,
        Event::Failed { code: "C".to_owned(), reason: "r".to_owned() },
        Event::Cancelled,
    ]
}

fn data() -> DataDescription {
    DataDescription {
        digest: "0".repeat(64),
        tokenizer_digest: "0".repeat(64),
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

fn model(layer: &LayerId) -> ModelDescription {
    let described = LayerDescription {
        layer: layer.clone(),
        rows: 4,
        columns: 8,
        bias: false,
        input: layer.clone(),
        curvature: true,
    };
    let group = UnitGroup {
        layer: layer.clone(),
        kind: UnitKind::FfnChannel,
        units: 8,
        together: 1,
        min_keep: 1,
        columns_per_unit: 1,
        freed_per_unit: Sizes { prunable: 12, parameters: 12, bytes: 48 },
    };
    ModelDescription {
        family: "llama".to_owned(),
        digest: "0".repeat(64),
        hidden: 4,
        vocabulary: 16,
        max_positions: 32,
        dense: Sizes { prunable: 96, parameters: 200, bytes: 800 },
        blocks: vec![BlockDescription { block: 0, layers: vec![described], groups: vec![group] }],
        own_widths_refused: String::new(),
    }
}
