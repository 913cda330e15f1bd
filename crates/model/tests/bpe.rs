//! Tokenizers from vocab.json and merges.txt: the ids of transformers (`testdata/make_bpe.py`), and what is broken.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use model::tokens::{TextStream, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/bpe").join(name)
}

/// A copy of one of the folders, free to be changed.
struct Copy(TempDir);

impl Copy {
    fn of(name: &str) -> Self {
        let place = TempDir::new().unwrap();
        for entry in fs::read_dir(folder(name)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
        }
        Self(place)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let mut config: Value = serde_json::from_str(&self.read("tokenizer_config.json")).unwrap();
        change(&mut config);
        self.write("tokenizer_config.json", config.to_string());
    }

    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let said = Tokenizer::open(self.0.path()).unwrap_err().to_string();
        for word in words {
            assert!(said.contains(word), "'{said}' should say '{word}'");
        }
    }
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

#[test]
fn ids_and_text_equal_those_of_transformers() {
    for name in ["opt", "gpt2", "added"] {
        let tokenizer = Tokenizer::open(&folder(name)).unwrap();
        let cases = fs::read_to_string(folder(name).join("expected.json")).unwrap();
        for case in serde_json::from_str::<Vec<Value>>(&cases).unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
            let plain = tokenizer.encode_inner(text).unwrap();
            assert_eq!(plain, ids(&case["plain"]), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&plain).unwrap(), case["decoded"], "{name}: {text:?}");
        }
        assert_eq!(tokenizer.bos(), name == "opt");
    }
}

#[test]
fn a_stream_gives_whole_letters_only_and_all_of_them() {
    let tokenizer = Tokenizer::open(&folder("opt")).unwrap();
    let prompt = tokenizer.encode("é 漢").unwrap();
    let answer = tokenizer.encode_inner("naïve 🙂字 end").unwrap();
    let mut stream = TextStream::after(&tokenizer, &prompt).unwrap();
    let pieces: Vec<_> = answer.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces.concat(), "naïve 🙂字 end");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    assert!(pieces.contains(&String::new()), "a letter of several tokens is waited for: {pieces:?}");
    assert_eq!(stream.finish().unwrap(), "");

    let half = &tokenizer.encode_inner("🙂").unwrap()[..2];
    let mut stream = TextStream::after(&tokenizer, &prompt).unwrap();
    assert!(half.iter().all(|id| stream.push(*id).unwrap().is_empty()));
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn the_digest_is_over_both_files() {
    let copy = Copy::of("gpt2");
    let digest = || Tokenizer::open(copy.0.path()).unwrap().digest().to_owned();
    let mut hasher = blake3::Hasher::new();
    for text in ["vocab.json", "merges.txt"].map(|name| copy.read(name)) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    assert_eq!(digest(), hasher.finalize().to_hex().as_str());
    let before = digest();
    let merges = copy.read("merges.txt");
    copy.write("merges.txt", merges.trim_end().rsplit_once('\n').unwrap().0);
    assert_ne!(digest(), before);
}

#[test]
fn a_tokenizer_json_is_preferred() {
    let copy = Copy::of("gpt2");
    copy.write("tokenizer.json", "{}");
    copy.refused(&["tokenizer.json", "not a tokenizer"]);
}

#[test]
fn what_is_broken_is_named_with_its_line() {
    let copy = Copy::of("opt");
    let merges = copy.read("merges.txt");
    let lines: Vec<_> = merges.lines().collect();
    let with_third = |line: &str| [&[lines[0], lines[1], line], &lines[3..]].concat().join("\n");
    copy.write("merges.txt", with_third("alone"));
    copy.refused(&["merges.txt: line 3", "two words"]);
    copy.write("merges.txt", with_third("a b c"));
    copy.refused(&["merges.txt: line 3", "two words"]);
    copy.write("merges.txt", with_third("t qzq"));
    copy.refused(&["merges.txt: line 3: 'qzq' is not in vocab.json", "do not belong together"]);
    copy.write("merges.txt", with_third("Q Z"));
    copy.refused(&["merges.txt: line 3: 'QZ' is not in vocab.json"]);
    copy.write("merges.txt", b"\xff\xfe");
    copy.refused(&["merges.txt"]);
    copy.write("merges.txt", merges.replace('\n', "\r\n") + "\r\n");
    assert!(Tokenizer::open(copy.0.path()).is_ok());

    copy.write("vocab.json", "{\n\"a\": 1,\n\"b\": -2}");
    copy.refused(&["vocab.json: not a vocabulary", "line 3"]);
    copy.write("vocab.json", "[]");
    copy.refused(&["vocab.json: not a vocabulary"]);
    fs::remove_file(copy.0.path().join("vocab.json")).unwrap();
    copy.refused(&["no tokenizer.json", "merges.txt is there", "both vocab.json and merges.txt"]);
}

#[test]
fn special_tokens_that_contradict_the_vocabulary_are_refused() {
    let copy = Copy::of("added");
    copy.write("added_tokens.json", r#"{"<|user|>": 999}"#);
    copy.refused(&["added_tokens.json", "'<|user|>' is numbered 999", "another vocab.json"]);
    copy.write("added_tokens.json", r#"{"<|user|>": "x"}"#);
    copy.refused(&["added_tokens.json", "expected a whole number"]);
    copy.write("added_tokens.json", "{");
    copy.refused(&["added_tokens.json", "not valid JSON", "line 1"]);

    let copy = Copy::of("gpt2");
    copy.configure(|config| {
        config["add_bos_token"] = json!(true);
        config["bos_token"] = json!({"no": "content"});
    });
    assert!(Tokenizer::open(copy.0.path()).unwrap().bos(), "the usual token is BOS if none is named");
    copy.write("vocab.json", copy.read("vocab.json").replace("<|endoftext|>", "<|other|>"));
    copy.refused(&["tokenizer_config.json", "add_bos_token", "'<|endoftext|>' is not in vocab.json"]);
}

#[test]
fn other_classes_of_tokenizer_are_not_guessed() {
    let copy = Copy::of("gpt2");
    copy.configure(|config| config["tokenizer_class"] = json!("Qwen2Tokenizer"));
    copy.refused(&["tokenizer_config.json", "'Qwen2Tokenizer'", "GPT2Tokenizer only", "save_pretrained"]);
    copy.configure(|config| drop(config.as_object_mut().unwrap().remove("tokenizer_class")));
    assert!(Tokenizer::open(copy.0.path()).is_ok());
    copy.write("config.json", r#"{"model_type": "qwen2"}"#);
    copy.refused(&["'qwen2'"]);
    copy.write("config.json", r#"{"model_type": "opt"}"#);
    assert!(Tokenizer::open(copy.0.path()).is_ok());
}

#[test]
fn tokens_may_be_described_in_the_config_and_eos_may_end_a_text() {
    let copy = Copy::of("added");
    fs::remove_file(copy.0.path().join("added_tokens.json")).unwrap();
    copy.configure(|config| {
        config["added_tokens_decoder"] = json!({
            "341": {"content": "<|user|>", "lstrip": false, "rstrip": true, "normalized": false, "single_word": false, "special": true},
            "342": {"content": "<mask>", "lstrip": true, "special": true},
        });
        config["add_eos_token"] = json!(true);
    });
    let tokenizer = Tokenizer::open(copy.0.path()).unwrap();
    assert!(!tokenizer.bos());
    let found = tokenizer.encode("<|user|>  x <mask>").unwrap();
    assert_eq!((found[0], &found[found.len() - 2..]), (341, [342, 340].as_slice()));
    assert_eq!(tokenizer.decode(&found).unwrap().trim(), "x");
}
