//! What an address says, without looking whether anything is there.

use super::PlaceError;

/// Hex digits of a BLAKE3.
const DIGEST: usize = 64;

/// A parsed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address<'a> {
    /// A path of this host.
    Path(&'a str),
    /// What a caller wrote into the store.
    Artifact {
        digest: &'a str,
        /// Empty, or as `.jsonl.gz`.
        ending: &'a str,
    },
    /// In a bucket.
    Bucket(BucketAddress<'a>),
}

/// `s3://bucket`, or `s3://bucket/prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BucketAddress<'a>(&'a str);

impl<'a> Address<'a> {
    /// Returns what an address says; nothing for one of an unknown or broken form.
    pub(super) fn parse(given: &'a str) -> Option<Self> {
        if let Some(rest) = given.strip_prefix("artifact:") {
            let (digest, ending) = rest.split_at_checked(DIGEST)?;
            let hex = digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
            let is_ending = ending.is_empty() || (ending.starts_with('.') && ending.len() <= 32);
            return (hex && is_ending && ending.chars().all(plain)).then_some(Self::Artifact { digest, ending });
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
        for ending in ["", ".txt", ".jsonl.gz"] {
            let given = artifact(ending);
            assert_eq!(Address::parse(&given), Some(Address::Artifact { digest: &digest, ending }));
        }
        for bad in [
            &artifact("txt"),
            &artifact(".a/b"),
            "artifact:ab",
            &artifact("").to_uppercase().replace("ARTIFACT", "artifact"),
        ] {
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
