//! Data files on their way to a coordinator's store. What is there already is not sent again; a broken upload goes on.

use super::Link;
use crate::args::RunArgs;
use crate::error::{CliError, FileAction};
use crate::progress::{Display, Transfer};
use crate::prune::is_address;
use model::tokens::data_files;
use proto::convert::ArtifactAddress;
use proto::v1;
use proto::v1::write_artifact_request::Part;
use service::Reason;
use service::retry::Retry;
use service::status::reason_of;
use service::transfer::{Chunk, chunks};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::format_bytes;

/// How often progress is looked at.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// Chunks that wait to be sent.
const WAITING: usize = 2;
/// How often an upload is begun anew because its bytes were not what their digest said.
const TRIES: usize = 3;
/// Longest name in a line of progress, in characters.
const LABEL: usize = 20;

/// Brings the data of a run, and returns what is to be asked for instead of its paths.
pub(super) async fn bring(link: &Link, run: &RunArgs, display: &Display) -> Result<RunArgs, CliError> {
    let mut brought = run.clone();
    brought.data = addresses(link, &run.data, display).await?;
    brought.eval_data = addresses(link, &run.eval_data, display).await?;
    Ok(brought)
}

/// Brings the files that paths mean; addresses of what workers reach stay as they are.
async fn addresses(link: &Link, paths: &[String], display: &Display) -> Result<Vec<String>, CliError> {
    let (mut addresses, local): (Vec<String>, Vec<String>) = paths.iter().cloned().partition(|path| is_address(path));
    if !local.is_empty() {
        for (path, ending) in data_files(&local)? {
            let blake3 = bring_file(link, &path, display).await?;
            addresses.push(ArtifactAddress { blake3, ending }.to_string());
        }
    }
    Ok(addresses)
}

/// Brings a file, and returns its digest.
async fn bring_file(link: &Link, path: &Path, display: &Display) -> Result<String, CliError> {
    for _ in 0..TRIES {
        let (blake3, bytes) = digest(path).map_err(CliError::file(FileAction::Read, path))?;
        if bytes == 0 {
            return Err(CliError::Usage(format!("{} is empty; name files with text in them", path.display())));
        }
        let outgoing = Outgoing {
            path: path.to_owned(),
            header: v1::WriteArtifactHeader { blake3: blake3.clone(), bytes, offset: 0 },
            sent: Arc::default(),
            fault: Arc::default(),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let shown = RefCell::new(Transfer::new(display, &name.chars().take(LABEL).collect::<String>(), bytes));
        let sent = Retry::default().resume(|| outgoing.sent(), || outgoing.send(link, &shown)).await;
        if let Some(source) = outgoing.fault() {
            return Err(CliError::File { action: FileAction::Read, path: path.to_owned(), source });
        }
        match sent {
            Ok(()) => {
                shown.into_inner().finish(&format!("is there, {}", format_bytes(bytes)));
                return Ok(blake3);
            }
            Err(status) if reason_of(&status) == Some(Reason::DigestMismatch) => {}
            Err(status) => return Err(CliError::call("cannot upload the data")(status)),
        }
    }
    let problem = format!("{TRIES} times it changed, or was damaged on the way; leave the file alone and try again");
    Err(CliError::Damaged { what: path.display().to_string(), problem })
}

/// A file on its way.
struct Outgoing {
    path: PathBuf,
    header: v1::WriteArtifactHeader,
    /// Bytes that are there or on their way.
    sent: Arc<AtomicU64>,
    /// Why the file cannot be read.
    fault: Arc<Mutex<Option<io::Error>>>,
}

impl Outgoing {
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn fault(&self) -> Option<io::Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks what is there, and sends the rest.
    async fn send(&self, link: &Link, shown: &RefCell<Transfer>) -> Result<(), Status> {
        let mut client = link.artifacts.clone();
        let there =
            client.write_artifact(tokio_stream::iter([part(Part::Header(self.header.clone()))])).await?.into_inner();
        self.sent.store(there.received, Ordering::Relaxed);
        if there.complete {
            return Ok(());
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let header = v1::WriteArtifactHeader { offset: there.received, ..self.header.clone() };
        let (path, sent, fault) = (self.path.clone(), Arc::clone(&self.sent), Arc::clone(&self.fault));
        tokio::task::spawn_blocking(move || {
            if let Err(error) = read(&path, header, &sender, &sent) {
                *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        let mut answer = std::pin::pin!(client.write_artifact(ReceiverStream::new(receiver)));
        let answer = loop {
            tokio::select! {
                answer = &mut answer => break answer?.into_inner(),
                () = tokio::time::sleep(SHOW_EVERY) => shown.borrow_mut().at(self.sent()),
            }
        };
        if answer.complete { Ok(()) } else { Err(Status::unavailable("the upload ended before the file did")) }
    }
}

fn part(part: Part) -> v1::WriteArtifactRequest {
    v1::WriteArtifactRequest { part: Some(part) }
}

/// Reads a file from where a header says, for as long as somebody takes it.
fn read(
    path: &Path,
    header: v1::WriteArtifactHeader,
    sender: &mpsc::Sender<v1::WriteArtifactRequest>,
    sent: &AtomicU64,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut at = file.seek(SeekFrom::Start(header.offset))?;
    let mut goes_on = sender.blocking_send(part(Part::Header(header))).is_ok();
    while goes_on {
        let mut piece = Vec::with_capacity(proto::CHUNK_BYTES);
        if file.by_ref().take(proto::CHUNK_BYTES as u64).read_to_end(&mut piece)? == 0 {
            break;
        }
        for Chunk { offset, crc32c, payload } in chunks(&piece.into(), at) {
            at += payload.len() as u64;
            goes_on = sender.blocking_send(part(Part::Chunk(v1::ArtifactChunk { offset, crc32c, payload }))).is_ok();
            sent.store(at, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Returns a file's digest and length.
fn digest(path: &Path) -> io::Result<(String, u64)> {
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((hasher.finalize().to_hex().to_string(), bytes))
}
