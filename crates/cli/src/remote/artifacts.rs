//! What lies in a coordinator's store: shown, and removed.

use super::{Link, linked};
use crate::args::ArtifactsArgs;
use crate::error::CliError;
use crate::output::{print, print_json, print_line};
use crate::text::{Align, Table};
use proto::v1;
use serde::Serialize;
use service::retry::{CALL_TIMEOUT, Retry, within};
use types::format_bytes;

/// Artifacts of a page.
const PAGE: i32 = 1000;

/// An artifact, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Shown {
    #[serde(rename = "artifact")]
    name: String,
    bytes: u64,
    /// Empty if nobody has computed it.
    blake3: String,
    /// Seconds since 1970.
    written: i64,
}

impl From<v1::Artifact> for Shown {
    fn from(artifact: v1::Artifact) -> Self {
        let written = artifact.write_time.map_or(0, |time| time.seconds);
        Self { name: artifact.name, bytes: artifact.bytes, blake3: artifact.blake3, written }
    }
}

/// Shows artifacts, or removes one.
pub(crate) fn artifacts(args: &ArtifactsArgs) -> Result<(), CliError> {
    linked(&args.remote, async |link| match &args.delete {
        Some(name) => delete(&link, name).await,
        None => list(&link, &args.prefix, args.json).await,
    })
}

async fn delete(link: &Link, name: &str) -> Result<(), CliError> {
    let request_id = service::RequestIds::new("artifacts").next();
    let request = v1::DeleteArtifactRequest { request_id, name: name.to_owned() };
    let delete = || async { link.artifacts.clone().delete_artifact(within(CALL_TIMEOUT, request.clone())).await };
    Retry::default().call(delete).await.map_err(CliError::call("cannot delete the artifact"))?;
    print_line(&format!("{name} is deleted"))
}

async fn list(link: &Link, prefix: &str, json: bool) -> Result<(), CliError> {
    let mut table = Table::new(&[Align::Left, Align::Right]);
    table.row(["artifact", "size"]);
    let (mut page_token, mut count) = (String::new(), 0);
    loop {
        let request =
            v1::StatArtifactsRequest { prefix: prefix.to_owned(), page_size: PAGE, page_token, ..Default::default() };
        let page = stat(link, request).await?;
        for artifact in page.artifacts.into_iter().map(Shown::from) {
            count += 1;
            if json {
                print_json(&artifact)?;
            } else {
                table.row([artifact.name, format_bytes(artifact.bytes)]);
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match (json, count) {
        (true, _) => Ok(()),
        (false, 0) => print_line("no artifacts"),
        (false, _) => print(&table.render(0)),
    }
}

/// Returns artifacts by name or by folder.
pub(super) async fn stat(
    link: &Link,
    request: v1::StatArtifactsRequest,
) -> Result<v1::StatArtifactsResponse, CliError> {
    let stat = || async { link.artifacts.clone().stat_artifacts(within(CALL_TIMEOUT, request.clone())).await };
    Retry::default().call(stat).await.map_err(CliError::call("cannot look at the artifacts"))
}
