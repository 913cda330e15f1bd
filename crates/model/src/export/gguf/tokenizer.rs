//! The tokenizer as llama.cpp has it: tokens by id, merges, and the name of a way to split text that it knows.
//!
//! A tokenizer that llama.cpp would split differently is refused: the model would read other tokens than it was made for.

use super::container::Value;
use crate::tokens::json::{json_file, token};
use crate::tokens::{Tokenizer, chat};
use crate::{ModelConfig, ModelError, ModelFolder};
use serde_json::Value as Json;
use std::path::Path;

/// Kinds of tokens in the file.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// How Llama 3 and Qwen2 split text before byte-level BPE, by their tokenizer.json; llama.cpp knows both by name.
const SPLITS: [(&str, &str); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
];

/// Checks that llama.cpp knows the tokenizer of a model folder.
///
/// # Errors
/// [`ModelError::Unsupported`] with what it does not know.
pub fn check(folder: &ModelFolder) -> Result<(), ModelError> {
    keys(folder).map(drop)
}

/// Returns the keys of the tokenizer.
pub(super) fn keys(folder: &ModelFolder) -> Result<Vec<(String, Value)>, ModelError> {
    let opened = Tokenizer::open(folder.path())?;
    let source = Source::read(folder.path())?;
    let way = source.way()?;
    let (tokens, types) = source.tokens(folder.config())?;
    let id = |token: Option<String>| token.and_then(|token| tokens.iter().position(|known| *known == token));
    let config = folder.config();
    let special = [
        ("bos", id(source.special("bos_token")).or(config.bos.map(|id| id as usize))),
        ("eos", id(source.special("eos_token")).or(config.eos.first().map(|id| *id as usize))),
        ("unknown", id(source.special("unk_token"))),
        ("padding", id(source.special("pad_token"))),
    ];
    let mut keys = vec![("add_bos_token", Value::Bool(opened.bos()))];
    match way {
        Way::ByteLevel { split } => {
            keys.push(("model", Value::Text("gpt2".to_owned())));
            keys.push(("pre", Value::Text(split.to_owned())));
            keys.push(("merges", Value::Texts(source.merges()?)));
        }
        Way::Pieces { space_prefix } => {
            keys.push(("model", Value::Text("llama".to_owned())));
            keys.push(("pre", Value::Text("default".to_owned())));
            // Pieces stand in the vocabulary in the order in which they were merged.
            keys.push(("scores", Value::F32s((0..tokens.len()).map(|id| -(id as f32)).collect())));
            keys.push(("add_space_prefix", Value::Bool(space_prefix)));
        }
    }
    keys.push(("tokens", Value::Texts(tokens)));
    keys.push(("token_type", Value::I32s(types)));
    let mut keys: Vec<_> = keys.into_iter().map(|(key, value)| (key_of(key), value)).collect();
    let special = special.into_iter().filter_map(|(name, id)| Some((name, id?)));
    keys.extend(special.map(|(name, id)| (key_of(&format!("{name}_token_id")), Value::U32(id as u32))));
    keys.extend(
        chat::source(folder.path(), &source.config)?
            .map(|text| ("tokenizer.chat_template".to_owned(), Value::Text(text))),
    );
    Ok(keys)
}

fn key_of(key: &str) -> String {
    format!("tokenizer.ggml.{key}")
}

/// How text becomes tokens.
enum Way {
    /// Byte-level BPE after a split that llama.cpp has a name for.
    ByteLevel { split: &'static str },
    /// Pieces of words with ▁ for spaces, and bytes for what is in no piece.
    Pieces { space_prefix: bool },
}

/// The files of a tokenizer.
struct Source<'a> {
    folder: &'a Path,
    json: Json,
    config: Json,
}

impl<'a> Source<'a> {
    fn read(folder: &'a Path) -> Result<Self, ModelError> {
        let file = |name| json_file(&folder.join(name));
        Ok(Self { folder, json: file("tokenizer.json")?, config: file("tokenizer_config.json")? })
    }

    fn unknown(&self, what: &str) -> ModelError {
        let reason = format!("llama.cpp has no tokenizer like this one ({what}); take --format hf");
        ModelError::Unsupported { path: self.folder.join("tokenizer.json"), reason }
    }

