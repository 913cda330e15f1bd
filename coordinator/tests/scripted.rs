//! The coordinator against scripted workers: no tensors, the real contract, the real journal.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "scripted/hand.rs"]
mod hand;
#[path = "scripted/reports.rs"]
mod reports;

use bytes::Bytes;
use coordinator::{Coordinator, Deployment};
use hand::Hand;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::coordinator_service_client::CoordinatorServiceClient;
use proto::v1::task::Work;
use proto::v1::worker_service_client::WorkerServiceClient;
use service::Wire;
use service::status;
use service::store::Store;
use service::transport::{Connector, MemoryNetwork};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use types::{
    Checkpoint, CostHistogram, DataDescription, FactorDamping, LayerId, LayerState, ModelDescription, PathStep,
    RemovalPath, RunReport, RunSpec, Shape, Sizes, Structure, Target, Unit, UnitKind,
};

const BLOCKS: u32 = 3;
const CHANNELS: u32 = 20;
const GROUPS: u32 = 4;

fn spec() -> RunSpec {
    RunSpec {
        eval_data: vec!["e".into()],
        shape: Shape::PerLayer,
        shots: 3,
        correct_rank: 1,
        samples: 8,
        seq_len: 16,
        eval_samples: 2,
        max_damped_layers: 0,
        multiple_of: 2,
        memory: 1 << 20,
        ..RunSpec::new("m", "d", "o", Target::Size(0.6))
    }
}

fn layer(block: u32, name: &str) -> LayerId {
    LayerId::new(&format!("model.layers.{block}.{name}")).unwrap()
}

fn sizes(prunable: u64) -> Sizes {
    Sizes { prunable, parameters: prunable, bytes: 4 * prunable }
}

fn model() -> ModelDescription {
    let group = |block, name: &str, kind, units, freed| types::UnitGroup {
        layer: layer(block, name),
        kind,
        units,
        together: 1,
        min_keep: 1,
        columns_per_unit: 1,
        freed_per_unit: sizes(freed),
    };
    let described = |block, name: &str| types::LayerDescription {
        layer: layer(block, name),
        rows: 8,
        columns: 20,
        bias: false,
        input: layer(block, name),
        curvature: true,
    };
    let blocks = (0..BLOCKS).map(|block| types::BlockDescription {
        block,
        layers: vec![described(block, "o_proj"), described(block, "down_proj")],
        groups: vec![
            group(block, "o_proj", UnitKind::KvGroup, GROUPS, 100),
            group(block, "down_proj", UnitKind::FfnChannel, CHANNELS, 30),
        ],
    });
    let per_block = u64::from(GROUPS) * 100 + u64::from(CHANNELS) * 30;
    ModelDescription {
        family: "llama".into(),
        digest: "aa".into(),
        hidden: 8,
        vocabulary: 10,
        max_positions: 64,
        dense: sizes(u64::from(BLOCKS) * per_block),
        blocks: blocks.collect(),
        own_widths_refused: String::new(),
    }
}

fn data() -> DataDescription {
    DataDescription {
        digest: "d".into(),
        tokenizer_digest: "t".into(),
        documents: 1,
        skipped: 0,
        tokens: 1000,
        samples: 8,
        sets: 1,
        seq_len: 16,
        overlap: 0,
        bos: false,
    }
}

