//! A proxy between two Unix sockets that breaks, slows or stops the connections that it carries.
//!
//! It carries bytes and knows no protocol, so that a cut falls anywhere: into a preface, a header, a chunk.

use crate::dice::Dice;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes that are read at a time.
const PIECE: usize = 16 << 10;
/// How often a slow connection moves.
const TICK: Duration = Duration::from_millis(50);

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Each is closed after a random number of bytes, both ways together.
    CutWithin {
        /// The largest.
        bytes: u64,
        /// After so many cuts all passes.
        most: u64,
    },
    /// Each carries no more than this in a second, each way.
    Slow {
        /// Bytes.
        bytes_per_second: u64,
    },
    /// Nothing comes back from the service after so many bytes, and nothing is closed.
    Deaf {
        /// Bytes.
        after: u64,
    },
}

/// A proxy under way; connections end with it.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    at: PathBuf,
}

#[derive(Debug)]
struct Shared {
    fault: Fault,
    dice: Mutex<Dice>,
    /// Faults so far: cuts, or connections that were slowed or stopped.
    faults: AtomicU64,
    bytes: AtomicU64,
    calm: AtomicBool,
    ended: AtomicBool,
}

impl Proxy {
    /// Listens at the socket `at` and carries connections to the socket `target`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(at: &Path, target: &Path, fault: Fault, seed: u64) -> Self {
        let listener = UnixListener::bind(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        let shared = Shared {
            fault,
            dice: Mutex::new(Dice::new(seed)),
            faults: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            calm: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        };
        let proxy = Self { shared: Arc::new(shared), at: at.to_owned() };
        let (shared, target) = (Arc::clone(&proxy.shared), target.to_owned());
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Acquire) {
                    return;
                }
                // Nobody there yet: the caller sees its connection closed.
                if let Ok(service) = UnixStream::connect(&target) {
                    carry(&shared, &caller, &service);
                }
            }
        });
        proxy
    }

    /// Returns where callers reach the service through this.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.at.display())
    }

    /// Returns how many faults there were so far.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// Returns how many bytes were carried so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.at); // wakes who accepts
        let _ = std::fs::remove_file(&self.at);
    }
}

/// One connection: its two ends and how many bytes are left until its fault.
#[derive(Debug)]
struct Connection {
    shared: Arc<Shared>,
    left: Mutex<u64>,
    ends: [UnixStream; 2],
}

/// Carries one connection, on two threads of its own.
fn carry(shared: &Arc<Shared>, caller: &UnixStream, service: &UnixStream) {
    let left = match shared.fault {
        Fault::CutWithin { bytes, .. } => shared.dice.lock().unwrap_or_else(PoisonError::into_inner).offset(bytes),
        Fault::Deaf { after } => after,
        Fault::Slow { .. } => {
            shared.faults.fetch_add(1, Ordering::Relaxed);
            u64::MAX
        }
    };
    let clone = |end: &UnixStream| end.try_clone().unwrap_or_else(|e| panic!("a socket's second handle: {e}"));
    let ends = [clone(caller), clone(service)];
    let connection = Arc::new(Connection { shared: Arc::clone(shared), left: Mutex::new(left), ends });
    for (from, to, returns) in [(caller, service, false), (service, caller, true)] {
        let (connection, from, to) = (Arc::clone(&connection), clone(from), clone(to));
        thread::spawn(move || {
            connection.pump(from, to, returns);
            connection.close();
        });
    }
}

impl Connection {
    /// Carries one direction until an end closes or the fault comes. `returns`: from the service back to its caller.
    fn pump(&self, mut from: UnixStream, mut to: UnixStream, returns: bool) {
        let (length, wait) = match self.shared.fault {
            Fault::Slow { bytes_per_second } => {
                ((bytes_per_second * TICK.as_millis() as u64 / 1000).max(1) as usize, TICK)
            }
            Fault::CutWithin { .. } | Fault::Deaf { .. } => (PIECE, Duration::ZERO),
        };
        let mut piece = vec![0; length];
        loop {
            thread::sleep(wait);
            let Ok(read @ 1..) = from.read(&mut piece) else { return };
            let passes = self.passing(read, returns);
            if to.write_all(&piece[..passes]).is_err() {
                return;
            }
            self.shared.bytes.fetch_add(passes as u64, Ordering::Relaxed);
            if passes < read {
                let before = self.shared.faults.fetch_add(1, Ordering::Relaxed);
                match self.shared.fault {
                    Fault::Deaf { .. } => self.stay_silent(),
                    Fault::CutWithin { most, .. } => {
                        self.shared.calm.fetch_or(before + 1 >= most, Ordering::AcqRel);
                        return;
                    }
                    Fault::Slow { .. } => return,
                }
            }
        }
    }

    /// Returns how many of so many bytes pass before the fault.
    fn passing(&self, read: usize, returns: bool) -> usize {
        let counted = match self.shared.fault {
            Fault::CutWithin { .. } => true,
            Fault::Deaf { .. } => returns,
            Fault::Slow { .. } => false,
        };
        if !counted || self.shared.calm.load(Ordering::Acquire) {
            return read;
        }
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let passes = (read as u64).min(*left);
        *left -= passes;
        passes as usize
    }

    /// Reads nothing more and closes nothing, until the proxy ends.
    fn stay_silent(&self) {
        while !self.shared.ended.load(Ordering::Acquire) {
            thread::sleep(TICK);
        }
    }

    fn close(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both); // it may be closed already
        }
    }
}