    fn way(&self) -> Result<Way, ModelError> {
        if self.json.is_null() {
            return Err(self.unknown("there is no tokenizer.json"));
        }
        let model = &self.json["model"];
        if model["type"] != "BPE" {
            return Err(self.unknown(&format!("its type is {}, not BPE", model["type"])));
        }
        let steps = flat(&self.json["pre_tokenizer"], "pretokenizers");
        let kinds: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
        if let Some((last, before)) = steps.split_last().filter(|(last, _)| last["type"] == "ByteLevel") {
            let own_split = last["use_regex"] != false;
            if last["add_prefix_space"] == true {
                return Err(self.unknown("it puts a space before every text"));
            }
            if let Some(step) = flat(&self.json["normalizer"], "normalizers").iter().find(|step| step["type"] != "NFC")
            {
                return Err(self.unknown(&format!("it changes text by {} first", step["type"])));
            }
            let split = match before {
                [] if own_split => Some("gpt-2"),
                [digits] if own_split && digits["type"] == "Digits" && digits["individual_digits"] == true => {
                    Some("smollm")
                }
                [split] if !own_split && split["type"] == "Split" => {
                    let pattern = split["pattern"]["Regex"].as_str();
                    SPLITS.iter().find(|(regex, _)| Some(*regex) == pattern).map(|(_, name)| *name)
                }
                _ => None,
            };
            let split = split.ok_or_else(|| self.unknown(&format!("it splits text by {}", kinds.join(", "))))?;
            // llama.cpp takes whole words of the vocabulary before any merge under this name.
            if split == SPLITS[0].1 && model["ignore_merges"] != true {
                return Err(self.unknown("it splits text as Llama 3 does, but merges whole words as well"));
            }
            return Ok(Way::ByteLevel { split });
        }
        let normalizers = flat(&self.json["normalizer"], "normalizers");
        let known = ["Prepend", "Replace"];
        let plain = normalizers.iter().all(|step| known.iter().any(|known| step["type"] == *known));
        let replaces = normalizers.iter().any(|step| step["type"] == "Replace" && step["content"] == "▁");
        let metaspace = steps.len() == 1 && steps[0]["type"] == "Metaspace";
        if model["byte_fallback"] == true && plain && ((steps.is_empty() && replaces) || metaspace) {
            let prepends = normalizers.iter().any(|step| step["type"] == "Prepend");
            let space_prefix = prepends || (metaspace && steps[0]["prepend_scheme"] != "never");
            return Ok(Way::Pieces { space_prefix });
        }
        let names = if kinds.is_empty() { "no step that is known".to_owned() } else { kinds.join(", ") };
        Err(self.unknown(&format!("it splits text by {names} and has no bytes to fall back on")))
    }

    /// Returns the text and the kind of each token, by id; ids of the model that no token has are filled up.
    fn tokens(&self, config: &ModelConfig) -> Result<(Vec<String>, Vec<i32>), ModelError> {
        let count = config.vocab as usize;
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; count];
        let mut put = |id: Option<u64>, token: &str, kind: i32| {
            let place = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
            let too_many = || self.unknown(&format!("its token '{token}' has no row among the model's {count}"));
            *place.ok_or_else(too_many)? = Some((token.to_owned(), kind));
            Ok::<_, ModelError>(())
        };
        let model = &self.json["model"];
        let unknown = model["unk_token"].as_str();
        for (token, id) in model["vocab"].as_object().into_iter().flatten() {
            let byte = model["byte_fallback"] == true && token.starts_with("<0x") && token.len() == 6;
            let kind = if byte {
                BYTE
            } else if unknown == Some(token) {
                UNKNOWN
            } else {
                NORMAL
            };
            put(id.as_u64(), token, kind)?;
        }
        for added in self.json["added_tokens"].as_array().into_iter().flatten() {
            let Some(token) = added["content"].as_str() else { continue };
            let kind = match added["special"] == true {
                true if unknown == Some(token) => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            put(added["id"].as_u64(), token, kind)?;
        }
        let filled = (0..).zip(tokens).map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)));
        Ok(filled.unzip())
    }

    /// Returns the merges in order, each as its two parts with a space between.
    fn merges(&self) -> Result<Vec<String>, ModelError> {
        let merge = |merge: &Json| match merge {
            Json::String(text) => Some(text.clone()),
            Json::Array(parts) => match parts.as_slice() {
                [first, second] => Some(format!("{} {}", first.as_str()?, second.as_str()?)),
                _ => None,
            },
            _ => None,
        };
        let merges = self.json["model"]["merges"].as_array().into_iter().flatten();
        merges.map(|one| merge(one).ok_or_else(|| self.unknown(&format!("its merge {one} is no pair")))).collect()
    }

    /// Returns a token that `tokenizer_config.json` names.
    fn special(&self, key: &str) -> Option<String> {
        token(&self.config[key])
    }
}

