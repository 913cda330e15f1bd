//! An artifact on its way here: into a file beside the one that is wanted, which gets its name when it is whole.

use super::artifacts::stat;
use super::{Link, linked};
use crate::args::FetchArgs;
use crate::error::{CliError, FileAction};
use crate::output::print_line;
use crate::progress::{Display, Transfer};
use crate::prune;
use proto::v1;
use proto::v1::read_artifact_response::Part;
use service::Reason;
use service::retry::Retry;
use service::transfer::{self, Cut};
use std::cell::RefCell;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tonic::Status;
use types::format_bytes;

/// Longest label of a line of progress, in characters.
const LABEL: usize = 20;

/// Fetches an artifact.
pub(crate) fn fetch(args: &FetchArgs) -> Result<(), CliError> {
    let display = prune::start_display(args.quiet)?;
    linked(&args.remote, async |link| {
        let request = v1::StatArtifactsRequest { names: vec![args.name.clone()], ..Default::default() };
        let found = stat(&link, request).await?.artifacts.pop();
        let artifact = found.ok_or_else(|| CliError::ArtifactMissing { name: args.name.clone() })?;
        if args.out.exists() {
            if !is_same(&args.out, &artifact)? {
                return Err(CliError::OutputExists(args.out.clone()));
            }
            display.line(&format!("{} is here already", args.name));
            return print_line(&args.out.display().to_string());
        }
        let incoming = Incoming::open(&args.out, artifact)?;
        incoming.fetch(&link, &display).await?;
        incoming.keep(&args.out)?;
        print_line(&args.out.display().to_string())
    })
}

/// Says whether a file is a whole artifact, as far as its digest is known.
fn is_same(path: &Path, artifact: &v1::Artifact) -> Result<bool, CliError> {
    let unreadable = || CliError::file(FileAction::Read, path);
    let meta = fs::metadata(path).map_err(unreadable())?;
    Ok(meta.is_file() && meta.len() == artifact.bytes && digest(path).map_err(unreadable())? == artifact.blake3)
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// A file that is being filled. It is locked: another process at the same file is refused.
struct Incoming {
    artifact: v1::Artifact,
    path: PathBuf,
    file: RefCell<Partial>,
}

/// The bytes that are here.
struct Partial {
    file: File,
    bytes: u64,
    /// Why no more can be written.
    fault: Option<io::Error>,
}

impl Incoming {
    /// Opens what an earlier call began, or begins. Another artifact, or one that has changed, has another file.
    fn open(out: &Path, artifact: v1::Artifact) -> Result<Self, CliError> {
        let of = blake3::hash(format!("{}\n{}", artifact.name, artifact.bytes).as_bytes()).to_hex();
        let mut path = out.as_os_str().to_owned();
        path.push(format!(".{}.part", &of[..8]));
        let path = PathBuf::from(path);
        let unwritable = || CliError::file(FileAction::Write, &path);
        let mut file = File::options().create(true).write(true).truncate(false).open(&path).map_err(unwritable())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CliError::FetchedElsewhere(out.to_owned())),
            Err(TryLockError::Error(source)) => return Err(unwritable()(source)),
        }
        let mut bytes = file.seek(SeekFrom::End(0)).map_err(unwritable())?;
        if bytes > artifact.bytes {
            file.set_len(0).and_then(|()| file.rewind()).map_err(unwritable())?;
            bytes = 0;
        }
        Ok(Self { artifact, path, file: RefCell::new(Partial { file, bytes, fault: None }) })
    }

    /// Fetches what is missing.
    async fn fetch(&self, link: &Link, display: &Display) -> Result<(), CliError> {
        let label: String = self.artifact.name.rsplit('/').next().unwrap_or_default().chars().take(LABEL).collect();
        let shown = RefCell::new(Transfer::new(display, &label, self.artifact.bytes));
        let here = self.file.borrow().bytes;
        if here > 0 {
            display.line(&format!("goes on after {} of {}", format_bytes(here), format_bytes(self.artifact.bytes)));
        }
        let fetched = Retry::default().resume(|| self.file.borrow().bytes, || self.take(link, &shown)).await;
        if let Some(source) = self.file.borrow_mut().fault.take() {
            return Err(CliError::file(FileAction::Write, &self.path)(source));
        }
        fetched.map_err(CliError::call("cannot fetch the artifact"))?;
        shown.into_inner().finish(&format_bytes(self.artifact.bytes));
        Ok(())
    }

    /// Takes bytes from where the file ends for as long as they come.
    async fn take(&self, link: &Link, shown: &RefCell<Transfer>) -> Result<(), Status> {
        let offset = self.file.borrow().bytes;
        let request = v1::ReadArtifactRequest { name: self.artifact.name.clone(), offset, length: 0 };
        let mut parts = link.artifacts.clone().read_artifact(request).await?.into_inner();
        loop {
            let part = match transfer::next(&mut parts).await {
                Ok(Some(message)) => message.part,
                Ok(None) => break,
                Err(Cut::Silent) => return Err(Status::unavailable("the coordinator has fallen silent")),
                Err(Cut::Broken(status)) => return Err(status),
            };
            match part {
                Some(Part::Artifact(artifact)) if artifact.bytes != self.artifact.bytes => {
                    return Err(Reason::ObjectNotFound.status("the artifact has changed; fetch it anew"));
                }
                Some(Part::Artifact(_)) | None => {}
                Some(Part::Chunk(chunk)) => {
                    self.append(&chunk)?;
                    shown.borrow_mut().at(self.file.borrow().bytes);
                }
            }
        }
        let whole = self.file.borrow().bytes == self.artifact.bytes;
        if whole { Ok(()) } else { Err(Status::unavailable("the stream ended before the artifact did")) }
    }

    /// Writes a chunk at the file's end, if it is what was sent.
    fn append(&self, chunk: &v1::ArtifactChunk) -> Result<(), Status> {
        let mut file = self.file.borrow_mut();
        let checked =
            transfer::check(std::slice::from_ref(&chunk.payload), chunk.offset, chunk.crc32c, self.artifact.bytes);
        if checked.is_err() || chunk.offset != file.bytes {
            // What came so far is good; the rest is asked for again.
            return Err(Status::unavailable("a chunk was damaged on the way"));
        }
        let written = file.file.write_all(&chunk.payload);
        if let Err(fault) = written {
            let status = Status::aborted(fault.to_string());
            file.fault = Some(fault);
            return Err(status);
        }
        file.bytes += chunk.payload.len() as u64;
        Ok(())
    }

    /// Gives the file its name.
    fn keep(self, out: &Path) -> Result<(), CliError> {
        let unwritable = || CliError::file(FileAction::Write, &self.path);
        self.file.borrow().file.sync_all().map_err(unwritable())?;
        if !self.artifact.blake3.is_empty() && digest(&self.path).map_err(unwritable())? != self.artifact.blake3 {
            fs::remove_file(&self.path).map_err(unwritable())?;
            let problem = "it is removed; the same command begins anew".to_owned();
            return Err(CliError::Damaged { what: self.path.display().to_string(), problem });
        }
        fs::rename(&self.path, out).map_err(CliError::file(FileAction::Write, out))?;
        // The name is to outlast a crash, too, where folders can be synced.
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}
