//! `artifact_service.proto`: names of what callers brought, and addresses by which a run's data means it.

use super::{InvalidMessage, REQUEST};
use std::fmt;

/// What begins the name of an artifact that a caller brought.
const FOLDER: &str = "artifacts/";
/// What begins an address.
const SCHEME: &str = "artifact:";
/// Longest ending of an address, in bytes.
const MAX_ENDING: usize = 32;

/// Returns the resource name of an artifact that a caller brought.
pub fn artifact_name(blake3: &str) -> String {
    format!("{FOLDER}{blake3}")
}

/// Returns the digest of the artifact that a request names by its resource name `artifacts/{blake3}`.
pub fn artifact_of_name(field: &str, name: &str) -> Result<String, InvalidMessage> {
    let digest = name.strip_prefix(FOLDER);
    let digest = digest.ok_or_else(|| REQUEST.bad(field, "is not of the form artifacts/{blake3}"))?;
    REQUEST.blake3(field, digest.to_owned())
}

/// What a run's data means by `artifact:{blake3}{ending}`: an artifact, read as a file with this ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactAddress {
    /// Digest of its bytes.
    pub blake3: String,
    /// Empty, or as `.jsonl.gz`.
    pub ending: String,
}

impl ArtifactAddress {
    /// Returns the artifact that one of a run's paths means; nothing for a path that is one.
    ///
    /// # Errors
    /// An address whose digest or ending cannot be.
    pub fn parse(field: &str, path: &str) -> Result<Option<Self>, InvalidMessage> {
        let Some(address) = path.strip_prefix(SCHEME) else { return Ok(None) };
        let (digest, ending) = address.split_at(address.find('.').unwrap_or(address.len()));
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'.';
        if ending.len() > MAX_ENDING || !ending.bytes().all(legal) || ending.ends_with('.') || ending.contains("..") {
            return Err(
                REQUEST.bad(field, "is not of the form artifact:{blake3}.jsonl, with the ending of a file name")
            );
        }
        Ok(Some(Self { blake3: REQUEST.blake3(field, digest.to_owned())?, ending: ending.to_owned() }))
    }
}

impl fmt::Display for ArtifactAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.blake3, self.ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_and_paths_are_none() {
        let digest = "0f".repeat(32);
        for ending in ["", ".jsonl", ".jsonl.gz"] {
            let address = ArtifactAddress { blake3: digest.clone(), ending: ending.into() };
            assert_eq!(ArtifactAddress::parse("data", &address.to_string()), Ok(Some(address)));
        }
        assert_eq!(ArtifactAddress::parse("data", "/data/artifact:x.jsonl"), Ok(None));
        for bad in
            ["", "0f", ".jsonl", "../x", &format!("{digest}/x"), &format!("{digest}.a/b"), &format!("{digest}..")]
        {
            assert!(ArtifactAddress::parse("data", &format!("artifact:{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_hold_a_digest_and_nothing_else() {
        let digest = "a0".repeat(32);
        assert_eq!(artifact_of_name("name", &artifact_name(&digest)), Ok(digest.clone()));
        for bad in ["artifacts/", "artifacts/..", &digest, &format!("artifacts/{digest}/x"), "runs/r"] {
            assert!(artifact_of_name("name", bad).is_err(), "{bad}");
        }
    }
}
