//! Which files a list of paths means, and their bytes. Does not look into the bytes.

use crate::ModelError;
use flate2::read::MultiGzDecoder;
use glob::MatchOptions;
use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const KNOWN: &str = ".jsonl, .json, .txt or .parquet, each also with .gz or .zst";

/// How a file holds its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    JsonLines,
    Json,
    Text,
    Parquet,
}

/// How a file's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// A file with documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    compression: Compression,
}

impl DataFile {
    /// Returns the file if its name says that it holds documents.
    fn recognise(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (stem, compression) = if let Some(stem) = name.strip_suffix(".gz") {
            (stem, Compression::Gzip)
        } else if let Some(stem) = name.strip_suffix(".zst") {
            (stem, Compression::Zstd)
        } else {
            (name.as_str(), Compression::Plain)
        };
        let format = match stem.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Format::JsonLines,
            "json" => Format::Json,
            "txt" => Format::Text,
            "parquet" => Format::Parquet,
            _ => return None,
        };
        Some(Self { path: path.to_owned(), format, compression })
    }

    /// Returns the ending of a name that says the same, as `.jsonl.gz`.
    pub(super) fn ending(&self) -> String {
        let format = match self.format {
            Format::JsonLines => ".jsonl",
            Format::Json => ".json",
            Format::Text => ".txt",
            Format::Parquet => ".parquet",
        };
        let compression = match self.compression {
            Compression::Plain => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        };
        format!("{format}{compression}")
    }

    /// Returns the file's content, unpacked.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, ModelError> {
        let raw = fs::read(&self.path).map_err(ModelError::io("read", &self.path))?;
        let unpacked = match self.compression {
            Compression::Plain => return Ok(raw),
            Compression::Gzip => unpack(MultiGzDecoder::new(raw.as_slice())),
            Compression::Zstd => unpack_zstd(&raw),
        };
        unpacked.map_err(|e| self.fault(format!("cannot be unpacked: {e}; the file is damaged, fetch it again")))
    }

    /// Returns an error about this file.
    pub(super) fn fault(&self, reason: impl Into<String>) -> ModelError {
        fault(&self.path, reason)
    }
}

/// Returns the files that `paths` mean, sorted by path, each once.
pub(super) fn find(paths: &[String]) -> Result<Vec<DataFile>, ModelError> {
    let mut found = Vec::new();
    for path in paths {
        found.extend(named(path)?);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let mut seen = HashSet::new();
    found.retain(|file| seen.insert(fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone())));
    Ok(found)
}

/// Returns the files that one path means: at least one.
fn named(path: &str) -> Result<Vec<DataFile>, ModelError> {
    let place = Path::new(path);
    match fs::metadata(place) {
        Ok(meta) if meta.is_dir() => {
            let mut found = Vec::new();
            walk(place, &mut HashSet::new(), &mut found)?;
            if found.is_empty() {
                return Err(fault(place, format!("the folder holds no file that ends in {KNOWN}")));
            }
            Ok(found)
        }
        Ok(_) => match DataFile::recognise(place) {
            Some(file) => Ok(vec![file]),
            None => Err(fault(place, format!("cannot tell what kind of file this is; its name must end in {KNOWN}"))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.contains(['*', '?', '[']) => matching(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(fault(place, "no such file or folder; check the path (a pattern like 'data/*.jsonl' is possible too)"))
        }
        Err(e) => Err(ModelError::io("read", place)(e)),
    }
}

fn matching(pattern: &str) -> Result<Vec<DataFile>, ModelError> {
    let place = Path::new(pattern);
    // as in a shell, `*` leaves hidden files alone
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let matches = glob::glob_with(pattern, options).map_err(|e| fault(place, format!("not a valid pattern: {e}")))?;
    let mut found = Vec::new();
    let mut others = 0_u64;
    for entry in matches {
        let path = entry.map_err(|e| {
            let path = e.path().to_owned();
            ModelError::io("read", &path)(e.into())
        })?;
        if path.is_dir() {
            walk(&path, &mut HashSet::new(), &mut found)?;
        } else if let Some(file) = DataFile::recognise(&path) {
            found.push(file);
        } else {
            others += 1;
        }
    }
    if found.is_empty() {
        let reason = format!("the pattern matches no file that ends in {KNOWN} ({others} other files)");
        return Err(fault(place, reason));
    }
    Ok(found)
}

/// Adds every data file below `folder`; hidden files and folders are not looked at, links are followed once.
fn walk(folder: &Path, visited: &mut HashSet<PathBuf>, found: &mut Vec<DataFile>) -> Result<(), ModelError> {
    let real = fs::canonicalize(folder).map_err(ModelError::io("read", folder))?;
    if !visited.insert(real) {
        return Ok(());
    }
    let entries = fs::read_dir(folder).map_err(ModelError::io("read", folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ModelError::io("read", folder))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, visited, found)?;
        } else {
            found.extend(DataFile::recognise(&path));
        }
    }
    Ok(())
}

fn unpack(mut reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unpack_zstd(raw: &[u8]) -> io::Result<Vec<u8>> {
    let mut decoder = zstd::Decoder::with_buffer(raw)?;
    // files made with `zstd --long` ask for more than the decoder's default window
    decoder.window_log_max(31)?;
    unpack(decoder)
}

fn fault(path: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::Data { path: path.to_owned(), reason: reason.into() }
}
