//! A model folder's tokenizer. Knows ids and text, not files of documents.

use super::bpe;
use super::chat::{ChatTemplate, Ending};
use crate::ModelError;
use serde_json::json;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The tokenizer of a model folder, as its files describe it, and its chat template if it has one.
///
/// Truncation and padding that they ask for are switched off. Special tokens come from the post-processor alone.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    digest: String,
    prefix: Vec<i64>,
    suffix: Vec<i64>,
    chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Returns the tokenizer of a model folder: its tokenizer.json, or else vocab.json with merges.txt (OPT, GPT-2).
    ///
    /// # Errors
    /// Neither of them, or files that this program cannot use; broken JSON beside them.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let fault = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
        let (mut inner, path, digest) = match fs::read(&path) {
            Ok(bytes) => {
                let inner = tokenizers::Tokenizer::from_bytes(&bytes)
                    .map_err(|e| fault(format!("not a tokenizer that can be used: {e}; fetch the file again")))?;
                (inner, path, blake3::hash(&bytes).to_hex().to_string())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let bpe::Read { tokenizer, path, digest } = bpe::read(folder)?.ok_or_else(|| fault(missing(folder)))?;
                (tokenizer, path, digest)
            }
            Err(e) => return Err(ModelError::io("read", &path)(e)),
        };
        let fault = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| fault(e.to_string()))?;
        let (prefix, suffix) = special_tokens(&inner).map_err(fault)?;
        let chat = ChatTemplate::open(folder)?;
        Ok(Self { inner, path, digest, prefix, suffix, chat })
    }

    /// Returns whether the tokenizer puts a BOS token first.
    pub fn bos(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Returns the BLAKE3 of tokenizer.json, in hex; without that file, over vocab.json and merges.txt, each after its
    /// length in bytes as a little-endian u64.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the token ids of a text, with the special tokens that the post-processor puts around it.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let mut ids = self.prefix.clone();
        ids.extend(self.encode_inner(text)?);
        ids.extend(&self.suffix);
        Ok(ids)
    }

    /// Returns the token ids of a text, with no token that is not in it.
    pub fn encode_inner(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.fault("tokenise the text", &e))?;
        Ok(ids(&encoding))
    }

    /// Returns the token ids of a user's message as the model sees it before it answers, in its chat template.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] for a model without a chat template, or with one that does not take the message.
    pub fn encode_message(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let fault = |reason: String| ModelError::Tokenizer { path: self.path.clone(), reason };
        let Some(chat) = &self.chat else {
            let reason =
                "the model folder has no chat template beside it (chat_template.jinja, or in tokenizer_config.json)";
            return Err(fault(format!("{reason}; models without one are not made for conversations")));
        };
        let message = json!({"role": "user", "content": text});
        self.encode_inner(&chat.render(&[message], Ending::Answer).map_err(fault)?)
    }

    /// Returns the text of token ids, without special tokens and such as the tokenizer does not know. Bytes that are no
    /// UTF-8 are given as the replacement character.
    pub fn decode(&self, ids: &[i64]) -> Result<String, ModelError> {
        let known: Vec<u32> = ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        self.inner.decode(&known, true).map_err(|e| self.fault("turn the tokens into text", &e))
    }

    /// Returns the token ids of several texts, with no token that is not in them; uses all cores.
    pub(super) fn encode_many(&self, texts: Vec<&str>) -> Result<Vec<Vec<i64>>, ModelError> {
        let encodings = self.inner.encode_batch_fast(texts, false).map_err(|e| self.fault("tokenise the text", &e))?;
        Ok(encodings.iter().map(ids).collect())
    }

    /// Returns what the post-processor puts before a text.
    pub(super) fn prefix(&self) -> &[i64] {
        &self.prefix
    }

    /// Returns what the post-processor puts after a text.
    pub(super) fn suffix(&self) -> &[i64] {
        &self.suffix
    }

    pub(super) fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    fn fault(&self, what: &str, e: &tokenizers::Error) -> ModelError {
        ModelError::Tokenizer { path: self.path.clone(), reason: format!("cannot {what}: {e}") }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// Returns the ids that the post-processor puts before and after a text.
fn special_tokens(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<i64>, Vec<i64>), String> {
    // the empty text is for vocabularies that do not know the letter and have no word for the unknown
    let encoding = tokenizer
        .encode_fast("a", true)
        .or_else(|_| tokenizer.encode_fast("", true))
        .map_err(|e| format!("cannot tokenise a single letter: {e}"))?;
    let all = ids(&encoding);
    let added = encoding.get_special_tokens_mask();
    let before = added.iter().take_while(|&&m| m == 1).count();
    if before == all.len() {
        // nothing of the text is left between them: the first is what begins a text, the others end it
        let (first, rest) = all.split_at(before.min(1));
        return Ok((first.to_vec(), rest.to_vec()));
    }
    let after = added.iter().rev().take_while(|&&m| m == 1).count();
    Ok((all[..before].to_vec(), all[all.len() - after..].to_vec()))
}

fn ids(encoding: &tokenizers::Encoding) -> Vec<i64> {
    encoding.get_ids().iter().map(|&id| i64::from(id)).collect()
}

fn missing(folder: &Path) -> String {
    let present = |name: &&str| folder.join(name).exists();
    let found = match ["vocab.json", "merges.txt", "tokenizer.model"].into_iter().find(present) {
        Some(name @ "tokenizer.model") => format!(" ({name} is there, but is not read)"),
        Some(name) => format!(" ({name} is there, but is of use only with both vocab.json and merges.txt)"),
        None => String::new(),
    };
    format!(
        "the model folder has no tokenizer.json{found}; copy it from the original model, or write it with transformers: \
         AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )
}
