//! What an address says, without looking whether anything is there.

use super::PlaceError;
use proto::convert::ArtifactAddress;

/// A parsed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address<'a> {
    /// A path of this host.
    Path(&'a str),
    /// What a caller wrote into the store.
    Artifact(ArtifactAddress),
    /// In a bucket.
    Bucket(BucketAddress<'a>),
}

/// `s3://bucket`, or `s3://bucket/prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BucketAddress<'a>(&'a str);

impl<'a> Address<'a> {
    /// Returns what an address says; nothing for one of an unknown or broken form.
    pub(super) fn parse(given: &'a str) -> Option<Self> {
        match ArtifactAddress::parse("address", given) {
            Ok(Some(artifact)) => return Some(Self::Artifact(artifact)),
            Ok(None) => {}
            Err(_) => return None,
        }
        match given.split_once("://") {
            None => Some(Self::Path(given)),
            Some(("file", path)) if path.starts_with('/') => Some(Self::Path(path)),
            Some(("s3", path)) if !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | "..")) => {
                Some(Self::Bucket(BucketAddress(given)))
            }
            // A slash at the end is how people write folders.
            Some(("s3", path)) => match path.strip_suffix('/') {
                Some(trimmed) if !trimmed.is_empty() && !trimmed.ends_with('/') => {
                    Self::parse(given.strip_suffix('/')?)
                }
                _ => None,
            },
            Some(_) => None,
        }
    }
}

impl<'a> BucketAddress<'a> {
    /// Returns the address of the folder that holds this one, and its name there; nothing for a whole bucket.
    pub(super) fn split(&self) -> Option<(&'a str, &'a str)> {
        let (parent, name) = self.0.rsplit_once('/')?;
        (parent != "s3:/").then_some((parent, name))
    }
}

/// Returns the refusal of an address; a long one is cut.
pub(super) fn bad(address: &str, what: &'static str, problem: &'static str) -> PlaceError {
    PlaceError::BadAddress { address: address.chars().take(1024).collect(), what, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let digest = "ab".repeat(32);
        let artifact = |ending: &str| format!("artifact:{digest}{ending}");
        assert!(
            matches!(Address::parse(&artifact(".jsonl.gz")), Some(Address::Artifact(found)) if found.blake3 == digest)
        );
        for bad in [&artifact("txt"), &artifact(".a/b"), "artifact:ab"] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
        assert_eq!(Address::parse("/a/b*"), Some(Address::Path("/a/b*")));
        assert_eq!(Address::parse("file:///a"), Some(Address::Path("/a")));
        for bad in [
            "file://a",
            "s3://",
            "s3:///a",
            "s3://b//c",
            "s3://b/../c",
            "s3://b/.",
            "gs://b/c",
            "http://x/y",
            "s3://b//",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_folder_in_a_bucket_has_a_parent_and_a_name() {
        let split = |given| match Address::parse(given) {
            Some(Address::Bucket(parts)) => parts.split(),
            other => panic!("{given}: {other:?}"),
        };
        assert_eq!(split("s3://b"), None);
        assert_eq!(split("s3://b/m"), Some(("s3://b", "m")));
        assert_eq!(split("s3://b/x/y/m/"), Some(("s3://b/x/y", "m")));
    }
}
