//! A byte-level BPE tokenizer from `vocab.json` and `merges.txt`, for folders of before `tokenizer.json`: OPT and GPT-2.
//!
//! Does what transformers' `GPT2Tokenizer` does. Other classes split text differently before the merges; they share the
//! names of the files, so they are refused and not guessed.

use super::json::{json_file, text_file, token};
use crate::ModelError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
/// The classes, and the families for folders that name none.
const CLASSES: [&str; 2] = ["GPT2Tokenizer", "GPT2TokenizerFast"];
const FAMILIES: [&str; 2] = ["opt", "gpt2"];
/// What a `GPT2Tokenizer` takes for special tokens that are not named.
const USUAL: &str = "<|endoftext|>";
const USUAL_FOR: [&str; 3] = ["bos_token", "eos_token", "unk_token"];
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// A tokenizer and what it was read from.
pub(super) struct Read {
    pub(super) tokenizer: Tokenizer,
    /// The vocabulary, for messages.
    pub(super) path: PathBuf,
    /// BLAKE3, in hex, over vocab.json and merges.txt, each after its length in bytes as a little-endian u64.
    pub(super) digest: String,
}

/// The files beside the vocabulary that say which tokens are special.
struct Settings {
    path: PathBuf,
    config: Value,
    map: Value,
}

/// Returns the tokenizer in `folder`, or `None` if it lacks one of the two files.
///
/// # Errors
/// A file that is broken, with its line; another class of tokenizer; special tokens that contradict the vocabulary.
pub(super) fn read(folder: &Path) -> Result<Option<Read>, ModelError> {
    let (path, merges_path) = (folder.join(VOCABULARY), folder.join(MERGES));
    let (Some(words), Some(merges)) = (text_file(&path)?, text_file(&merges_path)?) else { return Ok(None) };
    let settings = Settings::read(folder)?;
    let mut hasher = blake3::Hasher::new();
    for text in [&words, &merges] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    let fault = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
    let vocabulary: HashMap<String, u32> = serde_json::from_str(&words)
        .map_err(|e| fault(format!("not a vocabulary, an object of words and numbers: {e}; fetch the file again")))?;
    let merges =
        parse_merges(&merges, &vocabulary).map_err(|reason| ModelError::Tokenizer { path: merges_path, reason })?;
    let bpe = BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges).build();
    let mut tokenizer = Tokenizer::new(bpe.map_err(|e| fault(format!("cannot be used: {e}")))?);
    let prefix_space = settings.config["add_prefix_space"].as_bool().unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix_space, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    settings.add_beside(&mut tokenizer, folder)?;
    settings.add_special(&mut tokenizer);
    let around = settings.post_processor(&tokenizer)?;
    tokenizer.with_post_processor(around);
    let digest = hasher.finalize().to_hex().to_string();
    Ok(Some(Read { tokenizer, path, digest }))
}

/// Returns the pairs of `merges.txt`, the first to be merged first, or what is wrong with it and where.
fn parse_merges(text: &str, vocabulary: &HashMap<String, u32>) -> Result<Vec<(String, String)>, String> {
    let mut merges = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        let pair = line.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
        let Some((a, b)) = pair else {
            return Err(format!("line {number}: expected two words with a blank between them; fetch the file again"));
        };
        let joined = format!("{a}{b}");
        if let Some(lost) = [a, b, &joined].into_iter().find(|word| !vocabulary.contains_key(*word)) {
            return Err(format!(
                "line {number}: '{lost}' is not in {VOCABULARY}; the two files do not belong together"
            ));
        }
        merges.push((a.to_owned(), b.to_owned()));
    }
    Ok(merges)
}

