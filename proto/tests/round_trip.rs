//! Every value survives the wire; nothing else gets through.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proto::convert::{
    MAX_PATHS, MAX_SIZE, MAX_STEPS, MAX_TEXT, path_messages, run_name, run_of_name, spec_without_data, spec_without_end,
};
use proto::{InvalidMessage, v1};
use types::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 /*äß._-]{1,40}"
}

fn layer() -> impl Strategy<Value = LayerId> {
    "[a-z]{1,8}(\\.[a-z0-9_]{1,8}){0,3}".prop_map(|s| LayerId::new(&s).unwrap())
}

fn sizes(max: u64) -> impl Strategy<Value = Sizes> {
    (0..=max, 0..=max, 0..=max).prop_map(|(prunable, parameters, bytes)| Sizes { prunable, parameters, bytes })
}

fn rising() -> impl Strategy<Value = Vec<u32>> {
    btree_set(any::<u32>(), 0..40).prop_map(|s| s.into_iter().collect())
}

prop_compose! {
    fn choices()(
        attention_unit in select(AttentionUnit::ALL),
        scoring in select(Scoring::ALL),
        update in select(Update::ALL),
        curvature in select(Curvature::ALL),
        fisher in select(Fisher::ALL),
        schedule in select(Schedule::ALL),
        shot_data in select(ShotData::ALL),
        damping_scale in select(DampingScale::ALL),
        dtype in select(Dtype::ALL),
        boundary_dtype in select(Dtype::ALL),
        (shape, format, gguf_type) in (select(Shape::ALL), select(Format::ALL), select(GgufType::ALL)),
        target in prop_oneof![
            (1e-6..=1.0).prop_map(Target::Size),
            (1..u64::MAX).prop_map(Target::Parameters),
            (1..u64::MAX).prop_map(Target::Bytes),
        ],
        structure in select(Structure::ALL),
        (n, more) in (1..32u32, 1..32u32),
        max_correlate in 1..=65_536u32,
    ) -> RunSpec {
        let update = if curvature == Curvature::Diagonal { Update::None } else { update };
        let undecided = shape == Shape::Auto && schedule == Schedule::Adaptive;
        let padded = shape == Shape::Padded && !matches!(target, Target::Size(_));
        let shape = if undecided || padded { Shape::Uniform } else { shape };
        let coupled = RunSpec {
            model: String::new(), data: vec![], eval_data: vec![], text_column: String::new(), output: String::new(),
            target, waypoints: vec![], structure: Structure::Coupled, pattern: None, max_correlate, attention_unit, sub_blocks: false, shape, scoring, update, curvature, kronecker_rank: 1, half_steps: 0, rounds: 1, fisher, fisher_samples: 1, shards: 3, max_poison_fraction: 0.0, shots: 1,
            schedule, max_rise: 0.1, shot_data, decay: 0.0, correct_rank: 0, correct_steps: 1, correct_rate: 0.0, damping_scale, samples: 1, seq_len: 2, eval_samples: 0, damping_a: 0.0, damping_g: 0.0, max_damped_layers: 0,
            multiple_of: 1, format, gguf_type, seed: 0, dtype, boundary_dtype, memory: 1 << 20, keep_paths: false, paths_of: None,
        };
        match target {
            Target::Size(_) if structure == Structure::NofM => RunSpec {
                structure, pattern: Some(Pattern { n, m: n + more }), target: Target::Size(1.0), shape: Shape::PerLayer,
                ..coupled
            },
            Target::Size(_) if structure == Structure::Element =>
                RunSpec { structure, shape: Shape::PerLayer, ..coupled },
            _ if matches!(update, Update::Grouped | Update::TwoSided) => RunSpec { update: Update::None, ..coupled },
            Target::Size(_) if structure == Structure::RowColumn =>
                RunSpec { structure, shape: Shape::PerLayer, ..coupled },
            _ => coupled,
        }
    }
}

prop_compose! {
    fn spec()(
        choices in choices(),
        (model, data, eval_data, text_column, output) in (text(), vec(text(), 1..4), vec(text(), 0..4), text(), text()),
        (shots, samples, seq_len, eval_samples) in (1..=1000u32, 1..=10_000_000u64, 2..=1_048_576u64, any::<u64>()),
        (correct_rank, correct_steps, correct_rate) in (0..=4096u32, 1..=1_000_000u32, 0.0..=1.0),
        (damping_a, damping_g, decay) in (0.0..=10.0, 0.0..=10.0, 0.0..=1.0),
        (max_damped_layers, multiple_of, seed, memory) in
            (any::<u32>(), 1..=65_536u32, any::<u64>(), (1u64 << 20)..=u64::MAX),
        (keep_paths, paths_of) in prop_oneof![
            any::<bool>().prop_map(|keep| (keep, None)),
            "[a-z][a-z0-9-]{0,20}[a-z0-9]".prop_map(|run| (false, RunId::new(&run).ok())),
        ],
        (half_steps, rounds, max_poison_fraction) in (0..=16u32, 1..=64u32, 0.0..1.0),
    ) -> RunSpec {
        let half_steps = if choices.curvature == Curvature::Kfac { half_steps } else { 0 };
        let decay = if half_steps > 0 { 0.0 } else { decay };
        let takes_rounds = choices.structure.takes_rounds(choices.update, choices.curvature);
        let rounds = if takes_rounds { rounds } else { 1 };
        let adapts = !eval_data.is_empty() && !choices.structure.is_masked();
        let schedule = if adapts { choices.schedule } else { Schedule::Linear };
        RunSpec {
            half_steps, rounds, schedule, model, data, eval_data, text_column, output, shots, samples, seq_len, eval_samples, damping_a, damping_g, decay,
            correct_rank, correct_steps, correct_rate,
            max_damped_layers, multiple_of, seed, memory, keep_paths, paths_of, max_poison_fraction, ..choices
        }
    }
}

prop_compose! {
    fn object()(key in "[a-z0-9/]{1,60}", blake3 in "[0-9a-f]{64}", bytes in 0..=MAX_SIZE) -> ObjectRef {
        ObjectRef { key, blake3, bytes }
    }
}

fn elements() -> impl Strategy<Value = ElementCut> {
    (any::<u32>(), 0..=MAX_SIZE, 0..=MAX_SIZE).prop_map(|(bits, ties, items)| ElementCut { bits, ties, items })
}

prop_compose! {
    fn state()(
        layer in layer(), kind in select(UnitKind::ALL), kept in rising(), kept_rows in rising(),
        zeros in 0..=MAX_SIZE, weights in option::of(object()),
    ) -> LayerState {
        LayerState { layer, kind, kept, kept_rows, zeros, weights }
    }
}

prop_compose! {
    fn group()(
        layer in layer(), kind in select(UnitKind::ALL), units in 0..=65_536u32, together in 1..=8u32,

        keep in any::<prop::sample::Index>(), columns_per_unit in 1..=512u32, freed_per_unit in sizes(1 << 30),
    ) -> UnitGroup {
        let min_keep = keep.index(units as usize + 1) as u32;
        UnitGroup { layer, kind, units, together, min_keep, columns_per_unit, freed_per_unit }
    }
}

prop_compose! {
    fn layer_description()(
        layer in layer(), input in layer(), rows in 0..=(1u64 << 20), columns in 0..=(1u64 << 20), bias in any::<bool>(),
        curvature in any::<bool>(),
    ) -> LayerDescription {
        LayerDescription { layer, rows, columns, bias, input, curvature }
    }
}

prop_compose! {
    fn model()(
        family in "[a-z0-9]{1,10}", digest in "[0-9a-f]{64}", hidden in 0..=MAX_SIZE, vocabulary in 0..=MAX_SIZE,
        max_positions in 0..=MAX_SIZE, dense in sizes(MAX_SIZE),
        blocks in vec((vec(layer_description(), 0..8), vec(group(), 0..3)), 0..4),
    ) -> ModelDescription {
        let numbered = |(n, (layers, groups))| BlockDescription { block: n as u32, layers, groups };
        let blocks = blocks.into_iter().enumerate().map(numbered).collect();
        ModelDescription { own_widths_refused: family.clone(), family, digest, hidden, vocabulary, max_positions, dense, blocks }
    }
}

prop_compose! {
    fn data()(
        digest in "[0-9a-f]{64}", tokenizer_digest in "[0-9a-f]{64}",
        n in proptest::array::uniform6(0..=MAX_SIZE), bos in any::<bool>(), sets in 1..=1000u32,
    ) -> DataDescription {
        let [documents, skipped, tokens, samples, seq_len, overlap] = n;
        DataDescription { digest, tokenizer_digest, documents, skipped, tokens, samples, sets, seq_len, overlap, bos }
    }
}

fn damping() -> impl Strategy<Value = FactorDamping> {
    let step = || {
        (0.0..=1e3, select(vec![Precision::F32, Precision::F64]), 0..9_u32)
            .prop_map(|(lambda, precision, raised)| DampingStep { lambda, precision, raised })
    };
    (option::of(step()), option::of(step()), option::of(0.0..=1.0)).prop_map(|(a, g, floored)| FactorDamping {
        a,
        g,
        floored,
    })
}

fn path() -> impl Strategy<Value = RemovalPath> {
    let unit = (select(UnitKind::ALL), 0..=1_u32 << 20).prop_map(|(kind, index)| Unit { kind, index });
    let step = (unit, any::<f64>().prop_filter("is a cost", |cost| cost.is_finite()), 0..=MAX_SIZE)
        .prop_map(|(unit, cost, freed)| PathStep { unit, cost, freed });
    (layer(), vec(step, 0..40), damping()).prop_map(|(layer, steps, damping)| RemovalPath { layer, steps, damping })
}

fn histogram() -> impl Strategy<Value = CostHistogram> {
    let bins = proptest::collection::btree_map(any::<u16>(), 1..=MAX_SIZE, 0..200);
    (layer(), bins, damping()).prop_map(|(layer, bins, damping)| CostHistogram {
        layer,
        bins: bins.into_iter().collect(),
        damping,
    })
}

/// Returns what arrives when `value` is sent: through the message type and its bytes.
fn through_the_wire<D, W>(value: D) -> Result<D, InvalidMessage>
where
    W: prost::Message + Default + From<D>,
    D: TryFrom<W, Error = InvalidMessage>,
{
    let bytes = W::from(value).encode_to_vec();
    D::try_from(W::decode(bytes.as_slice()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_spec_survives_the_wire(spec in spec()) {
        prop_assert_eq!(through_the_wire::<_, v1::RunSpec>(spec.clone()), Ok(spec));
    }

    #[test]
    fn descriptions_survive_the_wire(model in model(), data in data()) {
        prop_assert_eq!(through_the_wire::<_, v1::ModelDescription>(model.clone()), Ok(model));
        prop_assert_eq!(through_the_wire::<_, v1::DataDescription>(data.clone()), Ok(data));
    }

    #[test]
    fn cuts_and_states_survive_the_wire(state in state(), layer in layer(), steps in any::<u32>(), elements in option::of(elements())) {
        prop_assert_eq!(through_the_wire::<_, v1::LayerState>(state.clone()), Ok(state));
        let cut = LayerCut { layer, steps, elements };
        prop_assert_eq!(through_the_wire::<_, v1::LayerCut>(cut.clone()), Ok(cut));
    }

    #[test]
    fn paths_and_histograms_survive_the_wire(path in path(), histogram in histogram()) {
        prop_assert_eq!(through_the_wire::<_, v1::LayerPath>(path.clone()), Ok(path));
        prop_assert_eq!(through_the_wire::<_, v1::CostHistogram>(histogram.clone()), Ok(histogram));
    }

    #[test]
    fn an_accepted_description_can_be_planned_with(model in model()) {
        let smallest = model.smallest(1);
        prop_assert!(smallest.prunable <= model.dense.prunable);
    }
}

fn example() -> v1::RunSpec {
    v1::RunSpec::from(RunSpec::new("m", "d", "o", Target::Size(0.8)))
}

/// Finds one choice in a message.
type Place = fn(&mut v1::RunSpec) -> &mut i32;

/// Returns the fields that are refused.
fn refused(spec: v1::RunSpec) -> Vec<String> {
    RunSpec::try_from(spec).map_err(|e| e.violations.into_iter().map(|v| v.field).collect()).unwrap_err()
}

#[test]
fn every_unspecified_or_unknown_choice_is_refused_by_name() {
    let set: [(&str, Place); 14] = [
        ("format", |s| &mut s.format),
        ("gguf_type", |s| &mut s.gguf_type),
        ("shot_data", |s| &mut s.shot_data),
        ("damping_scale", |s| &mut s.damping_scale),
        ("structure", |s| &mut s.structure),
        ("attention_unit", |s| &mut s.attention_unit),
        ("shape", |s| &mut s.shape),
        ("scoring", |s| &mut s.scoring),
        ("update", |s| &mut s.update),
        ("curvature", |s| &mut s.curvature),
        ("fisher", |s| &mut s.fisher),
        ("schedule", |s| &mut s.schedule),
        ("dtype", |s| &mut s.dtype),
        ("boundary_dtype", |s| &mut s.boundary_dtype),
    ];
    for (field, place) in set {
        for value in [0, -1, 99] {
            let mut spec = example();
            *place(&mut spec) = value;
            assert_eq!(refused(spec), [field], "{value}");
        }
    }
    assert_eq!(refused(v1::RunSpec { target: None, ..example() }), ["target"]);
}

#[test]
fn faults_of_the_message_and_of_the_spec_are_reported_together_within_their_kind() {
    assert_eq!(refused(v1::RunSpec { structure: 0, shape: 7, ..example() }), ["structure", "shape"]);
    assert_eq!(refused(v1::RunSpec { shots: 0, model: String::new(), ..example() }), ["model", "shots"]);
    let message = RunSpec::try_from(v1::RunSpec { structure: 0, ..example() }).unwrap_err().to_string();
    assert_eq!(message, "invalid RunSpec: structure: is unspecified");
}

#[test]
fn oversized_messages_are_refused() {
    let long = "x".repeat(MAX_TEXT + 1);
    assert_eq!(refused(v1::RunSpec { model: long.clone(), ..example() }), ["model"]);
    assert_eq!(refused(v1::RunSpec { data: vec![long], ..example() }), ["data[0]"]);
    assert_eq!(refused(v1::RunSpec { data: vec!["x".into(); MAX_PATHS + 1], ..example() }), ["data"]);
    let sizes = v1::Sizes { prunable: u64::MAX, parameters: 0, bytes: 0 };
    assert!(Sizes::try_from(sizes).is_err());
}

#[test]
fn faults_deep_in_a_description_are_named_by_their_place() {
    let group = v1::UnitGroup {
        layer: "l".into(),
        kind: 1,
        units: 4,
        together: 1,
        min_keep: 5,
        columns_per_unit: 1,
        freed_per_unit: Some(v1::Sizes::default()),
    };
    let block = |groups| v1::BlockDescription { block: 0, layers: vec![], groups };
    let model = |block: v1::BlockDescription| v1::ModelDescription {
        family: "llama".into(),
        digest: "d".into(),
        dense: Some(v1::Sizes::default()),
        blocks: vec![block],
        ..Default::default()
    };
    let fault = |m: v1::ModelDescription| ModelDescription::try_from(m).unwrap_err().violations[0].field.clone();
    assert_eq!(fault(model(block(vec![group.clone()]))), "blocks[0].groups[0].min_keep");
    let greedy = v1::UnitGroup {
        min_keep: 1,
        freed_per_unit: Some(v1::Sizes { prunable: MAX_SIZE, ..Default::default() }),
        ..group
    };
    assert_eq!(fault(model(block(vec![greedy]))), "blocks[0].groups[0].freed_per_unit");
    assert_eq!(fault(model(v1::BlockDescription { block: 3, ..block(vec![]) })), "blocks[0].block");
    assert_eq!(fault(v1::ModelDescription { dense: None, ..model(block(vec![])) }), "dense");
}

#[test]
fn a_state_with_indices_out_of_order_is_refused() {
    for kept in [vec![1, 1], vec![2, 1]] {
        let state = v1::LayerState { layer: "l".into(), kind: 1, kept, kept_rows: vec![], zeros: 0, weights: None };
        assert_eq!(LayerState::try_from(state).unwrap_err().violations[0].field, "kept");
    }
}

#[test]
fn paths_and_histograms_that_cannot_be_are_refused_by_field() {
    let step = v1::PathStep { kind: 1, unit: 3, cost: 0.5, freed: 2 };
    let path = |step| v1::LayerPath { layer: "l".into(), steps: vec![step], damping: None };
    assert!(RemovalPath::try_from(path(step)).is_ok());
    let fault = |m: v1::LayerPath| RemovalPath::try_from(m).unwrap_err().violations[0].field.clone();
    for cost in [f64::NAN, f64::INFINITY] {
        assert_eq!(fault(path(v1::PathStep { cost, ..step })), "steps[0].cost");
    }
    assert_eq!(fault(path(v1::PathStep { kind: 0, ..step })), "steps[0].kind");
    assert_eq!(fault(path(v1::PathStep { unit: u32::MAX, ..step })), "steps[0].unit");
    assert_eq!(fault(v1::LayerPath { steps: vec![step; MAX_STEPS + 1], ..path(step) }), "steps");
    let lambda = Some(v1::DampingStep { lambda: f64::NAN, precision: 1, raised: 0 });
    let damping = Some(v1::FactorDamping { a: lambda, ..Default::default() });
    assert_eq!(fault(v1::LayerPath { damping, ..path(step) }), "damping.a.lambda");

    let histogram = |digits: &[u32], items: &[u64]| {
        let (digits, items, damping) = (digits.to_vec(), items.to_vec(), Some(v1::FactorDamping::default()));
        CostHistogram::try_from(v1::CostHistogram { layer: "l".into(), digits, items, damping })
    };
    assert_eq!(histogram(&[0, 1, 65_534], &[1, 2, 3]).unwrap().bins, [(0, 1), (1, 2), (65_535, 3)]);
    let cases: [(&[u32], &[u64], &str); 5] = [
        (&[0, 0], &[1, 1], "digits"),
        (&[1, u32::MAX], &[1, 1], "digits"),
        (&[65_536], &[1], "digits"),
        (&[1, 2], &[1], "items"),
        (&[1], &[0], "items"),
    ];
    for (digits, items, field) in cases {
        assert_eq!(histogram(digits, items).unwrap_err().violations[0].field, field, "{digits:?} {items:?}");
    }
    let (digits, items) = (vec![1; 65_537], vec![1; 65_537]);
    assert_eq!(histogram(&digits, &items).unwrap_err().violations[0].field, "digits");
}

#[test]
fn a_block_of_full_histograms_stays_below_the_limit_of_a_message() {
    // As many items as a layer can have, spread so that their counts take the most bytes.
    let bins = (0..=u16::MAX).map(|digit| (digit, 1 << 24)).collect();
    let layer = LayerId::new(&"x".repeat(200)).unwrap();
    let full = CostHistogram { layer, bins, damping: FactorDamping::default() };
    let request = v1::ReportCostHistogramRequest { histograms: vec![full.into(); 7], ..Default::default() };
    assert!(proto::encoded_bytes(&request) < proto::MAX_MESSAGE_BYTES * 5 / 8, "{}", proto::encoded_bytes(&request));
}

#[test]
fn a_long_path_comes_in_messages_below_the_limit() {
    let unit = Unit { kind: UnitKind::Column, index: 1 << 20 };
    let step = PathStep { unit, cost: 1e-300, freed: MAX_SIZE };
    let damping = FactorDamping { floored: Some(0.5), ..Default::default() };
    let layer = LayerId::new("l").unwrap();
    for (steps, messages) in [(0, 1), (1, 1), (MAX_STEPS, 1), (MAX_STEPS + 1, 2), (1 << 20, 16)] {
        let path = RemovalPath { layer: layer.clone(), steps: vec![step; steps], damping };
        let parts = path_messages(&path);
        assert_eq!(parts.len(), messages);
        assert!(parts.iter().all(|part| proto::encoded_bytes(part) < proto::MAX_MESSAGE_BYTES / 2));
        assert!(parts[0].damping.is_some() && parts[1..].iter().all(|part| part.damping.is_none()));
        assert_eq!(parts.iter().map(|part| part.steps.len()).sum::<usize>(), steps);
    }
}

#[test]
fn a_run_is_named_by_its_resource_name() {
    let run = RunId::new("abc-1").unwrap();
    assert_eq!(run_of_name("name", &run_name(&run)), Ok(run));
    for bad in ["abc", "runs/", "runs/../x", "runs/a/b"] {
        assert!(run_of_name("name", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_caller_without_a_run_may_leave_out_where_it_ends() {
    let full: v1::RunSpec = RunSpec::new("m", "d", "o", Target::Size(0.5)).into();
    let endless = v1::RunSpec { output: String::new(), target: None, ..full.clone() };
    let spec = spec_without_end(Some(endless.clone())).unwrap();
    assert_eq!(spec.target, Target::Size(1.0));
    assert!(RunSpec::try_from(endless.clone()).is_err(), "a run may not");
    let bare = v1::RunSpec { data: vec![], ..endless };
    let fields = |refused: InvalidMessage| refused.violations.into_iter().map(|v| v.field).collect::<Vec<_>>();
    assert_eq!(fields(spec_without_end(Some(bare.clone())).unwrap_err()), ["spec.data"]);
    assert!(spec_without_data(Some(bare)).is_ok());
    assert_eq!(fields(spec_without_end(None).unwrap_err()), ["spec"]);
    assert_eq!(spec_without_end(Some(full.clone())).unwrap(), RunSpec::try_from(full).unwrap());
}
