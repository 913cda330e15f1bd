//! A model whose tensors lie elsewhere, and changed layers that stay in a store: the same bits, no byte more than is needed.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use common::pruned::{keep, uneven, with_tokenizer};
use common::{ALL, Copy, golden};
use model::export::{self, Breadth, WriteOptions};
use model::{Decoder, LayerOverlay, ModelError, ModelFolder, Overlay, tensor_file, units};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor};
use types::{Format, LayerState, ModelPlace, ObjectRef, RemoteFiles, RemoteObjects, UnitKind};

/// Tensor files in memory, and what was read of them.
#[derive(Debug, Default)]
struct Elsewhere {
    files: BTreeMap<String, Vec<u8>>,
    read: Mutex<Vec<(String, Range<u64>)>>,
    /// Bytes that every answer lacks at its end.
    short: usize,
}

impl RemoteFiles for Elsewhere {
    fn size(&self, file: &str) -> Option<u64> {
        self.files.get(file).map(|bytes| bytes.len() as u64)
    }

    fn read(&self, file: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let bytes = self.files.get(file).ok_or(io::ErrorKind::NotFound)?;
        self.read.lock().unwrap().push((file.to_owned(), range.clone()));
        Ok(bytes[range.start as usize..range.end as usize - self.short].to_vec())
    }

    fn read_ahead(&self, _: &str, _: Range<u64>) {}
}

/// A copy of a golden model of which the tensor files have been taken away.
fn parted(name: &str) -> (Copy, Elsewhere) {
    let copy = Copy::of(name);
    let mut elsewhere = Elsewhere::default();
    for entry in std::fs::read_dir(copy.path()).unwrap() {
        let entry = entry.unwrap();
        let (path, file) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if file.starts_with("model") && file.ends_with(".safetensors") {
            elsewhere.files.insert(file, std::fs::read(&path).unwrap());
            std::fs::remove_file(path).unwrap();
        }
    }
    (copy, elsewhere)
}

fn place(folder: &Path, elsewhere: Elsewhere) -> (ModelPlace, Arc<Elsewhere>) {
    let elsewhere = Arc::new(elsewhere);
    (ModelPlace { folder: folder.to_owned(), tensors: Some(elsewhere.clone()) }, elsewhere)
}

fn logits(decoder: &Decoder) -> Tensor {
    let ids = Tensor::from_slice(&[1_i64, 5, 9, 2, 7]).unsqueeze(0);
    decoder.forward_logits(&ids).unwrap()
}

#[test]
fn a_model_elsewhere_gives_the_same_bits_and_digest_resident_and_streamed() {
    for name in ALL {
        let here = ModelFolder::open(&golden(name)).unwrap();
        let (copy, elsewhere) = parted(name);
        let (place, _) = place(copy.path(), elsewhere);
        let there = ModelFolder::open_at(place.clone()).unwrap();
        assert_eq!(here.digest().unwrap(), there.digest().unwrap(), "{name}");
        assert_eq!((here.sizes(), here.tensors()), (there.sizes(), there.tensors()));
        let nothing = Overlay::default;
        let expected = logits(&Decoder::load(&here, &nothing(), Kind::Float, Device::Cpu).unwrap());
        let loaded = Decoder::load(&there, &nothing(), Kind::Float, Device::Cpu).unwrap();
        let streamed =
            Decoder::stream(ModelFolder::open_at(place).unwrap(), nothing(), Kind::Float, Device::Cpu).unwrap();
        assert!(logits(&loaded).equal(&expected) && logits(&streamed).equal(&expected), "{name}");
    }
}

#[test]
fn opening_and_describing_a_model_reads_its_headers_and_a_tensor_its_own_bytes() {
    let (copy, elsewhere) = parted("llama-gqa");
    let (place, elsewhere) = place(copy.path(), elsewhere);
    let folder = ModelFolder::open_at(place).unwrap();
    let spec = types::RunSpec::new("/m", "/d", "/o", types::Target::Size(0.8));
    assert!(!units::blocks_for(&folder, &spec).is_empty());
    let opened = std::mem::take(&mut *elsewhere.read.lock().unwrap());
    assert_eq!(opened.len(), 1, "one read a file: {opened:?}");
    let spec = &folder.tensors()[1];
    let _ = folder.tensor(&spec.name, Kind::Float, Device::Cpu).unwrap();
    let read = elsewhere.read.lock().unwrap();
    let bytes = spec.shape.iter().product::<i64>() as u64 * spec.kind.elt_size_in_bytes() as u64;
    assert!(matches!(read.as_slice(), [(_, range)] if range.end - range.start == bytes), "{read:?}");
}

#[test]
fn what_is_wrong_elsewhere_is_named() {
    let open = |elsewhere, folder: &Path| ModelFolder::open_at(place(folder, elsewhere).0).unwrap_err();
    let (copy, elsewhere) = parted("mistral");
    let error = open(Elsewhere { short: 1, ..elsewhere }, copy.path());
    assert!(matches!(&error, ModelError::Remote { file, .. } if file.ends_with("model.safetensors")), "{error}");
    let error = open(Elsewhere::default(), copy.path());
    assert!(error.to_string().contains("neither model.safetensors"), "{error}");
    let files = [("pytorch_model.bin".to_owned(), vec![0; 10])].into();
    let error = open(Elsewhere { files, ..Elsewhere::default() }, copy.path());
    assert!(error.to_string().contains("save them as safetensors"), "{error}");
    // A header that announces more than the file has; one longer than what is read first is read to its end.
    let files =
        |bytes: Vec<u8>| Elsewhere { files: [("model.safetensors".to_owned(), bytes)].into(), ..Elsewhere::default() };
    let error = open(files(u64::to_le_bytes(1 << 20).to_vec()), copy.path());
    assert!(error.to_string().contains("0 bytes follow"), "{error}");
    let mut long = u64::to_le_bytes(1 << 20).to_vec();
    long.extend(std::iter::repeat_n(b' ', 1 << 20));
    let error = open(files(long), copy.path());
    assert!(error.to_string().contains("not valid JSON"), "{error}");
}

