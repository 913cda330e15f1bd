//! What a surgeon counts. `docs/telemetry.json` lists it.

use crate::pull::Budget;
use model::device::memory_used;
use opentelemetry::metrics::{Counter, Histogram};
use service::telemetry::metrics;
use std::sync::LazyLock;
use tch::Device;
use types::FactorDamping;

/// Upper bounds of buckets for dampings, relative to the mean of the diagonal: the ladder's decades.
const OF_DAMPINGS: [f64; 8] = [1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0, 100.0];

struct Instruments {
    received: Counter<u64>,
    resumed: Counter<u64>,
    checksum_failures: Counter<u64>,
    damping: Histogram<f64>,
}

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| {
    let meter = metrics::meter();
    let damping = meter.f64_histogram("llm_surgeon.surgeon.damping").with_unit("1");
    let damping = damping.with_description("largest damping with which a layer's factors could be factorised");
    Instruments {
        received: metrics::counter("llm_surgeon.surgeon.factors.received", "By", "factor bytes received", &[&[]]),
        resumed: metrics::counter(
            "llm_surgeon.surgeon.transfers.resumed",
            "{transfer}",
            "streams of factors opened again after they broke",
            &[&[]],
        ),
        checksum_failures: metrics::counter(
            "llm_surgeon.surgeon.transfers.checksum_failures",
            "{failure}",
            "chunks or artifacts whose checksum did not match",
            &[&[]],
        ),
        damping: damping.with_boundaries(OF_DAMPINGS.to_vec()).build(),
    }
});

/// Tells of memory for factors and of the device whenever somebody asks.
pub(crate) fn watch(budget: &Budget, device: Device) {
    LazyLock::force(&INSTRUMENTS);
    let (used, limit) = (budget.clone(), budget.limit());
    let about = "memory held for factors between a calibrator and the store";
    metrics::gauge("llm_surgeon.surgeon.transfers.in_flight", "By", about, move || {
        vec![(used.used() as f64, Vec::new())]
    });
    let about = "most memory that may be held for them";
    metrics::gauge("llm_surgeon.surgeon.transfers.limit", "By", about, move || vec![(limit as f64, Vec::new())]);
    metrics::watch_device(move || memory_used(device));
}

/// Counts bytes of factors that came from a calibrator.
pub(crate) fn received(bytes: u64) {
    INSTRUMENTS.received.add(bytes, &[]);
}

/// Counts a stream that was opened again.
pub(crate) fn resumed() {
    INSTRUMENTS.resumed.add(1, &[]);
}

/// Counts bytes that are not what their checksum says.
pub(crate) fn checksum_failed() {
    INSTRUMENTS.checksum_failures.add(1, &[]);
}

/// Measures with how much damping layers' factors could be factorised.
pub(crate) fn damped(layers: impl Iterator<Item = FactorDamping>) {
    for used in layers {
        if let Some(largest) = [used.a, used.g].into_iter().flatten().map(|step| step.lambda).reduce(f64::max) {
            INSTRUMENTS.damping.record(largest, &[]);
        }
    }
}
