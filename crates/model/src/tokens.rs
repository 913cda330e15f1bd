//! Text in, token ids out: documents from files, samples for calibration, segments for evaluation.
//!
//! Files are read in sorted order, so that the same files give the same digest in whatever order they were named.
//! This module downloads nothing, cleans nothing and knows no model weights.

mod bpe;
pub(crate) mod chat;
mod files;
pub(crate) mod json;
mod pack;
mod read;
mod stream;
mod tokenizer;

use crate::ModelError;
use std::collections::HashSet;
use std::path::PathBuf;

pub use pack::{Draw, Samples, Segments, pack_samples, segments};
pub use stream::TextStream;
pub use tokenizer::Tokenizer;

/// Where text is, and what it is called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOptions {
    /// Files, folders (with all that is below them) and globs.
    pub paths: Vec<String>,
    /// Column with the text in jsonl, json and parquet.
    pub text_column: String,
}

/// Whether the tokenizer may put special tokens around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextForm {
    /// Text as people write it; the tokenizer's post-processor adds its special tokens.
    Plain,
    /// A conversation in the model's chat template, which holds its special tokens already.
    Chat,
}

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text; more than white space.
    pub text: String,
    /// Whether special tokens are in it already.
    pub form: TextForm,
}

/// Every text of some files, in reading order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The texts; at least one.
    pub documents: Vec<Document>,
    /// Texts left out because they were empty.
    pub skipped: u64,
    /// BLAKE3 over the texts, each after its length in bytes as a little-endian u64.
    pub digest: String,
}

/// Reads every document of the named files; conversations are written out in the tokenizer's chat template.
///
/// A `.jsonl`, `.json` or `.parquet` file gives a document per row, a `.txt` file is one document; each may end in
/// `.gz` or `.zst` as well.
///
/// # Errors
/// A path that does not exist or matches nothing, a file that cannot be read or understood (with its line or byte), a
/// column that is not there, a conversation without a chat template, no text at all.
pub fn read_documents(options: &DataOptions, tokenizer: &Tokenizer) -> Result<Documents, ModelError> {
    let files = files::find(&options.paths)?;
    let mut reader = read::Reader::new(&options.text_column, tokenizer.chat_template());
    for file in &files {
        reader.read(file)?;
    }
    let (documents, skipped) = reader.finish();
    if documents.is_empty() {
        let reason = format!("no text in it: {skipped} documents, all of them empty; name other files");
        return Err(ModelError::Data { path: PathBuf::from(options.paths.join(", ")), reason });
    }
    let digest = digest(&documents);
    tracing::debug!(files = files.len(), documents = documents.len(), skipped, "documents read");
    Ok(Documents { documents, skipped, digest })
}

/// Returns the files that some paths mean, in reading order, each with the ending that tells its format, as `.jsonl.gz`.
///
/// # Errors
/// A path that does not exist or matches nothing, a file whose name tells no format.
pub fn data_files(paths: &[String]) -> Result<Vec<(PathBuf, String)>, ModelError> {
    let files = files::find(paths)?;
    Ok(files.into_iter().map(|file| (file.path.clone(), file.ending())).collect())
}

/// Returns how many documents of `b` are also in `a`, white space around them aside.
pub fn overlap(a: &Documents, b: &Documents) -> u64 {
    let hash = |d: &Document| blake3::hash(d.text.trim().as_bytes());
    let known: HashSet<_> = a.documents.iter().map(hash).collect();
    b.documents.iter().filter(|d| known.contains(&hash(d))).count() as u64
}

fn digest(documents: &[Document]) -> String {
    let mut hasher = blake3::Hasher::new();
    for document in documents {
        hasher.update(&(document.text.len() as u64).to_le_bytes());
        hasher.update(document.text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
