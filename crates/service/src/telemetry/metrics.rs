//! Metrics that every service has, and how metrics are made. Each service's own are in its `metrics.rs`.

use crate::compute::Beat;
use crate::store::Store;
pub use opentelemetry::KeyValue;
use opentelemetry::global;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use std::sync::{Mutex, PoisonError};

/// Upper bounds of buckets for times of calls, in seconds.
pub const OF_CALLS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Upper bounds of buckets for times of tasks, in seconds.
pub const OF_TASKS: [f64; 12] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10_800.0, 43_200.0];
/// Upper bounds of buckets for times of small writes, in seconds.
pub const OF_WRITES: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Returns what makes instruments. Those made before telemetry is set up measure nothing.
pub fn meter() -> Meter {
    global::meter("llm_surgeon")
}

/// Makes a counter that is 0 from the start under each of these label values, so that a rate of it is one.
pub fn counter(name: &'static str, unit: &'static str, about: &'static str, labels: &[&[KeyValue]]) -> Counter<u64> {
    let counter = meter().u64_counter(name).with_unit(unit).with_description(about).build();
    for labels in labels {
        counter.add(0, labels);
    }
    counter
}

/// Makes a histogram of seconds.
pub fn seconds(name: &'static str, about: &'static str, bounds: &[f64]) -> Histogram<f64> {
    let meter = meter();
    let histogram = meter.f64_histogram(name).with_unit("s").with_description(about);
    histogram.with_boundaries(bounds.to_vec()).build()
}

/// Makes a gauge that is read when it is asked for; what has no value now gives none.
pub fn gauge(
    name: &'static str,
    unit: &'static str,
    about: &'static str,
    read: impl Fn() -> Vec<(f64, Vec<KeyValue>)> + Send + Sync + 'static,
) {
    let meter = meter();
    let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(about);
    let observed = gauge.with_callback(move |observer| {
        for (value, labels) in read() {
            observer.observe(value, &labels);
        }
    });
    observed.build();
}

/// Tells the memory of this process and the room in its store.
pub fn watch_process(store: &Store) {
    gauge("llm_surgeon.service.memory.peak", "By", "largest resident memory of the process so far", || {
        vec![(crate::memory::peak_bytes() as f64, Vec::new())]
    });
    let Some(folder) = store.folder() else { return };
    let of = folder.clone();
    gauge("llm_surgeon.service.store.free", "By", "room in the store's file system", move || room(&of, |r| r.free));
    gauge("llm_surgeon.service.store.size", "By", "size of the store's file system", move || room(&folder, |r| r.size));
}

fn room(folder: &std::path::Path, which: fn(crate::memory::Room) -> u64) -> Vec<(f64, Vec<KeyValue>)> {
    crate::memory::room(folder).map(|room| (which(room) as f64, Vec::new())).into_iter().collect()
}

/// Tells the memory of a GPU; nothing where there is none.
pub fn watch_device(used: impl Fn() -> Option<u64> + Send + Sync + 'static) {
    let about = "memory of the GPU in use, by all processes";
    gauge("llm_surgeon.service.device.memory.used", "By", about, move || {
        used().map(|bytes| (bytes as f64, Vec::new())).into_iter().collect()
    });
}

/// Tells for how long the compute thread has been silent; of several in one process, the longest.
pub fn watch_compute(beat: Beat) {
    static BEATS: Mutex<Vec<Beat>> = Mutex::new(Vec::new());
    BEATS.lock().unwrap_or_else(PoisonError::into_inner).push(beat);
    let about = "for how long the compute thread's job has given no sign of life";
    gauge("llm_surgeon.service.compute.silence", "s", about, || {
        let beats = BEATS.lock().unwrap_or_else(PoisonError::into_inner);
        beats
            .iter()
            .map(Beat::silent_for)
            .max()
            .map(|silence| (silence.as_secs_f64(), Vec::new()))
            .into_iter()
            .collect()
    });
}