/// Returns what a worker would compute: a function of the task alone, as for the real ones. Says nothing once the coordinator
/// does not take what goes before.
async fn work(hand: &Hand, task: &v1::Task) -> Result<TaskResult, tonic::Status> {
    let store = &hand.store;
    let checkpoint = async |key: &str| match key {
        "" => Checkpoint::default(),
        key => serde_json::from_slice(&store.get(key).await.unwrap()).unwrap(),
    };
    let masked = task.spec.as_ref().unwrap().structure() == v1::Structure::Element;
    Ok(match task.work.clone().unwrap() {
        Work::Prepare(_) => TaskResult::Prepare(v1::PrepareResult {
            model: Some(model().into()),
            data: Some(data().into()),
            eval_data: Some(data().into()),
        }),
        Work::Calibrate(w) => TaskResult::Calibrate(v1::CalibrateResult {
            loss_sum: 3.0 * w.samples as f64 + w.first_sample as f64,
            targets: w.samples,
            tokens: w.samples * 16,
            ..v1::CalibrateResult::default()
        }),
        Work::Score(w) if w.gather_only => TaskResult::Score(v1::ScoreResult::default()),
        Work::Weigh(_) => TaskResult::Weigh(v1::WeighResult { compute_seconds: 0.1 }),
        Work::Score(w) if masked => {
            let scores = Some(hand.report_histograms(task, &histograms(w.block, None)).await?);
            TaskResult::Score(v1::ScoreResult { scores, compute_seconds: 0.1, peak_memory_bytes: 1 << 20 })
        }
        Work::Score(w) => {
            let before = checkpoint(&w.checkpoint).await;
            let scores = Some(hand.report_paths(task, &paths(&before, w.block)).await?);
            TaskResult::Score(v1::ScoreResult { scores, compute_seconds: 0.1, peak_memory_bytes: 1 << 20 })
        }
        Work::Refine(w) => {
            let histograms = histograms(w.block, Some(w.digit as u16));
            let histograms = Some(hand.report_histograms(task, &histograms).await?);
            TaskResult::Refine(v1::RefineResult { histograms, compute_seconds: 0.1 })
        }
        Work::Update(_) if masked => {
            let state = |cut: &v1::LayerCut| LayerState {
                layer: LayerId::new(&cut.layer).unwrap(),
                kind: UnitKind::Element,
                kept: vec![],
                kept_rows: vec![],
                zeros: cut.elements.unwrap().items,
                weights: None,
            };
            let layers: Vec<v1::LayerState> = hand.cut(task).await?.iter().map(|cut| state(cut).into()).collect();
            TaskResult::Update(v1::UpdateResult {
                predicted: vec![0.5; layers.len()],
                layers,
                compute_seconds: 0.1,
                peak_memory_bytes: 1 << 20,
            })
        }
        Work::Update(w) => {
            let before = checkpoint(&w.checkpoint).await;
            let paths: Vec<RemovalPath> = serde_json::from_slice(&store.get(&w.scores).await.unwrap()).unwrap();
            let mut result = v1::UpdateResult::default();
            for (path, cut) in paths.iter().zip(&hand.cut(task).await?) {
                assert_eq!(path.layer.as_str(), cut.layer);
                let gone: Vec<u32> = path.steps[..cut.steps as usize].iter().map(|s| s.unit.index).collect();
                let mut kept = left(&path.layer, &before);
                kept.retain(|unit| !gone.contains(unit));
                let kind = path.steps.first().map_or(UnitKind::FfnChannel, |s| s.unit.kind);
                let state =
                    LayerState { layer: path.layer.clone(), kind, kept, kept_rows: vec![], zeros: 0, weights: None };
                result.layers.push(state.into());
                result.predicted.push(path.steps[..cut.steps as usize].iter().map(|s| s.cost).sum());
            }
            TaskResult::Update(result)
        }
        Work::Correct(w) => {
            let mut state = checkpoint(&w.checkpoint).await.layers.pop().unwrap();
            let content = Bytes::from_static(b"corrected");
            let (key, blake3) = (format!("runs/{}/weights", task.run), blake3::hash(&content).to_hex().to_string());
            state.weights = Some(types::ObjectRef { key: key.clone(), blake3, bytes: content.len() as u64 });
            store.put(&key, content).await.unwrap();
            TaskResult::Correct(v1::CorrectResult {
                layers: vec![state.into()],
                loss_before: 1.0,
                loss_after: 0.5,
                steps_done: 3,
                steps_kept: 2,
                peak_memory_bytes: 1,
            })
        }
        Work::Evaluate(w) => TaskResult::Evaluate(evaluated(&checkpoint(&w.checkpoint).await)),
        Work::Materialise(w) => TaskResult::Materialise(written(&w.report_json)),
    })
}

/// Returns what a surgeon says of a folder with this report.
fn written(report_json: &str) -> v1::MaterialiseResult {
    v1::MaterialiseResult {
        output: "o".into(),
        blake3: blake3::hash(report_json.as_bytes()).to_hex().to_string(),
        bytes: 1,
        logit_difference: 0.0,
        peak_memory_bytes: 1 << 20,
    }
}

/// Returns a loss that every unit that is gone raises by a half.
fn evaluated(checkpoint: &Checkpoint) -> v1::EvaluateResult {
    let layers = (0..BLOCKS).flat_map(|b| ["o_proj", "down_proj"].map(|name| layer(b, name)));
    let left: usize = layers.map(|layer| left(&layer, checkpoint).len()).sum();
    v1::EvaluateResult {
        loss: 64.0 - left as f64 / 2.0,
        segments: 2,
        segments_in_data: 5,
        tokens: 32,
        seconds: 0.5,
        peak_memory_bytes: 1,
    }
}

/// Returns the costs of a layer's weights, the same in every shot; many are equal.
fn costs(block: u32, name: &str) -> Vec<f32> {
    let salt = block * 31 + u32::try_from(name.len()).unwrap();
    (0..160_u32).map(|i| ((i * 7919 + salt * 104_729) % 97) as f32 / 1024.0).collect()
}

/// Returns the first digits of a block's costs, or the second ones of those with `prefix`.
fn histograms(block: u32, prefix: Option<u16>) -> Vec<CostHistogram> {
    let histogram = |name: &str| {
        let mut bins = BTreeMap::new();
        for bits in costs(block, name).into_iter().map(f32::to_bits) {
            let (upper, lower) = ((bits >> 16) as u16, (bits & 0xFFFF) as u16);
            match prefix {
                None => *bins.entry(upper).or_default() += 1,
                Some(prefix) if prefix == upper => *bins.entry(lower).or_default() += 1,
                Some(_) => {}
            }
        }
        CostHistogram { layer: layer(block, name), bins: bins.into_iter().collect(), damping: FactorDamping::default() }
    };
    ["o_proj", "down_proj"].map(histogram).into()
}