/// A store in memory.
#[derive(Debug, Default)]
struct Objects(BTreeMap<String, Vec<u8>>, Mutex<Vec<String>>);

impl RemoteObjects for Objects {
    fn read(&self, object: &ObjectRef) -> io::Result<Vec<u8>> {
        self.1.lock().unwrap().push(object.key.clone());
        self.0.get(&object.key).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn read_ahead(&self, _: &ObjectRef) {}
}

#[test]
fn changed_layers_that_stay_in_the_store_give_the_same_bits_block_by_block() {
    let folder = ModelFolder::open(&golden("llama-gqa")).unwrap();
    let mut overlay = Overlay::default();
    for block in 0..folder.layers().len() {
        let kept: Vec<u32> = (0..folder.config().ffn as u32).step_by(2).collect();
        keep(&mut overlay, &folder, block, UnitKind::FfnChannel, &kept);
    }
    let here = Decoder::load(&folder, &overlay, Kind::Float, Device::Cpu).unwrap();
    let (states, objects) = stored(&overlay);
    let objects = Arc::new(objects);
    let later = Overlay::later(states.clone(), objects.clone());
    let folder = ModelFolder::open(&golden("llama-gqa")).unwrap();
    let there = Decoder::stream(folder, later, Kind::Float, Device::Cpu).unwrap();
    assert!(objects.1.lock().unwrap().is_empty(), "nothing is read before its block is");
    let _block = there.block(1).unwrap();
    assert_eq!(*objects.1.lock().unwrap(), [states[1].weights.clone().unwrap().key]);
    assert!(logits(&there).equal(&logits(&here)));

    let gone = Overlay::later(states, Arc::new(Objects::default()));
    let there =
        Decoder::stream(ModelFolder::open(&golden("llama-gqa")).unwrap(), gone, Kind::Float, Device::Cpu).unwrap();
    assert!(matches!(there.block(0), Err(ModelError::Remote { .. })));
}

/// The changed layers of `overlay` as they lie in a store.
fn stored(overlay: &Overlay) -> (Vec<LayerState>, Objects) {
    let (mut states, mut objects) = (Vec::new(), Objects::default());
    for (layer, changed) in &overlay.layers {
        let tensors = [("weight", &changed.weight), ("bias", &changed.bias)];
        let tensors: Vec<_> = tensors
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.to_owned(), tensor.as_ref()?.shallow_clone())))
            .collect();
        let bytes = tensor_file::encode(&tensors, &BTreeMap::new()).unwrap();
        let key = layer.to_string();
        let weights = Some(ObjectRef { key: key.clone(), blake3: String::new(), bytes: bytes.len() as u64 });
        objects.0.insert(key, bytes);
        let LayerOverlay { kind, kept, kept_rows, .. } = changed.shallow_clone();
        states.push(LayerState { layer: layer.clone(), kind, kept, kept_rows, zeros: 0, weights });
    }
    (states, objects)
}

#[test]
fn changed_layers_that_stay_in_the_store_are_written_the_same_one_in_memory_at_a_time() {
    let place = tempfile::tempdir().unwrap();
    for (name, format) in ALL.map(|name| (name, Format::Hf)).into_iter().chain([("llama-gqa", Format::Both)]) {
        let folder = with_tokenizer(&golden(name), &place.path().join(format!("{name}-{format}")));
        let overlay = uneven(&folder);
        let (states, objects) = stored(&overlay);
        let keys: Vec<String> = states.iter().map(|state| state.layer.to_string()).collect();
        let objects = Arc::new(objects);
        let options = WriteOptions { format, ..WriteOptions::huggingface(Breadth::Common { multiple_of: 4 }) };
        let write = |overlay: &Overlay, output: &str| {
            let output = place.path().join(format!("{name}-{format}-{output}"));
            export::write(&folder, overlay, options, "{}", &output, &[2, 5, 3, 9])
        };
        let here = write(&overlay, "here").unwrap();
        let there = write(&Overlay::later(states.clone(), objects.clone()), "there").unwrap();
        assert_eq!(there, here, "{name} {format}");
        let mut read = objects.1.lock().unwrap().clone();
        read.sort();
        let times = if format == Format::Both { 3 } else { 2 };
        let expected: Vec<String> = keys.iter().flat_map(|key| vec![key.clone(); times]).collect();
        assert_eq!(read, expected, "{name} {format}: once to compute with, and once for each format");
        let gone = write(&Overlay::later(states, Arc::new(Objects::default())), "gone");
        assert!(matches!(gone, Err(ModelError::Remote { .. })), "{name} {format}");
    }
    let left = std::fs::read_dir(place.path()).unwrap().count();
    assert_eq!(left, 3 * (ALL.len() + 1), "nothing is left of what could not be written");
}
