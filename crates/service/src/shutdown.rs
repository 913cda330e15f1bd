//! One token that says "stop": fired by Ctrl-C, by SIGTERM or by hand.
//!
//! What a second signal means is the program's decision: [`next_signal`] tells of it.

use std::io;
use std::sync::{Arc, OnceLock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What asked the program to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// Returns the exit status by which shells know the signal.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// The wish to stop; cheap to clone, and all clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    cause: Arc<OnceLock<Signal>>,
}

impl Shutdown {
    /// Returns one that only [`Shutdown::start`] fires.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns one that the first SIGINT or SIGTERM fires. From then on neither ends the process by itself.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let first = listen()?;
        let fired = shutdown.clone();
        tokio::spawn(async move {
            let cause = first.await;
            tracing::info!(signal = ?cause, "stopping");
            fired.cause.get_or_init(|| cause);
            fired.start();
        });
        Ok(shutdown)
    }

    /// Fires the token.
    pub fn start(&self) {
        self.token.cancel();
    }

    /// Returns the token, to wait for or to pass on.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Returns the signal that fired the token, if one did.
    pub fn signal(&self) -> Option<Signal> {
        self.cause.get().copied()
    }
}

/// Waits for the next SIGINT or SIGTERM that comes after this call.
pub async fn next_signal() -> io::Result<Signal> {
    Ok(listen()?.await)
}

/// Begins to listen at once; the future ends with the signal.
fn listen() -> io::Result<impl Future<Output = Signal>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clone_started_by_hand_fires_the_token_without_a_signal() {
        let shutdown = Shutdown::new();
        shutdown.clone().start();
        shutdown.token().cancelled().await;
        assert_eq!(shutdown.signal(), None);
    }

    #[tokio::test]
    async fn a_termination_signal_fires_the_token_and_is_remembered() {
        let shutdown = Shutdown::on_signals().unwrap();
        let second = listen().unwrap();
        let pid = std::process::id().to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        shutdown.token().cancelled().await;
        assert_eq!(shutdown.signal(), Some(Signal::Terminate));
        assert_eq!(second.await.exit_code(), 143);
    }
}