fn left(layer: &LayerId, checkpoint: &Checkpoint) -> Vec<u32> {
    let all = if layer.as_str().ends_with("o_proj") { GROUPS } else { CHANNELS };
    checkpoint.layer(layer).map_or_else(|| (0..all).collect(), |s| s.kept.clone())
}

/// Returns the paths of a block.
fn paths(before: &Checkpoint, block: u32) -> Vec<RemovalPath> {
    model().blocks[block as usize].groups.iter().map(|group| path(group, before, block)).collect()
}

/// Returns a path with marginal costs that differ by block and are not monotone.
fn path(group: &types::UnitGroup, before: &Checkpoint, block: u32) -> RemovalPath {
    let units = left(&group.layer, before);
    let steps = units.iter().take(units.len() - 1).map(|index| PathStep {
        unit: Unit { kind: group.kind, index: *index },
        cost: 1e-3 * f64::from((index * 7 + block * 3) % 11 + 1) * group.freed_per_unit.prunable as f64,
        freed: group.freed_per_unit.prunable,
    });
    RemovalPath { layer: group.layer.clone(), steps: steps.collect(), damping: FactorDamping::default() }
}

struct Site {
    store: Store,
    channel: Wire,
    stop: CancellationToken,
}

/// Says whether a sweep meets numbers that are not finite.
type Poison = fn(&v1::Task) -> bool;

/// What calibrators find in the samples, and what all workers were asked for.
#[derive(Clone)]
struct Script {
    /// What they cannot sweep.
    poison: Poison,
    /// All tasks, with who had them.
    seen: Arc<Mutex<Vec<(String, v1::Task)>>>,
}

impl Script {
    fn poisoned(poison: Poison) -> Self {
        Self { poison, seen: Arc::default() }
    }

    /// Returns what `of` finds in the tasks that were leased, in their order.
    fn asked<T>(&self, of: impl Fn(&str, &Work) -> Option<T>) -> Vec<T> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter_map(|(worker, task)| of(worker, task.work.as_ref().unwrap())).collect()
    }
}

/// Starts a coordinator on `store`, with a scripted calibrator and a scripted surgeon unless there are to be no `workers`.
async fn site(store: Store, workers: bool) -> Site {
    let site = idle_site(store).await;
    if workers {
        site.start(v1::WorkerRole::Calibrator, "calibrator", &Script::poisoned(|_| false));
        site.start(v1::WorkerRole::Surgeon, "surgeon", &Script::poisoned(|_| false));
    }
    site
}

/// Does the same with two calibrators that follow a script.
async fn poisoned_site(store: Store, script: &Script) -> Site {
    let site = idle_site(store).await;
    site.start(v1::WorkerRole::Calibrator, "calibrator-0", script);
    site.start(v1::WorkerRole::Calibrator, "calibrator-1", script);
    site.start(v1::WorkerRole::Surgeon, "surgeon", script);
    site
}

async fn idle_site(store: Store) -> Site {
    let stop = CancellationToken::new();
    let network = MemoryNetwork::new();
    let incoming = network.listen("coordinator").unwrap();
    let coordinator = Coordinator::open(store.clone(), 9).await.unwrap();
    tokio::spawn(coordinator.serve(incoming, Deployment::same_process(), None, stop.clone()));
    let channel = Connector::new(network).channel("memory://coordinator").unwrap();
    Site { store, channel, stop }
}

async fn scripted(hand: Hand, role: v1::WorkerRole, script: Script) {
    let (mut client, worker) = (hand.client(), hand.worker.clone());
    hand.register(role).await;
    loop {
        let Ok(leased) = hand.lease(100).await else { return };
        for task in leased {
            script.seen.lock().unwrap().push((worker.clone(), task.clone()));
            if matches!(task.work, Some(Work::Calibrate(_))) && (script.poison)(&task) {
                let fail = v1::FailTaskRequest {
                    request_id: format!("{}-{}", task.task_id, task.generation),
                    worker: worker.clone(),
                    task_id: task.task_id,
                    generation: task.generation,
                    failure: v1::FailureClass::Numerical.into(),
                    message: "the input of block 0 (samples [5]) is not finite".into(),
                    reason: status::Reason::NotFinite.name().into(),
                };
                if client.fail_task(fail).await.is_err() {
                    return;
                }
                continue;
            }
            let Ok(result) = work(&hand, &task).await else { return };
            if hand.complete(&task, result).await.is_err() {
                return;
            }
        }
    }
}

impl Site {
    fn start(&self, role: v1::WorkerRole, worker: &str, script: &Script) {
        tokio::spawn(scripted(self.hand(worker), role, script.clone()));
    }

