//! Reading text in every format, chat templates, packing and segments, and what is said about bad data.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as its test does")]

use flate2::write::GzEncoder;
use model::ModelError;
use model::tokens::{
    DataOptions, Documents, Draw, TextForm, Tokenizer, overlap, pack_samples, read_documents, segments,
};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const BOS: i64 = 256;
const EOS: i64 = 257;

/// A tokenizer of 256 single-byte tokens in the order of their printable letters, `<s>` and `</s>`.
fn tokenizer_json(bos: bool) -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocab: serde_json::Map<_, _> = alphabet.iter().enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    let special = |id: i64, text: &str| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
    });
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": if bos { template } else { byte_level.clone() },
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}

/// A model folder with a tokenizer, and data files beside it.
struct Place(TempDir);

impl Place {
    fn new(bos: bool) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("model/tokenizer.json", tokenizer_json(bos).to_string());
        place
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::open(&self.0.path().join("model")).unwrap()
    }

    fn read_column(&self, names: &[&str], column: &str) -> Result<Documents, ModelError> {
        let paths = names.iter().map(|n| self.path(n)).collect();
        read_documents(&DataOptions { paths, text_column: column.to_owned() }, &self.tokenizer())
    }

    fn read(&self, names: &[&str]) -> Result<Documents, ModelError> {
        self.read_column(names, "text")
    }

    fn says(&self, names: &[&str]) -> String {
        self.read(names).unwrap_err().to_string().replace(self.0.path().to_str().unwrap(), "")
    }
}

