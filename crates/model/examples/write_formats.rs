//! Writes small random models of every family in every shape and format, with the logits that they must compute: what
//! `scripts/verify_formats.sh` compares with transformers and llama.cpp.
//!
//!     cargo run --release -p model --example write_formats -- DIR
//!
//! For each: DIR/NAME, and DIR/NAME.safetensors with `ids`, [t], and `logits`, [t, v]: of the folder as this
//! program reads it, or, for GGUF, of the pruned model in memory.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a tool of the tests

#[path = "../tests/common/mod.rs"]
mod common;

use common::pruned::{uneven, with_tokenizer};
use model::export::{self, Breadth, WriteOptions, refusal};
use model::{Decoder, ModelFolder, Overlay, tensor_file};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use types::{Format, GgufType};

const TOKENS: i64 = 24;

fn main() {
    let place = std::env::args().nth(1).expect("usage: write_formats DIR");
    let place = Path::new(&place);
    fs::create_dir_all(place.join("base")).unwrap();
    for name in common::ALL {
        let folder = with_tokenizer(&common::golden(name), &place.join("base").join(name));
        let overlay = uneven(&folder);
        for (shape, breadth, own) in
            [("padded", Breadth::Common { multiple_of: 8 }, false), ("per-layer", Breadth::Own, true)]
        {
            let hf = WriteOptions::huggingface(breadth);
            write(&folder, &overlay, hf, &place.join(format!("{name}-{shape}-hf")));
            if refusal(folder.config(), Format::Gguf, own).is_some() {
                println!("{name} {shape}: no GGUF");
                continue;
            }
            for gguf_type in [GgufType::F32, GgufType::F16, GgufType::Q8] {
                let options = WriteOptions { format: Format::Gguf, gguf_type, ..hf };
                write(&folder, &overlay, options, &place.join(format!("{name}-{shape}-{gguf_type}")));
            }
        }
    }
}

fn write(folder: &ModelFolder, overlay: &Overlay, options: WriteOptions, output: &Path) {
    let config = folder.config();
    let ids: Vec<i64> = (0..TOKENS.min(config.max_positions)).map(|n| (n * 37 + 5) % config.vocab).collect();
    export::write(folder, overlay, options, "{}\n", output, &ids).unwrap();
    let ids = Tensor::from_slice(&ids);
    // What the folder itself says, where we read it, so that nothing is left to rounding.
    let decoder = match ModelFolder::open(output) {
        Ok(written) => Decoder::load(&written, &Overlay::default(), Kind::Float, Device::Cpu).unwrap(),
        Err(_) => Decoder::load(folder, overlay, Kind::Float, Device::Cpu).unwrap(),
    };
    let logits = decoder.forward_logits(&ids.unsqueeze(0)).unwrap().squeeze_dim(0);
    let expected = [("ids".to_owned(), ids), ("logits".to_owned(), logits)];
    let bytes = tensor_file::encode(&expected, &BTreeMap::new()).unwrap();
    let name = output.file_name().unwrap().to_string_lossy().into_owned();
    fs::write(output.with_file_name(format!("{name}.safetensors")), bytes).unwrap();
}