    /// Returns a worker that does what a test says; it has not registered.
    fn hand(&self, worker: &str) -> Hand {
        Hand { channel: self.channel.clone(), store: self.store.clone(), worker: worker.to_owned() }
    }

    fn client(&self) -> CoordinatorServiceClient<Wire> {
        CoordinatorServiceClient::new(self.channel.clone())
    }

    async fn create(&self, spec: RunSpec) -> v1::Run {
        let request = v1::CreateRunRequest { spec: Some(spec.into()), ..v1::CreateRunRequest::default() };
        self.client().create_run(request).await.unwrap().into_inner().run.unwrap()
    }

    /// Follows a run to its end; returns how it ended and the journal's records.
    async fn watch(&self, name: &str) -> (v1::Run, Vec<String>) {
        let request = v1::WatchRunRequest { name: name.into(), from_sequence: 1 };
        let mut stream = self.client().watch_run(request).await.unwrap().into_inner();
        let mut records = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            match message.event.unwrap().event.unwrap() {
                v1::run_event::Event::RecordJson(json) => records.push(json),
                v1::run_event::Event::Ended(run) => return (run, records),
                v1::run_event::Event::Progress(_) | v1::run_event::Event::Heartbeat(_) => {}
            }
        }
        panic!("the stream ended without the run");
    }

    async fn report(&self, name: &str) -> RunReport {
        let request = v1::GetRunReportRequest { name: name.into() };
        let report = self.client().get_run_report(request).await.unwrap().into_inner();
        serde_json::from_str(&report.report_json).unwrap()
    }
}

