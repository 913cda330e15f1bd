//! A proxy before a server that answers as S3 does: some requests are refused, some are carried out and not answered, some
//! take long. One request a connection.

use crate::dice::Dice;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a request hangs.
const HANG: Duration = Duration::from_secs(2);
/// Longest head of a request.
const MAX_HEAD: usize = 64 << 10;

/// How many of a hundred requests meet which fault.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    /// Refused with 503, not carried out.
    pub unavailable: u64,
    /// Conditional writes only: refused with 409, not carried out, as S3 does when two writers meet.
    pub conflict: u64,
    /// Carried out, the answer is lost.
    pub lost: u64,
    /// Carried out after a while.
    pub hanging: u64,
}

/// What happened so far.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    unavailable: AtomicU64,
    conflict: AtomicU64,
    lost: AtomicU64,
    hanging: AtomicU64,
}

/// The proxy; it accepts nothing more once it is dropped.
#[derive(Debug)]
pub struct FlakyStore {
    port: u16,
    counts: Arc<Counts>,
    ended: Arc<AtomicBool>,
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unavailable,
    Conflict,
    Lost,
    Hanging,
    Fine,
}

/// A request as it came.
struct Request {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl FlakyStore {
    /// Listens on this host before the server at `target`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(target: u16, shares: Shares, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("no free port: {e}"));
        let port = listener.local_addr().unwrap_or_else(|e| panic!("no address: {e}")).port();
        let (counts, ended) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let dice = Arc::new(Mutex::new(Dice::new(seed)));
        let (counting, ending) = (Arc::clone(&counts), Arc::clone(&ended));
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                if ending.load(Ordering::Acquire) {
                    return;
                }
                let (dice, counts) = (Arc::clone(&dice), Arc::clone(&counting));
                // A caller that goes away, or a server that has ended, ends the connection.
                thread::spawn(move || drop(serve(caller, target, |request| fate(request, shares, &dice, &counts))));
            }
        });
        Self { port, counts, ended }
    }

    /// Returns where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns how many requests there were, how many of them met a fault, and a line about both.
    pub fn told(&self) -> (u64, u64, String) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let c = &self.counts;
        let (unavailable, conflict, lost, hanging) = (of(&c.unavailable), of(&c.conflict), of(&c.lost), of(&c.hanging));
        let (requests, faults) = (of(&c.requests), unavailable + conflict + lost + hanging);
        let line = format!(
            "{faults} of {requests} requests: {unavailable} × 503, {conflict} × 409, {lost} answers lost, {hanging} hung"
        );
        (requests, faults, line)
    }
}

impl Drop for FlakyStore {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes who accepts
    }
}

/// Returns what becomes of a request, and counts it.
fn fate(request: &Request, shares: Shares, dice: &Mutex<Dice>, counts: &Counts) -> Fate {
    counts.requests.fetch_add(1, Ordering::Relaxed);
    let rolled = dice.lock().unwrap_or_else(PoisonError::into_inner).roll(100);
    let conflict = if request.has("if-none-match:") { shares.conflict } else { 0 };
    let mut bound = 0;
    let table = [
        (shares.unavailable, Fate::Unavailable, &counts.unavailable),
        (shares.lost, Fate::Lost, &counts.lost),
        (shares.hanging, Fate::Hanging, &counts.hanging),
        (conflict, Fate::Conflict, &counts.conflict),
    ];
    for (share, fate, count) in table {
        bound += share;
        if rolled < bound {
            count.fetch_add(1, Ordering::Relaxed);
            return fate;
        }
    }
    Fate::Fine
}

/// Takes one request and does with it what its fate is.
fn serve(mut caller: TcpStream, target: u16, fate: impl FnOnce(&Request) -> Fate) -> io::Result<()> {
    let request = Request::read(&mut caller)?;
    match fate(&request) {
        Fate::Unavailable => caller.write_all(refusal("503 Slow Down", "SlowDown").as_bytes()),
        Fate::Conflict => caller.write_all(refusal("409 Conflict", "ConditionalRequestConflict").as_bytes()),
        Fate::Lost => request.forward(target).map(drop),
        Fate::Hanging => {
            thread::sleep(HANG);
            caller.write_all(&request.forward(target)?)
        }
        Fate::Fine => caller.write_all(&request.forward(target)?),
    }
}

fn refusal(status: &str, code: &str) -> String {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a test's</Message></Error>");
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

impl Request {
    fn read(caller: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let mut piece = [0; 16 << 10];
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            let read = caller.read(&mut piece)?;
            if read == 0 || bytes.len() > MAX_HEAD {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&piece[..read]);
        };
        let mut request = Self { body: bytes.split_off(head), head: bytes };
        let length = request.field("content-length:").and_then(|text| text.parse().ok()).unwrap_or(0);
        while request.body.len() < length {
            let read = caller.read(&mut piece)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            request.body.extend_from_slice(&piece[..read]);
        }
        Ok(request)
    }

    /// Returns a field of the head; `name` is in lower case and ends with a colon.
    fn field(&self, name: &str) -> Option<String> {
        let head = String::from_utf8_lossy(&self.head);
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(|rest| rest.trim().to_owned()))
    }

    fn has(&self, name: &str) -> bool {
        self.field(name).is_some()
    }

    /// Has the server carry it out and returns its whole answer, which says that the connection ends.
    fn forward(&self, target: u16) -> io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(("127.0.0.1", target))?;
        let head = String::from_utf8_lossy(&self.head);
        let kept = head.trim_end().lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let lines: Vec<&str> = kept.collect();
        server.write_all(format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n")).as_bytes())?;
        server.write_all(&self.body)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }
}