fn texts(documents: &Documents) -> Vec<&str> {
    documents.documents.iter().map(|d| d.text.as_str()).collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet(rows: &[Option<&str>]) -> Vec<u8> {
    let schema = "message schema { REQUIRED INT32 id; OPTIONAL BYTE_ARRAY text (UTF8); }";
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let values: Vec<_> = rows.iter().flatten().map(|t| ByteArray::from(*t)).collect();
    let present: Vec<i16> = rows.iter().map(|t| i16::from(t.is_some())).collect();
    let ids: Vec<_> = (0..rows.len() as i32).collect();
    while let Some(mut column) = group.next_column().unwrap() {
        match column.untyped() {
            ColumnWriter::Int32ColumnWriter(w) => w.write_batch(&ids, None, None).unwrap(),
            ColumnWriter::ByteArrayColumnWriter(w) => w.write_batch(&values, Some(&present), None).unwrap(),
            _ => unreachable!("the schema has no other type"),
        };
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn special_tokens_come_from_the_post_processor_and_nothing_is_cut_or_padded() {
    let place = Place::new(true);
    let tokenizer = place.tokenizer();
    let text = "longer than five tokens";
    let ids = tokenizer.encode(text).unwrap();
    assert!(tokenizer.bos());
    assert_eq!((ids[0], ids.len()), (BOS, text.len() + 1));
    assert_eq!(tokenizer.encode_inner(text).unwrap(), ids[1..]);
    let bytes = fs::read(place.path("model/tokenizer.json")).unwrap();
    assert_eq!(tokenizer.digest(), blake3::hash(&bytes).to_hex().as_str());

    let without = Place::new(false).tokenizer();
    assert!(!without.bos());
    assert_eq!(without.encode(text).unwrap(), ids[1..]);
}

#[test]
fn a_missing_or_broken_tokenizer_says_what_to_do() {
    let place = Place::new(true);
    place.write("slow/tokenizer.model", "x");
    place.write("broken/tokenizer.json", "{}");
    let says = |folder: &str| Tokenizer::open(Path::new(&place.path(folder))).unwrap_err().to_string();
    assert!(
        says("slow").contains("slow/tokenizer.json: the model folder has no tokenizer.json (tokenizer.model is there")
    );
    assert!(says("slow").contains("save_pretrained"));
    assert!(says("broken").contains("broken/tokenizer.json: not a tokenizer"));
}

#[test]
fn every_format_and_compression_gives_the_same_documents() {
    let place = Place::new(true);
    let lines =
        "{\"text\": \"first\", \"id\": 1}\n\n{\"text\": \"\"}\n{\"text\": null}\r\n{\"text\": \"zweitens: ä\\n\\nB\"}";
    let array = json!([{"text": "first"}, "", {"text": " \n"}, {"id": 3, "text": "zweitens: ä\n\nB"}]);
    let table = parquet(&[Some("first"), Some(""), None, Some("zweitens: ä\n\nB")]);
    place.write("a.jsonl", lines);
    place.write("b.jsonl.gz", [gz(&lines.as_bytes()[..20]), gz(&lines.as_bytes()[20..])].concat());
    place.write("c.jsonl.zst", zstd::encode_all(lines.as_bytes(), 3).unwrap());
    place.write("d.json", serde_json::to_string_pretty(&array).unwrap());
    place.write("e.JSON", lines);
    place.write("f.parquet", &table);
    place.write("g.parquet.gz", gz(&table));
    place.write("t/1.txt", "\u{feff}first");
    place.write("t/2.txt.gz", gz(b""));
    place.write("t/3.txt.zst", zstd::encode_all(&b"\n"[..], 3).unwrap());
    place.write("t/4.txt", "zweitens: ä\n\nB");
    for name in ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.json", "e.JSON", "f.parquet", "g.parquet.gz", "t"] {
        let read = place.read(&[name]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(texts(&read), ["first", "zweitens: ä\n\nB"], "{name}");
        assert_eq!(read.skipped, 2, "{name}");
        assert_eq!(read.digest, place.read(&["a.jsonl"]).unwrap().digest, "{name}");
    }
}

#[test]
fn folders_and_globs_are_read_in_one_order_and_each_file_once() {
    let place = Place::new(true);
    for (name, text) in
        [("d/b.txt", "b"), ("d/a.txt", "a"), ("d/sub/c.txt", "c"), ("d/.hidden.txt", "h"), ("d/README", "r")]
    {
        place.write(name, text);
    }
    let folder = place.read(&["d"]).unwrap();
    assert_eq!(texts(&folder), ["a", "b", "c"]);
    assert_eq!(place.read(&["d/sub", "d/b.txt", "d/*", "d/a.txt"]).unwrap(), folder);
    assert_eq!(place.read(&["d/**/*.txt", "d/b.txt"]).unwrap().digest, folder.digest);
    assert_eq!(texts(&place.read(&["d/[ab].txt"]).unwrap()), ["a", "b"]);
    assert_ne!(place.read(&["d/a.txt"]).unwrap().digest, folder.digest);
}

#[test]
fn the_text_column_can_be_named() {
    let place = Place::new(true);
    place.write("x.jsonl", "{\"body\": \"b\", \"text\": \"t\"}");
    assert_eq!(texts(&place.read_column(&["x.jsonl"], "body").unwrap()), ["b"]);
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}\n    {%- if m['role'] not in ['user', 'assistant'] %}\n        {{- raise_exception('role ' + m.role) }}\n    {%- endif %}\n<{{ m.role.upper() }}>{{ m.content.strip() }}{{ eos_token }}\n{% if m.extra is defined %}{{ m.extra | tojson }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}<GO>{% endif %}";

#[test]
fn conversations_are_written_in_the_models_template_without_further_special_tokens() {
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    let mut string = config.clone();
    string["chat_template"] = json!(TEMPLATE);
    let mut list = config.clone();
    list["chat_template"] = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]);
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \" hi \", \"extra\": {\"b\": [1, \"<'ä\"], \"a\": 2}}, \
                {\"role\": \"assistant\", \"content\": \"ho\"}]}\n{\"text\": \"plain\"}\n{\"messages\": []}";
    for (i, config) in [config, string, list].into_iter().enumerate() {
        let place = Place::new(true);
        place.write("model/tokenizer_config.json", config.to_string());
        if i == 0 {
            place.write("model/chat_template.jinja", TEMPLATE);
        }
        place.write("x.jsonl", rows);
        let read = place.read(&["x.jsonl"]).unwrap();
        let chat = "<s><USER>hi</s>\n{\"b\": [1, \"<'ä\"], \"a\": 2}<ASSISTANT>ho</s>\n";
        assert_eq!(texts(&read), [chat, "plain"]);
        assert_eq!(read.documents.iter().map(|d| d.form).collect::<Vec<_>>(), [TextForm::Chat, TextForm::Plain]);
        assert_eq!(read.skipped, 1);
        let all = segments(&read, &place.tokenizer(), 10, 0).unwrap();
        assert_eq!(all.ids.concat().iter().filter(|&&id| id == BOS).count(), 1);
        let packed = pack_samples(&read, &place.tokenizer(), draw(10, 4, 0)).unwrap();
        assert_eq!(packed.description.tokens, (chat.len() - "<s></s></s>".len() + 3 + "plain".len() + 1) as u64);
    }
}

#[test]
fn a_message_is_put_through_the_template_up_to_the_answer() {
    let place = Place::new(true);
    let without = place.tokenizer().encode_message("hi").unwrap_err().to_string();
    assert!(without.contains("tokenizer.json") && without.contains("no chat template"), "{without}");
    place.write("model/chat_template.jinja", TEMPLATE);
    place.write("model/tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string());
    let tokenizer = place.tokenizer();
    let ids = tokenizer.encode_message("hi").unwrap();
    assert_eq!(ids.iter().filter(|id| **id == BOS).count(), 1);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "<USER>hi\n<GO>");
}

#[test]
fn a_conversation_that_cannot_be_written_names_its_line() {
    let place = Place::new(true);
    place.write("x.jsonl", "{\"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}");
    assert!(place.says(&["x.jsonl"]).starts_with(
        "/x.jsonl: line 1: column 'messages' holds a conversation, and the model folder has no chat template"
    ));
    place.write("model/chat_template.jinja", TEMPLATE);
    assert!(
        place
            .says(&["x.jsonl"])
            .contains("line 1: column 'messages': the model's chat template says: invalid operation: role robot")
    );
    place.write("x.jsonl", "{\"messages\": [{\"from\": \"human\", \"value\": \"x\"}]}");
    assert!(place.says(&["x.jsonl"]).contains("message 1 has no 'role'"));
    place.write("model/chat_template.jinja", "{% for %}");
    assert!(place.read(&["model/../x.jsonl"]).is_err(), "a broken template is a fault once it is needed");
    place.write("y.jsonl", "{\"text\": \"x\"}");
    assert!(place.read(&["y.jsonl"]).is_ok(), "and not before");
}

#[test]
fn bad_data_is_named_with_its_place_and_a_remedy() {
    let place = Place::new(true);
    place.write("empty/notes.md", "x");
    place.write("x.csv", "x");
    place.write("blank.txt", " \n ");
    place.write("binary.txt", b"text\0more");
    place.write("latin.txt", b"caf\xe9");
    place.write("half.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\n");
    place.write("half.json", "[{\"text\": \"a\"},\n {\"text\": }]");
    place.write("column.jsonl", "{\"text\": \"a\"}\n{\"body\": 1, \"id\": 2}");
    place.write("number.jsonl", "{\"text\": 3}");
    place.write("row.jsonl", "[1]");
    place.write("torn.txt.gz", &gz(b"some text that is long enough")[..20]);
    place.write("torn.txt.zst", b"no frame");
    place.write("torn.parquet", &parquet(&[Some("a")])[..40]);
    // Found by fuzzing: the library panics at it.
    place.write("pages.parquet", include_bytes!("../../../testdata/damaged/level-beyond-page.parquet"));
    let expected = [
        ("nowhere.jsonl", "/nowhere.jsonl: no such file or folder"),
        ("*.tsv", "/*.tsv: the pattern matches no file that ends in .jsonl"),
        (
            "*.csv",
            "/*.csv: the pattern matches no file that ends in .jsonl, .json, .txt or .parquet, each also with .gz or .zst (1 other files)",
        ),
        ("empty", "/empty: the folder holds no file that ends in .jsonl"),
        ("x.csv", "/x.csv: cannot tell what kind of file this is"),
        ("blank.txt", "/blank.txt: no text in it: 1 documents, all of them empty"),
        ("binary.txt", "/binary.txt: binary data, or text that is not UTF-8, at byte 4"),
        ("latin.txt", "/latin.txt: binary data, or text that is not UTF-8, at byte 3"),
        ("pages.parquet", "/pages.parquet: is damaged: its parquet pages contradict each other"),
        ("half.jsonl", "/half.jsonl: line 2, column 11: not valid JSON: EOF while parsing a string"),
        ("half.json", "/half.json: line 2, column 11: not valid JSON: expected value"),
        (
            "column.jsonl",
            "/column.jsonl: line 2: no column 'text'; the columns are body, id; choose one with --text-column",
        ),
        ("number.jsonl", "/number.jsonl: line 1: column 'text' holds a number, expected text or a list of messages"),
        ("row.jsonl", "/row.jsonl: line 1: holds a list, expected an object or a text"),
        ("torn.txt.gz", "/torn.txt.gz: cannot be unpacked"),
        ("torn.txt.zst", "/torn.txt.zst: cannot be unpacked"),
        ("torn.parquet", "/torn.parquet: cannot be read as parquet"),
    ];
    for (name, message) in expected {
        let says = place.says(&[name]);
        assert!(says.starts_with(message), "{says}\n expected {message}");
    }
    place.write("t.parquet", parquet(&[Some("a")]));
    let says = |column: &str| place.read_column(&["t.parquet"], column).unwrap_err().to_string();
    assert!(says("body").contains("no column 'body'; the columns are id, text"), "{}", says("body"));
    assert!(says("id").contains("row 1: column 'id' holds no text"), "{}", says("id"));
}

#[cfg(unix)]
#[test]
fn a_file_that_cannot_be_read_is_named() {
    let place = Place::new(true);
    place.write("d/a.txt", "a");
    std::os::unix::fs::symlink("gone", place.path("d/b.txt")).unwrap();
    let error = place.read(&["d"]).unwrap_err();
    assert!(matches!(&error, ModelError::Io { action: "read", path, .. } if path.ends_with("b.txt")), "{error}");
}

/// Documents of 1000 letters that know where they are.
fn lettered(count: usize) -> String {
    let row = |i| json!({"text": format!("{i:05}|").repeat(167)[..1000]}).to_string();
    (0..count).map(row).collect::<Vec<_>>().join("\n")
}

#[test]
fn sets_share_no_window_and_each_is_spread_over_the_text() {
    let place = Place::new(true);
    let numbered =
        |document: usize| (0..200).map(|n| format!("{:05}", 200 * document + n)).collect::<Vec<_>>().concat();
    let lines: Vec<String> = (0..60).map(|document| format!("{{\"text\": \"{}\"}}\n", numbered(document))).collect();
    place.write("x.jsonl", lines.concat());
    let documents = place.read(&["x.jsonl"]).unwrap();
    let pack = |sets| pack_samples(&documents, &place.tokenizer(), Draw { sets, ..draw(128, 16, 7) }).unwrap();
    assert_eq!(pack(1).ids, pack_samples(&documents, &place.tokenizer(), draw(128, 16, 7)).unwrap().ids);
    for (asked, given) in [(3, 3), (29, 29), (30, 29)] {
        // 60,060 tokens are 469 windows: 29 times 16, and some over.
        let samples = pack(asked);
        assert_eq!((samples.description.sets, samples.description.samples), (given, 16));
        assert_eq!(samples.ids.len(), 16 * given as usize);
        let mut unique = samples.ids;
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), 16 * given as usize, "no window twice");
    }
}

