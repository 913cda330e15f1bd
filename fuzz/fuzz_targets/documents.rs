//! Calibration and held-out text: jsonl, json, txt and parquet, plain and packed. What is accepted can be made into samples.
//!
//! The first byte of an input chooses the file's name, by which its format is known; the rest is the file.

#![no_main]

use flate2::write::GzEncoder;
use fuzz::{Scratch, example, let_caught_panics_pass, plant};
use libfuzzer_sys::fuzz_target;
use model::tokens::{DataOptions, Draw, Tokenizer, overlap, pack_samples, read_documents, segments};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::sync::{Arc, LazyLock};

const FORMATS: [&str; 4] = ["data.jsonl", "data.json", "data.txt", "data.parquet"];
const PACKED: [&str; 3] = ["", ".gz", ".zst"];
/// Bytes of text that are tokenised at most: what is looked at here are the files.
const MOST_TEXT: usize = 1 << 12;

const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
"model":{"type":"WordLevel","vocab":{"?":0,"a":1,"the":2},"unk_token":"?"}}"#;
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls|tojson }}{% endfor %}";

static PLACE: LazyLock<(Scratch, Tokenizer)> = LazyLock::new(|| {
    let scratch = Scratch::new();
    scratch.write("tokenizer.json", TOKENIZER.as_bytes());
    scratch.write("chat_template.jinja", TEMPLATE.as_bytes());
    let tokenizer = Tokenizer::open(scratch.path()).expect("a plain tokenizer");
    (scratch, tokenizer)
});

// The parquet library panics on some damaged files; the reader makes an error of that.
fuzz_target!(init: { let_caught_panics_pass(); plant(seeds) }, |input: &[u8]| {
    let Some((choice, file)) = input.split_first() else { return };
    let choice = usize::from(*choice) % (FORMATS.len() * PACKED.len());
    let name = format!("{}{}", FORMATS[choice % FORMATS.len()], PACKED[choice / FORMATS.len()]);
    let (scratch, tokenizer) = &*PLACE;
    let path = scratch.write(&name, file);
    let options = DataOptions { paths: vec![path.display().to_string()], text_column: "text".to_owned() };
    let read = read_documents(&options, tokenizer);
    std::fs::remove_file(&path).expect("the file was just written");
    let Ok(documents) = read else { return };
    assert!(!documents.documents.is_empty() && documents.digest.len() == 64);
    assert!(documents.documents.iter().all(|document| !document.text.trim().is_empty()));
    assert_eq!(overlap(&documents, &documents), documents.documents.len() as u64);
    if documents.documents.iter().map(|document| document.text.len()).sum::<usize>() > MOST_TEXT {
        return;
    }
    if let Ok(samples) = pack_samples(&documents, tokenizer, Draw { seq_len: 2, samples: 1, sets: 3, seed: 1 }) {
        assert!(samples.ids.iter().all(|sample| sample.len() == 2));
        assert_eq!(samples.ids.len() as u64, u64::from(samples.description.sets) * samples.description.samples);
    }
    if let Ok(found) = segments(&documents, tokenizer, 2, 3) {
        assert!(found.ids.len() as u64 <= found.in_data && found.ids.iter().all(|segment| segment.len() == 2));
    }
});

fn seeds() -> Vec<Vec<u8>> {
    let text = example("text/heldout/1799_john_adams_f.txt")[..600].to_vec();
    let lines = b"{\"text\": \"a the\"}\n\n{\"text\": null}\n\"a\"\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n";
    let list = br#"[{"text": "a"}, "the", {"text": [{"role": "assistant", "tool_calls": [{"x": 1}]}]}]"#;
    let plain = [lines.to_vec(), list.to_vec(), text];
    let mut all = Vec::new();
    for (format, bytes) in plain.iter().enumerate() {
        for (packing, packed) in [bytes.clone(), gzip(bytes), zstd(bytes)].into_iter().enumerate() {
            all.push(named(format, packing, &packed));
        }
    }
    let compressions = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(Default::default()),
    ];
    for compression in compressions {
        for dictionary in [true, false] {
            all.push(named(3, 0, &table(compression, dictionary)));
        }
    }
    all
}

fn named(format: usize, packing: usize, bytes: &[u8]) -> Vec<u8> {
    [&[(format + packing * FORMATS.len()) as u8], bytes].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("room for bytes");
    encoder.finish().expect("room for bytes")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("room for bytes")
}

/// Returns a parquet file with one column of text.
fn table(compression: Compression, dictionary: bool) -> Vec<u8> {
    let schema = parse_message_type("message m { OPTIONAL BYTE_ARRAY text (UTF8); }").expect("a good schema");
    let properties =
        WriterProperties::builder().set_compression(compression).set_dictionary_enabled(dictionary).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::new(properties)).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let mut column = group.next_column().expect("a column").expect("the schema has one");
    let rows = ["a the", "the", "a the"].map(ByteArray::from);
    let levels = [1, 0, 1, 1];
    column.typed::<ByteArrayType>().write_batch(&rows, Some(&levels), None).expect("room for rows");
    column.close().expect("room for a column");
    group.close().expect("room for a row group");
    writer.close().expect("room for the metadata");
    bytes
}
