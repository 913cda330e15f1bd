//! The zip around a pickle and its storages: where each entry's bytes lie. Reads no entry.

use super::{Fault, REMEDY, damaged, refused};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

const LOCAL_HEADER: &[u8] = b"PK\x03\x04";
const PICKLE: &str = "data.pkl";
/// What a tar has at byte 257.
const TAR: (usize, &[u8]) = (257, b"ustar");
/// What a pickle of protocol 2 or later begins with.
const RAW_PICKLE: u8 = 0x80;

/// A zip archive of `torch.save` whose entries lie within the file, uncompressed and without overlap.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    /// By their names below the archive's one folder.
    entries: BTreeMap<String, Range<usize>>,
}

impl<'a> Archive<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        if !bytes.starts_with(LOCAL_HEADER) {
            return Err(foreign(bytes));
        }
        let all = entries(bytes)?;
        check_overlap(&all)?;
        let is_pickle = |name: &str| name.split_once('/').is_some_and(|(_, rest)| rest == PICKLE);
        let mut pickles = all.iter().filter(|(name, _)| is_pickle(name));
        let (Some((pickle, _)), None) = (pickles.next(), pickles.next()) else {
            return damaged(format!("is a zip archive without one '{PICKLE}', so it is no PyTorch file"));
        };
        let folder = pickle.strip_suffix(PICKLE).unwrap_or_default().to_owned();
        let below = |name: &str| name.strip_prefix(&folder).map(str::to_owned);
        let entries = all.iter().filter_map(|(name, range)| Some((below(name)?, range.clone()))).collect();
        let archive = Self { bytes, entries };
        archive.check_contents()?;
        Ok(archive)
    }

    /// Returns where the bytes of an entry lie.
    pub(super) fn entry(&self, name: &str) -> Option<&Range<usize>> {
        self.entries.get(name)
    }

    /// Returns the pickle.
    pub(super) fn pickle(&self) -> Result<&'a [u8], Fault> {
        match self.content(PICKLE) {
            Some(bytes) => Ok(bytes),
            None => damaged(format!("holds no '{PICKLE}'")),
        }
    }

    fn content(&self, name: &str) -> Option<&'a [u8]> {
        self.bytes.get(self.entry(name)?.clone())
    }

    fn check_contents(&self) -> Result<(), Fault> {
        if self.entry("constants.pkl").is_some() {
            return refused(format!("is a TorchScript program, not a file of weights; {REMEDY}"));
        }
        // files of before the entry existed come from machines with the usual order
        match self.content("byteorder") {
            None | Some(b"little") => Ok(()),
            Some(b"big") => refused(format!("holds big-endian numbers, which are not read; {REMEDY}")),
            Some(_) => damaged("names a byte order that is neither little nor big"),
        }
    }
}

/// Returns name and place of every entry.
fn entries(bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>, Fault> {
    let broken = |e: zip::result::ZipError| Fault::Damaged(format!("is not a whole zip archive ({e})"));
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    if zip.has_duplicate_names() {
        return damaged("holds two entries of the same name");
    }
    let mut all = Vec::with_capacity(zip.len());
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(broken)?;
        let name = entry.name().map_err(broken)?.into_owned();
        if entry.encrypted() || entry.compression() != CompressionMethod::Stored {
            return refused(format!(
                "entry '{name}' is compressed or encrypted, so it cannot be read in place; {REMEDY}"
            ));
        }
        let start = entry.data_start();
        let end = start.and_then(|start| start.checked_add(entry.size()));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= bytes.len() as u64)) else {
            return damaged(format!("entry '{name}' reaches beyond the end of the file"));
        };
        if entry.compressed_size() != entry.size() {
            return damaged(format!("entry '{name}' is not compressed, but has two sizes"));
        }
        all.push((name, start as usize..end as usize));
    }
    Ok(all)
}

/// Refuses entries that share bytes: one would be read as the other.
fn check_overlap(all: &[(String, Range<usize>)]) -> Result<(), Fault> {
    let mut filled: Vec<_> = all.iter().filter(|(_, range)| !range.is_empty()).collect();
    filled.sort_by_key(|(_, range)| range.start);
    match filled.windows(2).find(|pair| pair[1].1.start < pair[0].1.end) {
        Some(pair) => damaged(format!("entries '{}' and '{}' overlap", pair[0].0, pair[1].0)),
        None => Ok(()),
    }
}

/// Returns what a file is that is no zip archive.
fn foreign(bytes: &[u8]) -> Fault {
    let (at, word) = TAR;
    let is_tar = bytes.get(at..).is_some_and(|rest| rest.starts_with(word));
    if is_tar || bytes.first() == Some(&RAW_PICKLE) {
        let reason = "is in a format of PyTorch before 1.6, which is not read";
        return Fault::Refused(format!("{reason}; {REMEDY}, or by torch.load and torch.save"));
    }
    Fault::Damaged("is no PyTorch file (a zip archive)".to_owned())
}