#[test]
fn a_seed_decides_the_samples_and_nothing_else_does() {
    let place = Place::new(true);
    place.write("x.jsonl", lettered(60));
    let documents = place.read(&["x.jsonl"]).unwrap();
    let pack = |seed| pack_samples(&documents, &place.tokenizer(), draw(128, 16, seed)).unwrap();
    let samples = pack(7);
    assert_eq!(samples, pack(7));
    assert_ne!(samples.ids, pack(8).ids);
    assert!(samples.ids.iter().all(|ids| ids.len() == 128));
    let mut unique = samples.ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 16, "no window twice");
    let d = &samples.description;
    assert_eq!((d.documents, d.samples, d.seq_len, d.tokens, d.bos), (60, 16, 128, 60 * 1001, true));
    assert_eq!((d.overlap, &d.digest), (0, &documents.digest));
}

#[test]
fn no_more_is_tokenised_than_the_choice_needs_even_of_one_long_file() {
    let place = Place::new(true);
    place.write("long.txt", "all work and no play makes jack a dull boy\n".repeat(50_000));
    place.write("many.jsonl", lettered(2000));
    for (name, all) in [("long.txt", 43 * 50_000), ("many.jsonl", 2000 * 1001)] {
        let documents = place.read(&[name]).unwrap();
        let samples = pack_samples(&documents, &place.tokenizer(), draw(256, 64, 1)).unwrap();
        let tokens = samples.description.tokens;
        assert!(tokens >= 4 * 64 * 256 && tokens < all / 4, "{name}: {tokens} of {all}");
        assert_eq!(samples.ids.len(), 64);
    }
}