/// Returns everything in a store.
async fn contents(store: &Store) -> BTreeMap<String, Bytes> {
    let mut all = BTreeMap::new();
    for key in store.list("runs").await.unwrap() {
        let bytes = store.get(&key).await.unwrap();
        all.insert(key, bytes);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_through_all_stages_and_meets_its_size() {
    let site = site(Store::memory(), true).await;
    let created = site.create(spec()).await;
    let (ended, records) = site.watch(&created.name).await;
    assert_eq!(ended.state(), v1::RunState::Succeeded, "{}", ended.reason);
    assert_eq!(ended.shots_done, 3);
    let report = site.report(&created.name).await;
    let limit = Target::Size(0.6).limit(&report.before);
    assert!(report.after.prunable <= limit, "{:?} against {limit}", report.after);
    assert!(limit - report.after.prunable < 100, "within one unit of the target: {:?}", report.after);
    assert_eq!(report.shots.len(), 3);
    assert!(report.shots.iter().all(|s| s.correction.is_some_and(|c| c.steps_kept == 2)));
    assert!(report.shots.windows(2).all(|s| s[1].sizes.prunable < s[0].sizes.prunable));
    let widths = report.kept.iter().filter(|k| k.kind == UnitKind::FfnChannel).map(|k| k.kept.len());
    assert!(widths.clone().all(|w| w % 2 == 0), "FFN widths are multiples of 2: {:?}", widths.collect::<Vec<_>>());
    assert!(records.last().unwrap().contains("succeeded"));
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn single_weights_go_by_one_exact_threshold_over_all_layers() {
    let site = site(Store::memory(), true).await;
    let created = site.create(RunSpec { structure: Structure::Element, target: Target::Size(0.8), ..spec() }).await;
    let (ended, records) = site.watch(&created.name).await;
    assert_eq!(ended.state(), v1::RunState::Succeeded, "{}", ended.reason);
    let report = site.report(&created.name).await;
    let limit = Target::Size(0.8).limit(&report.before);
    assert_eq!(report.after.prunable, limit, "to the weight");
    // The same by sorting all costs, in the order of layers and positions.
    let layers = || (0..BLOCKS).flat_map(|b| ["o_proj", "down_proj"].map(|name| (b, name)));
    let mut all: Vec<(f32, usize)> =
        layers().enumerate().flat_map(|(n, (b, name))| costs(b, name).into_iter().map(move |c| (c, n))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let going = &all[..(report.before.prunable - limit) as usize];
    for (n, (block, name)) in layers().enumerate() {
        let expected = going.iter().filter(|(_, of)| *of == n).count() as u64;
        let removed: u64 = report
            .shots
            .iter()
            .flat_map(|s| &s.layers)
            .filter(|l| l.layer == layer(block, name))
            .map(|l| l.removed)
            .sum();
        assert_eq!(removed, expected, "{name} of block {block}");
    }
    assert!(records.iter().any(|r| r.contains("block-refined")));
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_continued_from_any_prefix_of_its_journal_ends_in_the_same_place() {
    let report = continued_from_any_prefix(spec()).await;
    assert_eq!(report.shots.len(), 3);
    // More than two units at once are too many.
    let adaptive = RunSpec { schedule: types::Schedule::Adaptive, max_rise: 0.5, shots: 20, ..spec() };
    let report = continued_from_any_prefix(adaptive).await;
    assert!(report.shots.iter().any(|s| s.taken_back > 0), "{:?}", report.shots);
    let limit = Target::Size(0.6).limit(&report.before);
    assert!(report.after.prunable <= limit && report.shots.last().unwrap().limit == limit, "{:?}", report.shots);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_passes_of_a_power_iteration_continue_from_any_prefix_too() {
    // Samples for several shards: their numbers count on from pass to pass.
    let scoring = types::Scoring::Independent;
    let two = RunSpec { kronecker_rank: 2, half_steps: 2, scoring, shots: 2, samples: 512, ..spec() };
    let passes = two.passes();
    let shards = coordinator::shard_plan(&two, &model()).len();
    assert!(shards > 1);
    let whole = site(Store::memory(), true).await;
    let name = whole.create(two.clone()).await.name;
    let (_, records) = whole.watch(&name).await;
    let of = |event: &str| records.iter().filter(|r| r.contains(&format!("\"event\":\"{event}\""))).count();
    assert_eq!(of("shard-calibrated"), 2 * shards * (passes as usize + 1), "each pass sweeps each shard once");
    assert_eq!(of("block-weighed"), 2 * (passes * BLOCKS) as usize, "between the passes, each block once");
    whole.stop.cancel();
    continued_from_any_prefix(two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rounds_of_a_shot_continue_from_any_prefix_too() {
    let structure = types::Structure::Element;
    let rounds = RunSpec { structure, shape: types::Shape::PerLayer, rounds: 3, shots: 2, ..spec() };
    let report = continued_from_any_prefix(rounds.clone()).await;
    // The costs here are the same whatever is gone, so the rounds together take what one threshold would.
    let at_once = continued_from_any_prefix(RunSpec { rounds: 1, ..rounds }).await;
    assert_eq!(report.after, at_once.after);
    // A half for each of the two layers of each block, in every round.
    let predicted = 0.5 * 2.0 * f64::from(BLOCKS) * 3.0;
    assert!(report.shots.iter().all(|shot| (shot.predicted - predicted).abs() < 1e-9), "{:?}", report.shots);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shape_that_auto_comes_to_is_that_of_all_shots() {
    let auto = RunSpec { shape: Shape::Auto, shots: 2, ..spec() };
    let report = continued_from_any_prefix(auto.clone()).await;
    let choice = report.shape_choice.as_ref().unwrap();
    // Here the cheapest units lie unevenly, so equal widths cost more than a quarter more.
    assert_eq!(choice.shape, Shape::PerLayer, "{choice:?}");
    assert!(choice.reason.contains("nats per token"), "{choice:?}");
    let asked = continued_from_any_prefix(RunSpec { shape: Shape::PerLayer, ..auto }).await;
    assert_eq!((report.after, report.kept), (asked.after, asked.kept));
    assert_eq!(asked.shape_choice, None);
}

/// Runs `spec`, then once more from every prefix of its journal; returns the report, which is always the same.
async fn continued_from_any_prefix(spec: RunSpec) -> RunReport {
    continued_with(spec, |_| false).await
}

/// Does the same with samples of which a sweep cannot be done.
async fn continued_with(spec: RunSpec, poison: Poison) -> RunReport {
    let script = Script::poisoned(poison);
    let whole = poisoned_site(Store::memory(), &script).await;
    let name = whole.create(spec.clone()).await.name;
    whole.watch(&name).await;
    let report = whole.report(&name).await;
    let all = contents(&whole.store).await;
    whole.stop.cancel();
    let journal: Vec<&String> = all.keys().filter(|k| k.contains("/journal/")).collect();
    assert!(journal.len() > 25);
    for keep in 0..journal.len() {
        let store = Store::memory();
        for (key, bytes) in &all {
            if !journal[keep..].contains(&key) {
                store.put(key, bytes.clone()).await.unwrap();
            }
        }
        let again = poisoned_site(store, &script).await;
        let created = again.create(spec.clone()).await;
        assert_eq!(created.name, name);
        let (ended, _) = again.watch(&name).await;
        assert_eq!(ended.state(), v1::RunState::Succeeded, "after {keep} records: {}", ended.reason);
        assert_eq!(again.report(&name).await, report, "after {keep} records");
        again.stop.cancel();
    }
    report
}

/// Four shards of two samples, of which one may be left out.
fn sharded() -> RunSpec {
    RunSpec { shards: 4, max_poison_fraction: 0.25, ..spec() }
}

fn swept(task: &v1::Task) -> &v1::CalibrateTask {
    let Some(Work::Calibrate(sweep)) = &task.work else { panic!("not a sweep: {task:?}") };
    sweep
}

fn third_shard(task: &v1::Task) -> bool {
    swept(task).first_sample == 4
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_poisoned_samples_continues_from_any_prefix_and_names_them() {
    let report = continued_with(sharded(), third_shard).await;
    let named = report.warnings.iter().filter(|w| w.contains("2 calibration samples") && w.ends_with("samples 4 to 5"));
    assert_eq!(named.count(), 3, "in every shot: {:?}", report.warnings);
    // 3 a sample, and the number of each shard's first one.
    let expected = (3.0 * 6.0 + 0.0 + 2.0 + 6.0) / 6.0;
    assert!(report.shots.iter().all(|s| (s.calibration_loss - expected).abs() < 1e-12), "{:?}", report.shots);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_shard_is_tried_on_both_calibrators_and_then_counts_nowhere() {
    let script = Script::poisoned(third_shard);
    let site = poisoned_site(Store::memory(), &script).await;
    // Both are there before it fails, or the same one would try again.
    while site.client().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers.len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let name = site.create(RunSpec { shots: 1, ..sharded() }).await.name;
    let (ended, records) = site.watch(&name).await;
    assert_eq!(ended.state(), v1::RunState::Succeeded, "{}", ended.reason);
    assert_eq!(records.iter().filter(|r| r.contains("\"event\":\"shard-quarantined\"")).count(), 1);
    let tried = script.asked(|worker, work| match work {
        Work::Calibrate(sweep) if sweep.first_sample == 4 => Some(worker.to_owned()),
        _ => None,
    });
    assert_eq!(tried.len(), 2, "{tried:?}");
    assert_ne!(tried[0], tried[1]);
    let scored = script.asked(|_, work| match work {
        Work::Score(w) => Some((w.gather_only, w.quarantined.clone())),
        _ => None,
    });
    let blocks = BLOCKS as usize;
    assert!(scored[..blocks].iter().all(|s| *s == (true, vec![])), "gathered first: {scored:?}");
    assert_eq!(scored[blocks..], vec![(false, vec![2]); blocks]);
    let updated = script.asked(|_, work| match work {
        Work::Update(w) => Some(w.quarantined.clone()),
        _ => None,
    });
    assert_eq!(updated, vec![vec![2]; blocks]);
    let corrected = script.asked(|_, work| match work {
        Work::Correct(w) => Some(w.left_out.clone()),
        _ => None,
    });
    assert_eq!(corrected, [[v1::SampleRange { first_sample: 4, samples: 2 }]]);
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_poisoned_samples_fail_the_run_and_the_flag_that_would_do_is_named() {
    let two_shards = |task: &v1::Task| matches!(swept(task).first_sample, 2 | 4);
    let unasked = RunSpec { max_poison_fraction: 0.0, ..sharded() };
    let (all, one, two) = (RunSpec { shards: 1, ..sharded() }, unasked, sharded());
    let whole = |_: &v1::Task| true;
    let cases: [(RunSpec, Poison, &[&str]); 3] = [
        (
            one,
            third_shard,
            &["2 of the shot's 8 samples (samples 4 to 5)", "--max-poison-fraction 0.25", "samples [5]"],
        ),
        (two, two_shards, &["4 of the shot's 8 samples (samples 2 to 5)", "0.25 at most", "--max-poison-fraction 0.5"]),
        (all, whole, &["8 of the shot's 8 samples (samples 0 to 7)", "--shards"]),
    ];
    for (spec, poison, words) in cases {
        let script = Script::poisoned(poison);
        let site = poisoned_site(Store::memory(), &script).await;
        let asks = spec.max_poison_fraction > 0.0;
        let name = site.create(spec).await.name;
        let (ended, _) = site.watch(&name).await;
        assert_eq!((ended.state(), ended.reason_code.as_str()), (v1::RunState::Failed, "NUMERICAL"));
        for word in words {
            assert!(ended.reason.contains(word), "'{word}' is not in: {}", ended.reason);
        }
        let gathers = script.asked(|_, work| matches!(work, Work::Score(w) if w.gather_only).then_some(()));
        assert!(asks || gathers.is_empty(), "who leaves nothing out scores while it sweeps");
        site.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_finite_the_second_time_counts() {
    // Attempts are counted from 1 under each coordinator.
    let script = Script::poisoned(|task| third_shard(task) && task.generation % (1 << 20) == 1);
    let site = poisoned_site(Store::memory(), &script).await;
    let name = site.create(RunSpec { max_poison_fraction: 0.0, ..sharded() }).await.name;
    let (ended, records) = site.watch(&name).await;
    assert_eq!(ended.state(), v1::RunState::Succeeded, "{}", ended.reason);
    assert!(!records.iter().any(|r| r.contains("shard-quarantined")));
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_a_later_pass_finds_poisoned_counts_in_no_pass_from_then_on() {
    let scoring = types::Scoring::Independent;
    let passes = RunSpec { kronecker_rank: 2, half_steps: 2, scoring, shots: 1, samples: 512, ..spec() };
    let passes = RunSpec { max_poison_fraction: 0.5, ..passes };
    let count = coordinator::shard_plan(&passes, &model()).len();
    assert!(count > 2);
    let poison = |task: &v1::Task| swept(task).pass == 1 && swept(task).first_sample == 0;
    let script = Script::poisoned(poison);
    let site = poisoned_site(Store::memory(), &script).await;
    let name = site.create(passes.clone()).await.name;
    let (ended, records) = site.watch(&name).await;
    assert_eq!(ended.state(), v1::RunState::Succeeded, "{}", ended.reason);
    let calibrated = records.iter().filter(|r| r.contains("\"event\":\"shard-calibrated\"")).count();
    assert_eq!(calibrated, count + 4 * (count - 1), "all in the first pass, one less in the other four");
    let lists: BTreeSet<(u32, Vec<u32>)> = (script.asked(|_, work| match work {
        Work::Weigh(w) if !w.gather_only => Some((w.pass, w.quarantined.clone())),
        Work::Score(w) if !w.gather_only => Some((4, w.quarantined.clone())),
        _ => None,
    }))
    .into_iter()
    .collect();
    assert_eq!(lists, (0..5).map(|pass| (pass, if pass == 0 { vec![] } else { vec![0] })).collect());
    site.stop.cancel();
    continued_with(passes, poison).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_below_what_can_remain_fails_before_any_sweep() {
    let site = site(Store::memory(), true).await;
    let created = site.create(RunSpec { target: Target::Size(0.05), ..spec() }).await;
    let (ended, records) = site.watch(&created.name).await;
    assert_eq!(ended.state(), v1::RunState::Failed);
    assert_eq!(ended.reason_code, "TARGET_UNREACHABLE");
    assert!(ended.reason.contains("at least 0.160"), "{}", ended.reason);
    assert!(!records.iter().any(|r| r.contains("shard-calibrated")));
    let next = site.create(RunSpec { target: Target::Size(0.05), ..spec() }).await;
    assert_ne!(next.name, created.name, "an ended run stays as it is; the same spec starts a new one");
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_continues_and_a_cancelled_one_does_not() {
    let quiet = site(Store::memory(), false).await; // no workers: the run waits in its first stage
    let created = quiet.create(spec()).await;
    let pause = v1::PauseRunRequest { name: created.name.clone(), ..v1::PauseRunRequest::default() };
    let paused = quiet.client().pause_run(pause).await.unwrap().into_inner().run.unwrap();
    assert_eq!(paused.state(), v1::RunState::Paused);
    assert_eq!(quiet.create(spec()).await.state(), v1::RunState::Running);
    let cancel = v1::CancelRunRequest { name: created.name.clone(), ..v1::CancelRunRequest::default() };
    let cancelled = quiet.client().cancel_run(cancel).await.unwrap().into_inner().run.unwrap();
    assert_eq!(cancelled.state(), v1::RunState::Cancelled);
    let reopened = site(quiet.store.clone(), false).await;
    let get = v1::GetRunRequest { name: created.name };
    let found = reopened.client().get_run(get).await.unwrap().into_inner().run.unwrap();
    assert_eq!(found.state(), v1::RunState::Cancelled, "an end is durable");
}

#[tokio::test(flavor = "multi_thread")]
async fn shots_and_layers_are_listed_page_by_page_as_the_report_says() {
    let site = site(Store::memory(), true).await;
    let created = site.create(spec()).await;
    site.watch(&created.name).await;
    let report = site.report(&created.name).await;
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListShotsRequest { parent: created.name.clone(), page_size: 2, page_token };
        let page = site.client().list_shots(request).await.unwrap().into_inner();
        assert!(page.shots.len() <= 2);
        names.extend(page.shots.into_iter().map(|shot| (shot.name, shot.predicted)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let told = report.shots.iter().map(|s| (format!("{}/shots/{}", created.name, s.shot), s.predicted));
    assert_eq!(names, told.collect::<Vec<_>>());
    let request = v1::ListLayersRequest { parent: names[0].0.clone(), ..v1::ListLayersRequest::default() };
    let layers = site.client().list_layers(request).await.unwrap().into_inner().layers;
    let told = report.shots[0].layers.iter().map(|layer| (layer.layer.to_string(), layer.removed));
    assert_eq!(layers.into_iter().map(|l| (l.layer, l.removed)).collect::<Vec<_>>(), told.collect::<Vec<_>>());
    for parent in ["runs/x", "runs/x/shots/1", &format!("{}/shots/9", created.name)] {
        let request = v1::ListLayersRequest { parent: parent.into(), ..v1::ListLayersRequest::default() };
        assert!(site.client().list_layers(request).await.is_err(), "{parent}");
    }
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_ended_is_told_of_as_before() {
    let site = site(Store::memory(), true).await;
    let created = site.create(spec()).await;
    let (ended, records) = site.watch(&created.name).await;
    let report = site.report(&created.name).await;
    // By now the coordinator has let go of what the journal says.
    for reader in [&site, &self::site(site.store.clone(), false).await] {
        let (again, read_again) = reader.watch(&created.name).await;
        assert_eq!(read_again, records);
        assert_eq!(again, ended);
        assert_eq!(reader.report(&created.name).await, report);
        let listed = reader.client().list_runs(v1::ListRunsRequest::default()).await.unwrap().into_inner().runs;
        assert_eq!(listed, std::slice::from_ref(&ended));
    }
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_a_run_that_is_cancelled_hears_of_that_and_of_no_pause() {
    let site = site(Store::memory(), false).await;
    let created = site.create(spec()).await;
    let watch = v1::WatchRunRequest { name: created.name.clone(), from_sequence: 1 };
    let mut stream = site.client().watch_run(watch).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let cancel = v1::CancelRunRequest { name: created.name, ..v1::CancelRunRequest::default() };
    site.client().cancel_run(cancel).await.unwrap();
    let ended = loop {
        let event = stream.message().await.unwrap().unwrap().event.unwrap().event.unwrap();
        if let v1::run_event::Event::Ended(run) = event {
            break run;
        }
    };
    assert_eq!(ended.state(), v1::RunState::Cancelled);
    site.stop.cancel();
}

/// Registers a worker and leases one task, the first that comes.
async fn lease_by_hand(site: &Site) -> v1::Task {
    let hand = site.hand("hand");
    hand.register(v1::WorkerRole::Calibrator).await;
    hand.lease(1).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_result_for_the_last_coordinator_is_not_taken_for_another_task() {
    let first = site(Store::memory(), false).await;
    first.create(spec()).await;
    let old = lease_by_hand(&first).await;
    let second = site(first.store.clone(), false).await;
    second.create(spec()).await;
    let new = lease_by_hand(&second).await;
    assert!(new.generation > old.generation, "{} and {}", old.generation, new.generation);
    let late = v1::CompleteTaskRequest {
        request_id: "late".into(),
        worker: "hand".into(),
        task_id: new.task_id, // numbers begin anew with each coordinator: the old task may have had the same
        generation: old.generation,
        seconds: 1.0,
        result: Some(work(&first.hand("hand"), &old).await.unwrap()),
    };
    let refused = WorkerServiceClient::new(second.channel.clone()).complete_task(late).await.unwrap_err();
    assert_eq!(status::reason_of(&refused), Some(status::Reason::GenerationStale));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_answers_once_and_refuses_another_body() {
    let site = site(Store::memory(), false).await;
    let ask = async |spec: RunSpec| {
        let request = v1::CreateRunRequest { request_id: "one".into(), spec: Some(spec.into()), validate_only: false };
        site.client().create_run(request).await
    };
    let first = ask(spec()).await.unwrap().into_inner().run.unwrap();
    assert_eq!(ask(spec()).await.unwrap().into_inner().run.unwrap().name, first.name);
    let refused = ask(RunSpec { shots: 4, ..spec() }).await.unwrap_err();
    assert_eq!(status::reason_of(&refused), Some(status::Reason::RequestIdReused));
    site.stop.cancel();
    let next = self::site(site.store.clone(), false).await;
    let spec = Some(RunSpec { shots: 4, ..spec() }.into());
    let request = v1::CreateRunRequest { request_id: "one".into(), spec, validate_only: false };
    let refused = next.client().create_run(request).await.unwrap_err();
    assert_eq!(status::reason_of(&refused), Some(status::Reason::RequestIdReused), "the next coordinator remembers");
    next.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_request_id_is_refused_as_ids_are_remembered() {
    let site = site(Store::memory(), false).await;
    let (request_id, spec) = ("x".repeat(129), Some(spec().into()));
    let request = v1::CreateRunRequest { request_id, spec, validate_only: false };
    let refused = site.client().create_run(request).await.unwrap_err();
    assert_eq!(status::reason_of(&refused), Some(status::Reason::MessageInvalid));
    site.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_run_that_stands_still_says_that_it_lives() {
    let site = site(Store::memory(), false).await;
    let created = site.create(spec()).await;
    lease_by_hand(&site).await; // its progress is shown, and stays as it is
    let request = v1::WatchRunRequest { name: created.name, from_sequence: 1 };
    let mut stream = site.client().watch_run(request).await.unwrap().into_inner();
    let start = tokio::time::Instant::now();
    loop {
        let event = stream.message().await.unwrap().unwrap().event.unwrap().event.unwrap();
        if matches!(event, v1::run_event::Event::Heartbeat(_)) {
            break;
        }
    }
    // Before the lease expires, for then no progress is shown any more.
    assert!(start.elapsed() < Duration::from_secs(17), "{:?}", start.elapsed());
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_libtorch_is_refused() {
    let site = site(Store::memory(), false).await;
    let register = async |worker: &str, libtorch: &str| {
        let request = v1::RegisterWorkerRequest {
            worker: worker.into(),
            role: v1::WorkerRole::Surgeon as i32,
            version: proto::VERSION.into(),
            libtorch: libtorch.into(),
            ..v1::RegisterWorkerRequest::default()
        };
        WorkerServiceClient::new(site.channel.clone()).register_worker(request).await
    };
    register("a", "2.11.0").await.unwrap();
    let refused = register("b", "2.12.0").await.unwrap_err();
    assert_eq!(status::reason_of(&refused), Some(status::Reason::VersionMismatch));
    site.stop.cancel();
}
