//! Pickles and archives written by hand, whole and broken.

use super::{Fault, read};
use crate::tensor_file::TensorInfo;
use std::io::{Cursor, Write};
use tch::{Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A tensor as a pickle says it.
struct Said {
    name: &'static str,
    class: &'static str,
    key: &'static str,
    numbers: i32,
    offset: i32,
    shape: Vec<i32>,
    strides: Vec<i32>,
}

fn said(name: &'static str, key: &'static str, numbers: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Said {
    Said { name, class: "FloatStorage", key, numbers, offset, shape: shape.to_vec(), strides: strides.to_vec() }
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(n: i32) -> Vec<u8> {
    [&b"J"[..], &n.to_le_bytes()].concat()
}

fn tuple(items: &[i32]) -> Vec<u8> {
    [b"(".to_vec(), items.iter().flat_map(|n| int(*n)).collect(), b"t".to_vec()].concat()
}

/// Returns the instructions that put a tensor on the stack.
fn tensor(said: &Said) -> Vec<u8> {
    let class = format!("ctorch\n{}\n", said.class);
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        class.into_bytes(),
        text(said.key),
        text("cpu"),
        int(said.numbers),
        b"tQ".to_vec(),
        int(said.offset),
        tuple(&said.shape),
        tuple(&said.strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

fn pickle(tensors: &[Said]) -> Vec<u8> {
    let items = tensors.iter().flat_map(|said| [text(said.name), tensor(said)].concat()).collect();
    [b"\x80\x02}q\x00(".to_vec(), items, b"u.".to_vec()].concat()
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    archive_with(files, SimpleFileOptions::default().compression_method(CompressionMethod::Stored))
}

fn archive_with(files: &[(&str, &[u8])], options: SimpleFileOptions) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn floats(count: u8) -> Vec<u8> {
    (0..count).flat_map(|n| f32::from(n).to_le_bytes()).collect()
}

/// Returns an archive of one storage of six floats, `0`, and the tensors in it.
fn six(tensors: &[Said]) -> Vec<u8> {
    archive(&[("data.pkl", &pickle(tensors)), ("byteorder", b"little"), ("data/0", &floats(6)), ("version", b"3\n")])
}

fn value(bytes: &[u8], info: &TensorInfo) -> Vec<f32> {
    let tensor = info.tensor(&bytes[info.range.clone()], info.kind.unwrap()).unwrap();
    assert_eq!(tensor.size(), info.shape);
    Vec::try_from(tensor.to_kind(Kind::Float).flatten(0, -1)).unwrap()
}

/// Returns what is said about a broken file.
fn says(bytes: &[u8]) -> String {
    match read(bytes).unwrap_err() {
        Fault::Damaged(reason) => format!("damaged: {reason}"),
        Fault::Refused(reason) => format!("refused: {reason}"),
    }
}

#[track_caller]
fn assert_says(bytes: &[u8], words: &[&str]) {
    let said = says(bytes);
    for word in words {
        assert!(said.contains(word), "'{said}' should say '{word}'");
    }
}

#[test]
fn offsets_shared_storages_and_transposed_strides_are_read() {
    let bytes = six(&[
        said("whole", "0", 6, 0, &[2, 3], &[3, 1]),
        said("tied", "0", 6, 0, &[2, 3], &[3, 1]),
        said("row", "0", 6, 3, &[3], &[1]),
        said("turned", "0", 6, 0, &[3, 2], &[1, 3]),
        said("cube", "0", 6, 0, &[3, 1, 2], &[1, 77, 3]),
        said("one", "0", 6, 5, &[], &[]),
        said("empty", "0", 6, 6, &[0, 3], &[3, 1]),
    ]);
    let found = read(&bytes).unwrap();
    let of = |name: &str| &found.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(value(&bytes, of("whole")), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(of("whole"), of("tied"));
    assert_eq!(value(&bytes, of("row")), [3.0, 4.0, 5.0]);
    for name in ["turned", "cube"] {
        assert_eq!(value(&bytes, of(name)), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0], "{name}");
    }
    assert_eq!(value(&bytes, of("one")), [5.0]);
    assert_eq!((of("empty").shape.as_slice(), of("empty").range.len()), ([0, 3].as_slice(), 0));
}

#[test]
fn a_tensor_of_four_permuted_dimensions_has_the_values_of_its_permutation() {
    let strides = [1, 12, 2, 6]; // a tensor of [2, 2, 3, 2] in memory
    let bytes =
        archive(&[("data.pkl", &pickle(&[said("w", "k", 24, 0, &[2, 2, 3, 2], &strides)])), ("data/k", &floats(24))]);
    let found = value(&bytes, &read(&bytes).unwrap()[0].1);
    let expected =
        Tensor::arange(24, (Kind::Float, tch::Device::Cpu)).as_strided([2, 2, 3, 2], strides.map(i64::from), 0);
    assert_eq!(found, Vec::<f32>::try_from(expected.contiguous().flatten(0, -1)).unwrap());
}

#[test]
fn parameters_metadata_long_numbers_and_zip64_are_read() {
    let inner = tensor(&said("", "0", 6, 0, &[6], &[1]));
    let parameter =
        [b"ctorch._utils\n_rebuild_parameter\n(".to_vec(), inner, b"\x88ccollections\nOrderedDict\n)RtR".to_vec()];
    let metadata = [b"}".to_vec(), text("_metadata"), b"}".to_vec(), text("version"), b"K\x01ssb.".to_vec()].concat();
    let start = b"\x80\x02ccollections\nOrderedDict\n)Rq\x00".to_vec();
    let mut pickle = [start, text("p"), parameter.concat(), b"s".to_vec(), metadata].concat();
    // the storage's length as a number of any width
    let at = pickle.windows(5).position(|w| w == int(6)).unwrap();
    pickle.splice(at..at + 5, *b"\x8a\x02\x06\x00");
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let bytes =
        archive_with(&[("data.pkl", &pickle), ("data/0", &floats(6))], options.large_file(true).with_alignment(64));
    let found = read(&bytes).unwrap();
    assert_eq!(found[0].0, "p");
    assert_eq!(value(&bytes, &found[0].1), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn a_pickle_that_asks_for_more_than_tensors_is_refused_by_name() {
    let with = |pickle: &[u8]| archive(&[("data.pkl", pickle), ("data/0", &floats(6))]);
    let run = [b"\x80\x02cposix\nsystem\n(".to_vec(), text("true"), b"tR.".to_vec()].concat();
    assert_says(&with(&run), &["refused", "'posix.system'", "nothing of it is run", "save_pretrained"]);
    assert_says(&with(b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n."), &["'torch._utils._rebuild_tensor_v3'"]);
    assert_says(&with(b"\x80\x02c__main__\n\x1b[2J\n."), &[r"'__main__.\u{1b}[2J'"]);
    assert_says(&with(b"\x80\x02cbuiltins\nFloatStorage\n."), &["'builtins.FloatStorage'"]);
    assert_says(&with(b"\x80\x02]."), &["refused", "instruction 0x5d at byte 2"]);
    assert_says(&with(b"\x80\x04}."), &["refused", "protocol 2"]);
    assert_says(&with(b"\x80\x02K\x07."), &["holds the number 7, not a dict"]);
    let nested = [b"\x80\x02}".to_vec(), text("model"), b"}s.".to_vec()].concat();
    assert_says(&with(&nested), &["entry 'model' is a dict, not a tensor"]);
    assert_says(&with(b"\x80\x02}K\x01K\x02s."), &["the number 1 as a key"]);
}

#[test]
fn a_pickle_that_makes_no_sense_is_damaged() {
    let cases: [(&[u8], &str); 16] = [
        (b"", "ends too early"),
        (b"\x80\x02", "ends too early"),
        (b"\x80\x02}", "ends too early"),
        (b"\x80\x02X\xff\xff\xff\xff", "ends too early"),
        (b"\x80\x02X\x01\0\0\0\xff", "not UTF-8"),
        (b"\x80\x02ctorch", "within a name"),
        (b"\x80\x02.", "takes more values"),
        (b"\x80\x02K\x01(\x86", "takes more values"),
        (b"\x80\x02t", "has not begun"),
        (b"\x80\x02h\x07", "recalls value 7"),
        (b"\x80\x02)K\x01K\x01s", "adds entries to a tuple"),
        (b"\x80\x02}(K\x01u", "key without a value"),
        (b"\x80\x02)}b", "attributes to a tuple"),
        (b"\x80\x02K\x01)R", "calls the number 1"),
        (b"\x80\x02)Q", "no storage"),
        (b"\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\0", "more than 64 bits"),
    ];
    for (pickle, word) in cases {
        assert_says(&archive(&[("data.pkl", pickle)]), &["damaged", word]);
    }
    let nested = [b"\x80\x02)".to_vec(), vec![0x85; 100_000]].concat();
    assert_says(&archive(&[("data.pkl", &nested)]), &["nests tuples deeper"]);
    let many = [b"\x80\x02".to_vec(), vec![b'}'; 2 << 20]].concat();
    assert_says(&archive(&[("data.pkl", &many)]), &["more values than any model"]);
}

#[test]
fn tensors_that_do_not_fit_their_storage_are_refused() {
    let whole = || said("w", "0", 6, 0, &[2, 3], &[3, 1]);
    let cases = [
        (Said { key: "1", ..whole() }, "storage '1', which the archive does not hold"),
        (Said { numbers: 7, ..whole() }, "has 24 bytes, but should hold 7 numbers of F32"),
        (Said { class: "HalfStorage", ..whole() }, "has 24 bytes, but should hold 6 numbers of F16"),
        (Said { offset: 1, ..whole() }, "begins at number 1 of storage '0', which has 6 only"),
        (Said { offset: -1, ..whole() }, "begins before its storage"),
        (Said { shape: vec![-2, 3], ..whole() }, "no numbers"),
        (Said { shape: vec![3, 3], ..whole() }, "begins at number 0"),
        (Said { shape: vec![i32::MAX; 3], strides: vec![1; 3], ..whole() }, "impossible shape"),
        (Said { strides: vec![1], ..whole() }, "with strides [1]"),
        (Said { strides: vec![0, 1], ..whole() }, "view with strides [0, 1]"),
        (Said { shape: vec![2, 2], ..whole() }, "view with strides [3, 1]"),
    ];
    for (tensor, word) in cases {
        assert_says(&six(&[tensor]), &[word]);
    }
    assert_says(&six(&[whole(), whole()]), &["tensor 'w' twice"]);
}

#[test]
fn archives_that_cannot_be_read_in_place_are_refused() {
    let good = pickle(&[said("w", "0", 6, 0, &[6], &[1])]);
    let with = |more: &[(&str, &[u8])]| {
        archive(&[&[("data.pkl", good.as_slice()), ("data/0", floats(6).as_slice())], more].concat())
    };
    assert!(read(&with(&[])).is_ok());
    assert_says(&with(&[("byteorder", b"big")]), &["refused", "big-endian"]);
    assert_says(&with(&[("byteorder", b"odd")]), &["damaged", "byte order"]);
    assert_says(&with(&[("constants.pkl", b"")]), &["TorchScript"]);
    assert_says(&archive(&[("weights", b"x")]), &["without one 'data.pkl'"]);
    assert_says(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", &["refused", "before 1.6", "torch.load"]);
    let tar = [&[b'x'; 257][..], b"ustar"].concat();
    assert_says(&tar, &["refused", "before 1.6"]);
    assert_says(b"version https://git-lfs", &["no PyTorch file"]);
    assert_says(b"", &["no PyTorch file"]);

    // one entry in the directory made to point at another's bytes
    let bytes = with(&[("data/1", &floats(6))]);
    let entries: Vec<_> = bytes.windows(4).enumerate().filter(|(_, w)| w == b"PK\x01\x02").map(|(at, _)| at).collect();
    let [.., first, second] = entries[..] else { panic!("there are three entries") };
    let mut shared = bytes.clone();
    shared.copy_within(first + 42..first + 46, second + 42);
    assert_says(&shared, &["overlap"]);
    // the method in the directory and in the entry's own header
    let mut packed = bytes.clone();
    packed[entries[0] + 10] = 8;
    packed[8] = 8;
    assert_says(&packed, &["refused", "compressed"]);
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
    let bytes = six(&[said("a", "0", 6, 0, &[2, 3], &[3, 1]), said("b", "0", 6, 0, &[3, 2], &[1, 3])]);
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn a_changed_byte_is_never_a_panic_nor_a_place_outside_of_the_file() {
    let bytes = six(&[said("a", "0", 6, 0, &[2, 3], &[3, 1]), said("b", "0", 6, 3, &[3], &[1])]);
    for at in 0..bytes.len() {
        for value in 0..=u8::MAX {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            for (name, info) in read(&damaged).unwrap_or_default() {
                assert!(info.range.end <= bytes.len(), "{name} at {at}");
                assert_eq!(info.range.len() as i64, info.shape.iter().product::<i64>() * 4, "{name} at {at}");
            }
        }
    }
}