#[test]
fn too_little_text_says_how_much_there_is_and_how_much_is_needed() {
    let place = Place::new(true);
    place.write("x.txt", "x".repeat(99));
    let documents = place.read(&["x.txt"]).unwrap();
    assert_eq!(pack_samples(&documents, &place.tokenizer(), draw(50, 2, 0)).unwrap().ids.len(), 2);
    let error = pack_samples(&documents, &place.tokenizer(), draw(30, 4, 0)).unwrap_err();
    assert!(matches!(error, ModelError::TooLittleText { found: 100, needed: 120, .. }));
    assert!(error.to_string().contains("--samples 3 would do"), "{error}");
    let error = segments(&documents, &place.tokenizer(), 101, 0).unwrap_err();
    assert!(matches!(error, ModelError::TooLittleText { found: 100, needed: 101, .. }));
}

#[test]
fn segments_follow_the_protocol() {
    let place = Place::new(true);
    place.write("a.txt", "a".repeat(500));
    place.write("b.txt", "b".repeat(502));
    let documents = place.read(&["a.txt", "b.txt"]).unwrap();
    let tokenizer = place.tokenizer();
    let joined = tokenizer.encode(&format!("{}\n\n{}", "a".repeat(500), "b".repeat(502))).unwrap();
    let all = segments(&documents, &tokenizer, 100, 0).unwrap();
    assert_eq!(all.ids.concat(), joined[..1000], "cut without a gap, the rest of 5 tokens left out");
    assert_eq!(all.ids.concat().iter().filter(|&&id| id == BOS).count(), 1, "one BOS, at the very start");
    assert_eq!((all.in_data, all.description.samples, all.description.tokens), (10, 10, 1005));
    let some = segments(&documents, &tokenizer, 100, 4).unwrap();
    assert_eq!(some.ids, [0, 2, 5, 7].map(|i: usize| all.ids[i].clone()), "evenly spaced");
    assert_eq!((some.in_data, some.description.samples), (10, 4));
    assert_eq!(segments(&documents, &tokenizer, 100, 99).unwrap(), all);
}

#[test]
fn documents_in_both_data_are_counted() {
    let place = Place::new(true);
    place.write("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}");
    place.write("b.jsonl", "{\"text\": \" two\\n\"}\n{\"text\": \"three\"}\n{\"text\": \"two\"}");
    let (a, b) = (place.read(&["a.jsonl"]).unwrap(), place.read(&["b.jsonl"]).unwrap());
    assert_eq!((overlap(&a, &b), overlap(&b, &a)), (2, 1));
}

fn draw(seq_len: u64, samples: u64, seed: u64) -> Draw {
    Draw { seq_len, samples, sets: 1, seed }
}
