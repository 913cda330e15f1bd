//! Folders with `pytorch_model.bin` as torch writes it (`testdata/make_pytorch_bin.py`): the same models as in safetensors.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use model::export::{self, Breadth, WriteOptions};
use model::{Decoder, ModelError, ModelFolder, Overlay};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/pytorch_bin").join(name)
}

/// Returns a folder of its own with the files of some.
fn joined(names: &[&str]) -> TempDir {
    let place = TempDir::new().unwrap();
    for entry in names.iter().flat_map(|name| fs::read_dir(folder(name)).unwrap()) {
        let entry = entry.unwrap();
        fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
    }
    place
}

fn logits(folder: &ModelFolder) -> Tensor {
    let decoder = Decoder::load(folder, &Overlay::default(), Kind::Float, Device::Cpu).unwrap();
    decoder.forward_logits(&Tensor::from_slice(&[2i64, 5, 3, 9, 14]).view([1, 5])).unwrap()
}

#[test]
fn every_tensor_is_the_one_in_safetensors() {
    let plain = ModelFolder::open(&folder("plain")).unwrap();
    for name in ["whole", "sharded"] {
        let bin = ModelFolder::open(&folder(name)).unwrap();
        assert_eq!(bin.tensors(), plain.tensors(), "{name}");
        assert_eq!((bin.sizes(), bin.layers()), (plain.sizes(), plain.layers()), "{name}");
        for spec in plain.tensors() {
            let read = |folder: &ModelFolder| folder.tensor(&spec.name, spec.kind, Device::Cpu).unwrap();
            assert!(read(&bin).equal(&read(&plain)), "{name}: {}", spec.name);
        }
        assert!(logits(&bin).equal(&logits(&plain)), "{name}");
    }
    let kinds: Vec<_> = [Kind::Half, Kind::BFloat16, Kind::Float]
        .map(|kind| plain.tensors().iter().filter(|spec| spec.kind == kind).count())
        .to_vec();
    assert!(!kinds.contains(&0), "{kinds:?}");
}

#[test]
fn the_digest_is_over_the_files_that_are_read() {
    let digest = |path: &Path| ModelFolder::open(path).unwrap().digest().unwrap();
    assert_ne!(digest(&folder("whole")), digest(&folder("sharded")));
    assert_eq!(digest(&folder("whole")), digest(joined(&["whole"]).path()));
}

#[test]
fn safetensors_win_where_there_are_both() {
    let both = joined(&["whole", "plain"]);
    let digest = |path: &Path| ModelFolder::open(path).unwrap().digest().unwrap();
    assert_eq!(digest(both.path()), digest(&folder("plain")));
    fs::write(both.path().join("pytorch_model.bin"), "no archive").unwrap();
    assert!(ModelFolder::open(both.path()).is_ok());
}

#[test]
fn a_file_that_is_cut_or_a_shard_that_is_gone_is_named() {
    let place = joined(&["whole"]);
    let file = place.path().join("pytorch_model.bin");
    let whole = fs::read(&file).unwrap();
    for length in (0..whole.len()).step_by(97) {
        fs::write(&file, &whole[..length]).unwrap();
        let error = ModelFolder::open(place.path()).unwrap_err();
        assert!(matches!(error, ModelError::TensorFile { .. }), "{length}: {error}");
        assert!(
            error.to_string().contains("pytorch_model.bin") && error.to_string().contains("fetch it again"),
            "{error}"
        );
    }
    let place = joined(&["sharded"]);
    fs::remove_file(place.path().join("pytorch_model-00002-of-00002.bin")).unwrap();
    let said = ModelFolder::open(place.path()).unwrap_err().to_string();
    assert!(
        said.contains("index.json") && said.contains("pytorch_model-00002-of-00002.bin, which is not there"),
        "{said}"
    );
}

#[test]
fn a_changed_byte_in_what_torch_wrote_is_never_a_panic() {
    let place = joined(&["whole"]);
    let file = place.path().join("pytorch_model.bin");
    let whole = fs::read(&file).unwrap();
    // the reader's own tests change every byte of a smaller file
    for at in (0..whole.len()).step_by(11) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xFF;
        fs::write(&file, damaged).unwrap();
        let Ok(folder) = ModelFolder::open(place.path()) else { continue };
        for spec in folder.tensors() {
            assert!(folder.tensor(&spec.name, spec.kind, Device::Cpu).is_ok(), "byte {at}: {}", spec.name);
        }
    }
}

#[test]
fn a_copy_is_written_as_safetensors_with_the_tokenizer_beside_it() {
    let place = joined(&["sharded"]);
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(folder("../bpe/opt").join(name), place.path().join(name)).unwrap();
    }
    let options = WriteOptions::huggingface(Breadth::Common { multiple_of: 1 });
    let base = ModelFolder::open(place.path()).unwrap();
    let output = place.path().join("out");
    export::write(&base, &Overlay::default(), options, "{}", &output, &[2, 5, 3, 9]).unwrap();
    let mut names: Vec<_> = fs::read_dir(&output).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let expected = ["README.md", "config.json", "merges.txt", "model.safetensors", "pruning_report.json", "vocab.json"];
    assert_eq!(names, expected);
    assert!(logits(&ModelFolder::open(&output).unwrap()).equal(&logits(&base)));
}
