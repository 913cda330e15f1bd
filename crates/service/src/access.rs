//! Who may call: everybody, who shows a certificate, or who knows the token.
//!
//! The token lies in a file that may be replaced while a service runs; it is compared in constant time.

use crate::listen::Caller;
use crate::status::Reason;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// How long a token is taken as read.
const FRESH: Duration = Duration::from_secs(1);
/// Longest and shortest token, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=4096;
const SCHEME: &str = "Bearer ";

/// A token in a file; cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenFile {
    path: PathBuf,
    read: Arc<Mutex<(Instant, Secret)>>,
}

/// A token, that no log shows.
#[derive(Clone)]
struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Why a token cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--token-file {}: {problem}", path.display())]
pub struct TokenError {
    path: PathBuf,
    problem: String,
}

impl TokenFile {
    /// Reads the token for the first time.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let secret = read(path)?;
        Ok(Self { path: path.to_owned(), read: Arc::new(Mutex::new((Instant::now(), secret))) })
    }

    /// Returns the token as it is now. If the file cannot be read any more the last one stays.
    fn present(&self) -> Secret {
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.elapsed() >= FRESH {
            match read(&self.path) {
                Ok(secret) => *last = (Instant::now(), secret),
                Err(error) => {
                    tracing::error!(%error, "the token cannot be read again; the old one stays");
                    last.0 = Instant::now();
                }
            }
        }
        last.1.clone()
    }

    fn is(&self, given: &[u8]) -> bool {
        self.present().0.ct_eq(given).into()
    }

    /// Adds the token to what a client sends.
    pub fn authorize<T>(&self, request: &mut Request<T>) -> Result<(), Status> {
        let text = String::from_utf8(self.present().0).unwrap_or_default();
        let mut value: MetadataValue<Ascii> = format!("{SCHEME}{text}")
            .parse()
            .map_err(|_| Status::invalid_argument("the token has characters that a header cannot carry"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Secret, TokenError> {
    let fault = |problem: String| TokenError { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?;
    let token = text.trim();
    if !LENGTHS.contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(fault("a token has 16 to 4096 printable ASCII characters, without spaces".into()));
    }
    Ok(Secret(token.as_bytes().to_vec()))
}

/// Lets calls through, or not; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    certificate: bool,
    token: Option<TokenFile>,
}

impl Guard {
    /// Returns one that lets everybody through: within a process, and where nothing was asked for.
    pub fn open() -> Self {
        Self::default()
    }

    /// Returns one that asks for a certificate if there is TLS, for the token if there is one, and is content with either
    /// if there are both.
    pub fn new(tls: bool, token: Option<TokenFile>) -> Self {
        Self { certificate: tls, token }
    }

    /// Returns one for calls between services: a certificate where there is TLS, otherwise the token if there is one.
    pub fn between_services(tls: bool, token: Option<TokenFile>) -> Self {
        Self { certificate: tls, token: token.filter(|_| !tls) }
    }

    fn allows(&self, caller: Option<Caller>, authorization: Option<&[u8]>) -> bool {
        if !self.certificate && self.token.is_none() {
            return true;
        }
        let certified = self.certificate && caller.is_some_and(|c| c.certified);
        let given = authorization.and_then(|value| value.strip_prefix(SCHEME.as_bytes()));
        certified || matches!((&self.token, given), (Some(token), Some(given)) if token.is(given))
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        let authorization = request.metadata().get("authorization").map(MetadataValue::as_encoded_bytes);
        if self.allows(caller, authorization) {
            return Ok(request);
        }
        let wanted = match (self.certificate, &self.token) {
            (true, Some(_)) => "a client certificate or a bearer token",
            (true, None) => "a client certificate",
            (false, _) => "a bearer token",
        };
        Err(Reason::Unauthenticated.status(format!("this service wants {wanted}")))
    }
}

/// Adds the token, if there is one, to every call of a client.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Option<TokenFile>);

impl Credentials {
    /// Returns what shows this token, or nothing.
    pub fn new(token: Option<TokenFile>) -> Self {
        Self(token)
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            token.authorize(&mut request)?;
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn token() -> (TokenFile, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
        (TokenFile::open(&path).unwrap(), folder)
    }

    fn bearer(token: &str) -> Vec<u8> {
        format!("Bearer {token}").into_bytes()
    }

    #[test]
    fn a_caller_gets_through_by_what_the_guard_asks_for_and_by_nothing_else() {
        let (token, _folder) = token();
        let (known, stranger) = (Some(Caller { certified: true }), Some(Caller { certified: false }));
        let (right, wrong) = (bearer(TOKEN), bearer("0123456789abcdeF"));
        let both = Guard::new(true, Some(token.clone()));
        let by_token = Guard::new(false, Some(token.clone()));
        let services = Guard::between_services(true, Some(token));
        for (guard, caller, authorization, allowed) in [
            (&Guard::open(), None, None, true),
            (&both, known, None, true),
            (&both, stranger, None, false),
            (&both, stranger, Some(&right), true),
            (&both, stranger, Some(&wrong), false),
            (&by_token, known, None, false),
            (&by_token, None, Some(&right), true),
            (&services, stranger, Some(&right), false),
            (&services, known, None, true),
        ] {
            assert_eq!(guard.allows(caller, authorization.map(Vec::as_slice)), allowed, "{guard:?} {caller:?}");
        }
        assert!(!by_token.allows(None, Some(TOKEN.as_bytes())), "without the scheme");
    }

    #[test]
    fn a_token_that_was_replaced_is_the_one_that_counts() {
        let (token, folder) = token();
        std::fs::write(folder.path().join("token"), "another-token-16").unwrap();
        token.read.lock().unwrap().0 -= FRESH;
        assert!(token.is(b"another-token-16") && !token.is(TOKEN.as_bytes()));
        std::fs::remove_file(folder.path().join("token")).unwrap();
        token.read.lock().unwrap().0 -= FRESH;
        assert!(token.is(b"another-token-16"), "the last one stays");
    }

    #[test]
    fn short_tokens_are_refused_and_tokens_never_shown() {
        let (token, folder) = token();
        assert!(!format!("{token:?}").contains(TOKEN));
        std::fs::write(folder.path().join("short"), "abc").unwrap();
        let error = TokenFile::open(&folder.path().join("short")).unwrap_err().to_string();
        assert!(error.contains("16 to 4096") && error.contains("short"), "{error}");
    }
}