/// Returns the steps of a sequence, or the one step that stands alone.
fn flat<'a>(step: &'a Json, list: &str) -> Vec<&'a Json> {
    match step {
        Json::Null => Vec::new(),
        Json::Object(map) if map.get("type").is_some_and(|kind| kind == "Sequence") => {
            map.get(list).and_then(Json::as_array).into_iter().flatten().collect()
        }
        one => vec![one],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn source(json: Json) -> Source<'static> {
        Source { folder: Path::new("folder"), json, config: Json::Null }
    }

    fn bpe(pre_tokenizer: &Json, normalizer: &Json, byte_fallback: bool) -> Json {
        json!({ "pre_tokenizer": pre_tokenizer, "normalizer": normalizer, "model": { "type": "BPE", "byte_fallback": byte_fallback } })
    }

    #[test]
    fn splits_that_llama_cpp_knows_have_a_name_and_others_are_refused() {
        let split = |pre: &Json| match source(bpe(pre, &Json::Null, false)).way() {
            Ok(Way::ByteLevel { split }) => Some(split),
            _ => None,
        };
        let with = |mut json: Json, key: &str, value: Json| {
            json[key] = value;
            json
        };
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "use_regex": use_regex });
        let sequence =
            |first: Json, use_regex| json!({ "type": "Sequence", "pretokenizers": [first, bytes(use_regex)] });
        let regex = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern } });
        let digits = |individual_digits: bool| json!({ "type": "Digits", "individual_digits": individual_digits });
        assert_eq!(split(&bytes(true)), Some("gpt-2"));
        assert_eq!(split(&sequence(digits(true), true)), Some("smollm"));
        let llama3 = bpe(&sequence(regex(SPLITS[0].0), false), &Json::Null, false);
        assert!(source(llama3.clone()).way().is_err(), "merges whole words as well");
        let model = with(llama3["model"].clone(), "ignore_merges", json!(true));
        let Ok(Way::ByteLevel { split: "llama-bpe" }) = source(with(llama3, "model", model)).way() else { panic!() };
        assert_eq!(split(&with(bytes(true), "add_prefix_space", json!(true))), None);
        let lower = json!({ "type": "Lowercase" });
        assert!(source(bpe(&bytes(true), &lower, false)).way().is_err());
        assert!(source(bpe(&bytes(true), &json!({ "type": "NFC" }), false)).way().is_ok());
        assert_eq!(split(&sequence(regex(SPLITS[1].0), false)), Some("qwen2"));
        for other in [bytes(false), sequence(digits(false), true), sequence(regex("."), false), regex(".")] {
            assert_eq!(split(&other), None, "{other}");
        }
    }

    #[test]
    fn pieces_need_bytes_to_fall_back_on() {
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let prepend = json!({ "type": "Prepend", "prepend": "▁" });
        let both = json!({ "type": "Sequence", "normalizers": [prepend, replace] });
        let prefix = |normalizer: &Json, bytes| match source(bpe(&Json::Null, normalizer, bytes)).way() {
            Ok(Way::Pieces { space_prefix }) => Some(space_prefix),
            _ => None,
        };
        assert_eq!(
            (prefix(&both, true), prefix(&replace, true), prefix(&both, false)),
            (Some(true), Some(false), None)
        );
        let lower = json!({ "type": "Lowercase" });
        assert_eq!(prefix(&lower, true), None);
    }
}
