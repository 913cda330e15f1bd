//! Safetensors files, lying headers included: what is accepted is written again and read back unchanged.

#![no_main]

use fuzz::{example, plant};
use libfuzzer_sys::fuzz_target;
use model::tensor_file::{decode, encode};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

fuzz_target!(init: plant(seeds), |bytes: &[u8]| {
    let Ok((tensors, metadata)) = decode(bytes, Device::Cpu) else { return };
    let once = encode(&tensors, &metadata).expect("what was read can be written");
    let (again, metadata_again) = decode(&once, Device::Cpu).expect("what was written can be read");
    assert_eq!((again.len(), &metadata_again), (tensors.len(), &metadata));
    for (name, tensor) in &tensors {
        let found = again.iter().find(|(other, _)| other == name).map(|(_, found)| found);
        let found = found.unwrap_or_else(|| panic!("tensor '{name}' is gone"));
        assert_eq!((found.kind(), found.size()), (tensor.kind(), tensor.size()), "{name}");
    }
    // Bytes, not numbers: a NaN is not equal to itself.
    assert_eq!(encode(&again, &metadata_again).expect("what was read can be written"), once);
});

fn seeds() -> Vec<Vec<u8>> {
    let kinds = [
        Kind::Double,
        Kind::Float,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
        Kind::Bool,
    ];
    let of =
        |kind| (format!("{kind:?}"), Tensor::from_slice(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).view([2, 3]).to_kind(kind));
    let mut all: Vec<_> = kinds.into_iter().map(of).collect();
    all.push(("empty".to_owned(), Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))));
    all.push(("scalar".to_owned(), Tensor::from(1.5)));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let made = [encode(&all, &metadata), encode(&all[1..2], &BTreeMap::new()), encode(&[], &metadata)];
    let made = made.map(|bytes| bytes.expect("plain tensors can be written"));
    let found = ["pytorch_bin/plain/model.safetensors", "golden/qwen3/model-00004-of-00004.safetensors"].map(example);
    made.into_iter().chain(found).collect()
}
