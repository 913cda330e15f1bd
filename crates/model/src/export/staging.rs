//! The folder beside the final one: filled, synced and renamed, or removed.

use super::PAGE;
use crate::ModelError;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A folder that takes its final name when [`Staging::publish`] is called and vanishes when it is not.
pub(super) struct Staging {
    partial: PathBuf,
    output: PathBuf,
}

impl Staging {
    /// Makes an empty folder beside `output`; one that an earlier, killed attempt left over is removed first.
    pub(super) fn begin(output: &Path) -> Result<Self, ModelError> {
        let Some(name) = output.file_name() else {
            return Err(ModelError::OutputExists { path: output.to_owned() });
        };
        let parent = parent(output);
        fs::create_dir_all(&parent).map_err(ModelError::io("write", &parent))?;
        let partial = parent.join(format!(".{}.partial", name.to_string_lossy()));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(ModelError::io("remove", &partial))?;
        }
        fs::create_dir(&partial).map_err(ModelError::io("write", &partial))?;
        Ok(Self { partial, output: output.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.partial
    }

    /// Writes one file.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ModelError> {
        self.stream(name, |out| out.write_all(bytes).map_err(ModelError::io("write", &self.output.join(name))))
    }

    /// Writes one file through `fill`, and syncs it.
    pub(super) fn stream(
        &self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let path = self.partial.join(name);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(ModelError::io("write", &path))?);
        fill(&mut out)?;
        out.flush().map_err(ModelError::io("write", &path))?;
        out.get_ref().sync_all().map_err(ModelError::io("write", &path))
    }

    /// Copies the file `source`, or what it links to.
    pub(super) fn copy(&self, source: &Path, name: &str) -> Result<(), ModelError> {
        let mut from = File::open(source).map_err(ModelError::io("read", source))?;
        self.stream(name, |out| {
            std::io::copy(&mut from, out).map(drop).map_err(ModelError::io("copy", &self.output.join(name)))
        })
    }

    /// Gives the folder its final name; returns its digest and size.
    ///
    /// # Errors
    /// [`ModelError::OutputExists`] if something else has the name; the same bytes are as good as a rename.
    pub(super) fn publish(self) -> Result<(String, u64), ModelError> {
        let (digest, bytes) = folder_digest(&self.partial)?;
        sync_folder(&self.partial)?;
        if self.output.symlink_metadata().is_ok() {
            if folder_digest(&self.output).is_ok_and(|(found, _)| found == digest) {
                return Ok((digest, bytes));
            }
            return Err(ModelError::OutputExists { path: self.output.clone() });
        }
        fs::rename(&self.partial, &self.output).map_err(ModelError::io("write", &self.output))?;
        sync_folder(&parent(&self.output))?;
        Ok((digest, bytes))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        if let Err(error) = fs::remove_dir_all(&self.partial)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.partial.display(), %error, "unfinished output could not be removed");
        }
    }
}

/// Returns the BLAKE3 digest, in hex, over names and contents of the files in `folder`, by name, and their bytes; all but
/// [`PAGE`].
pub fn folder_digest(folder: &Path) -> Result<(String, u64), ModelError> {
    let entries = fs::read_dir(folder).map_err(ModelError::io("read", folder))?;
    let mut files = entries
        .map(|entry| Ok(entry.map_err(ModelError::io("read", folder))?.path()))
        .collect::<Result<Vec<_>, ModelError>>()?;
    files.retain(|path| path.file_name().is_none_or(|name| name != PAGE));
    files.sort();
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let file = File::open(&path).map_err(ModelError::io("read", &path))?;
        let length = file.metadata().map_err(ModelError::io("read", &path))?.len();
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&length.to_le_bytes());
        hasher.update_reader(file).map_err(ModelError::io("read", &path))?;
        bytes += length;
    }
    Ok((hasher.finalize().to_hex().to_string(), bytes))
}

/// Returns the folder that holds `path`.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes the entries of a folder last.
fn sync_folder(folder: &Path) -> Result<(), ModelError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(ModelError::io("write", folder))
}
