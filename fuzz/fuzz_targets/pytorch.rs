//! `pytorch_model.bin`: archives as they come, and pickles in an archive that is whole.
//!
//! Whatever is accepted lies within the file. An input that begins with a pickle's mark is put beside a few storages, so that
//! the machine that reads pickles is reached by every mutation and not only by those that keep a zip archive intact.

#![no_main]

use fuzz::{example, plant};
use libfuzzer_sys::fuzz_target;
use model::checkpoint::pytorch_tensors;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// What a pickle begins with, and no archive.
const PICKLE: u8 = 0x80;
/// Bytes of the storages `0`, `1`, ... beside a pickle.
const STORAGES: [usize; 4] = [24, 24, 2, 0];
/// Tensors may share a storage, so that a small file can hold many bytes of them; more is not read here.
const MOST_BYTES: usize = 1 << 20;

fuzz_target!(init: plant(seeds), |input: &[u8]| {
    let archive = (input.first() == Some(&PICKLE)).then(|| archive(input));
    let bytes = archive.as_deref().unwrap_or(input);
    let Ok(tensors) = pytorch_tensors(bytes) else { return };
    let mut read = 0;
    for found in tensors {
        // A shape may be one that no tensor can have, when one of its dimensions is 0.
        let Ok((name, tensor)) = found else { continue };
        let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
        assert!(length <= bytes.len(), "'{name}' is larger than the file");
        read += length;
        if read > MOST_BYTES {
            return;
        }
    }
});

fn archive(pickle: &[u8]) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("a/{name}"), options).expect("room for an entry");
        zip.write_all(bytes).expect("room for its bytes");
    };
    add("data.pkl", pickle);
    for (key, length) in STORAGES.iter().enumerate() {
        add(&format!("data/{key}"), &vec![0x3F; *length]);
    }
    zip.finish().expect("room for the directory").into_inner()
}

fn seeds() -> Vec<Vec<u8>> {
    let found = ["whole/pytorch_model.bin", "sharded/pytorch_model-00001-of-00002.bin"];
    let mut all: Vec<_> = found.iter().map(|name| example(&format!("pytorch_bin/{name}"))).collect();
    let row = tensor("FloatStorage", "0", 6, (0, &[2, 3], &[3, 1]));
    let turned = tensor("FloatStorage", "1", 6, (0, &[3, 2], &[1, 3]));
    let tied = [row.as_slice(), b"q\x01X\x01\0\0\0bh\x01"].concat();
    let parameter = [b"ctorch._utils\n_rebuild_parameter\n(".as_slice(), &row, b"\x89}tR"].concat();
    let scalar = tensor("HalfStorage", "2", 1, (0, &[], &[]));
    let empty = tensor("BFloat16Storage", "3", 0, (0, &[0, 3], &[3, 1]));
    all.extend([row, turned, tied, parameter, scalar, empty].map(|value| pickle(&value)));
    all.push(b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\0\0\0aK\x01sb.".to_vec());
    all
}

fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}q\0(X\x01\0\0\0a".as_slice(), value, b"u."].concat()
}

/// Returns the instructions that make a tensor from its offset, shape and strides in a storage.
fn tensor(class: &str, key: &str, numbers: u8, (offset, shape, strides): (u8, &[u8], &[u8])) -> Vec<u8> {
    let text = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let tuple = |items: &[u8]| [b"(".to_vec(), items.iter().flat_map(|n| [b'K', *n]).collect(), b"t".to_vec()].concat();
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        format!("ctorch\n{class}\n").into_bytes(),
        text(key),
        text("cpu"),
        vec![b'K', numbers, b't', b'Q', b'K', offset],
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}