/// Returns a token, written as a text or as an object.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |name: &str| value[name].as_bool();
    let token = AddedToken::from(token(value)?, special)
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .single_word(flag("single_word").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

impl Settings {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer_config.json");
        let config = json_file(&path)?;
        let class = config["tokenizer_class"].as_str();
        let model = json_file(&folder.join("config.json"))?;
        let family = model["model_type"].as_str();
        let known = match (class, family) {
            (Some(class), _) => CLASSES.contains(&class),
            (None, Some(family)) => FAMILIES.contains(&family),
            (None, None) => true,
        };
        if !known {
            let found = class.or(family).unwrap_or_default();
            return Err(ModelError::Tokenizer {
                path,
                reason: format!(
                    "the model folder has no tokenizer.json, and {VOCABULARY} with {MERGES} is read as a {} only, not for '{found}'; write \
                     tokenizer.json with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
                    CLASSES[0]
                ),
            });
        }
        Ok(Self { path, config, map: json_file(&folder.join("special_tokens_map.json"))? })
    }

    /// Returns what a special token is said to be.
    fn named(&self, name: &str) -> Option<&Value> {
        [&self.config[name], &self.map[name]].into_iter().find(|value| token(value).is_some())
    }

    /// Adds the tokens that the folder numbers beside the vocabulary.
    fn add_beside(&self, tokenizer: &mut Tokenizer, folder: &Path) -> Result<(), ModelError> {
        let path = folder.join("added_tokens.json");
        let fault = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
        let special = self.special();
        let mut added = BTreeMap::new();
        for (word, id) in json_file(&path)?.as_object().unwrap_or(&Map::new()) {
            let number = id.as_u64();
            let number =
                number.ok_or_else(|| fault(format!("the number of '{word}' is {id}, expected a whole number")))?;
            let is_special = special.iter().any(|token| token.content == *word);
            added.insert(number, AddedToken::from(word.clone(), is_special));
        }
        // says more of each token than the older file, and wins over it
        for (id, value) in self.config["added_tokens_decoder"].as_object().unwrap_or(&Map::new()) {
            let (Ok(number), Some(token)) = (id.parse(), added_token(value, value["special"] == true)) else {
                return Err(self.fault(format!("added_tokens_decoder describes token {id} as {value}")));
            };
            added.insert(number, token);
        }
        for (number, token) in added {
            let word = token.content.clone();
            if token.special {
                tokenizer.add_special_tokens(&[token])
            } else {
                tokenizer.add_tokens(&[token])
            };
            if tokenizer.token_to_id(&word).map(u64::from) != Some(number) {
                let found = tokenizer.get_vocab_size(true);
                return Err(fault(format!(
                    "'{word}' is numbered {number}, but {found} tokens are known with it; it belongs to another {VOCABULARY}"
                )));
            }
        }
        Ok(())
    }

    /// Makes the special tokens special. Those of the folder's own numbers stay as they were described there; such as
    /// have no number yet get the next ones, as transformers gives them.
    fn add_special(&self, tokenizer: &mut Tokenizer) {
        let known: Vec<_> = tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let mut special = self.special();
        special.retain(|token| !known.contains(&token.content));
        tokenizer.add_special_tokens(&special);
        let is_unnamed = |name: &&str| self.named(name).is_none();
        if USUAL_FOR.iter().any(is_unnamed) && tokenizer.token_to_id(USUAL).is_some() {
            tokenizer.add_special_tokens(&[AddedToken::from(USUAL, true)]);
        }
    }

    /// Returns the tokens that the folder calls special.
    fn special(&self) -> Vec<AddedToken> {
        let lists =
            LISTS.into_iter().flat_map(|name| [&self.config[name], &self.map[name]]).filter_map(Value::as_array);
        let said = NAMED.into_iter().filter_map(|name| self.named(name)).chain(lists.flatten());
        said.filter_map(|value| added_token(value, true)).collect()
    }

    /// Returns a fault of the config beside the vocabulary.
    fn fault(&self, reason: String) -> ModelError {
        ModelError::Tokenizer { path: self.path.clone(), reason }
    }

    /// Returns what puts BOS before a text and EOS after it, where the folder wants them.
    fn post_processor(&self, tokenizer: &Tokenizer) -> Result<Option<PostProcessorWrapper>, ModelError> {
        let wanted = |flag: &str, name: &str| {
            if self.config[flag] != true {
                return Ok(None);
            }
            let word = self.named(name).and_then(token).unwrap_or_else(|| USUAL.to_owned());
            match tokenizer.token_to_id(&word) {
                Some(id) => Ok(Some((word, id))),
                None => {
                    Err(self.fault(format!("{flag} is set, but '{word}' is not in {VOCABULARY}; name another {name}")))
                }
            }
        };
        let (bos, eos) = (wanted("add_bos_token", "bos_token")?, wanted("add_eos_token", "eos_token")?);
        let piece = |(word, _): &(String, u32)| json!({"SpecialToken": {"id": word, "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let around = |texts: &[Value]| -> Vec<Value> {
            bos.iter().map(piece).chain(texts.iter().cloned()).chain(eos.iter().map(piece)).collect()
        };
        let special: Map<_, _> = bos
            .iter()
            .chain(&eos)
            .map(|(word, id)| (word.clone(), json!({"id": word, "ids": [id], "tokens": [word]})))
            .collect();
        let template = json!({
            "type": "TemplateProcessing", "single": around(&[text("A")]), "pair": around(&[text("A"), text("B")]),
            "special_tokens": special,
        });
        let template: TemplateProcessing = serde_json::from_value(template).map_err(|e| self.fault(e.to_string()))?;
        Ok((bos.is_some() || eos.is_some()).then(|| template.into()))
    }
}
