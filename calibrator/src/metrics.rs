//! What a calibrator counts. `docs/telemetry.json` lists it.

use crate::shelf::Shelf;
use model::device::memory_used;
use model::sweep::SweepTimes;
use opentelemetry::metrics::Counter;
use service::telemetry::metrics::{self, KeyValue};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tch::Device;

struct Instruments {
    tokens: Counter<u64>,
    sent: Counter<u64>,
    time: Counter<f64>,
}

const PARTS: [&str; 5] = ["forward", "head", "backward", "gram", "wait"];

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| {
    let meter = metrics::meter();
    let time = meter.f64_counter("llm_surgeon.calibrator.sweep.time").with_unit("s");
    let time = time.with_description("time of sweeps by part").build();
    for part in PARTS {
        time.add(0.0, &[KeyValue::new("part", part)]);
    }
    Instruments {
        tokens: metrics::counter("llm_surgeon.calibrator.tokens", "{token}", "tokens swept", &[&[]]),
        sent: metrics::counter("llm_surgeon.calibrator.factors.sent", "By", "factor bytes sent", &[&[]]),
        time,
    }
});

/// Tells of the shelf and the device whenever somebody asks.
pub(crate) fn watch(shelf: &Arc<Shelf>, device: Device) {
    LazyLock::force(&INSTRUMENTS);
    let shelf = Arc::downgrade(shelf);
    let about = "finished blocks that no surgeon has stored yet";
    metrics::gauge("llm_surgeon.calibrator.factors.waiting", "{block}", about, move || {
        shelf.upgrade().map(|shelf| (shelf.status().waiting.len() as f64, Vec::new())).into_iter().collect()
    });
    metrics::watch_device(move || memory_used(device));
}

/// Counts bytes of factors that go to a surgeon.
pub(crate) fn sent(bytes: usize) {
    INSTRUMENTS.sent.add(bytes as u64, &[]);
}

/// Counts a sweep.
pub(crate) fn swept(tokens: u64, times: &SweepTimes, wait: Duration) {
    INSTRUMENTS.tokens.add(tokens, &[]);
    for (part, time) in PARTS.iter().zip([times.forward, times.head, times.backward, times.gram, wait]) {
        INSTRUMENTS.time.add(time.as_secs_f64(), &[KeyValue::new("part", *part)]);
    }
}
