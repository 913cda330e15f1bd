//! The services as processes of their own, that a test may kill and start again.

use crate::{binary, expect, root};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time that anything of a test is waited for.
const PATIENCE: Duration = Duration::from_mins(3);

/// Services on one host, on Unix sockets below one folder.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    services: BTreeMap<String, Child>,
    store: String,
    variables: Vec<(String, String)>,
    /// More flags of workers.
    worker_flags: Vec<String>,
    /// Where others reach a service, if not where it listens.
    detours: BTreeMap<String, String>,
    /// Where callers of the public service reach the coordinator, if not where it listens.
    callers: Option<String>,
}

impl Cluster {
    /// Returns a cluster without services.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            services: BTreeMap::new(),
            store: folder.join("store").display().to_string(),
            variables: Vec::new(),
            worker_flags: Vec::new(),
            detours: BTreeMap::new(),
            callers: None,
        }
    }

    /// Returns it on another store than a folder of its own, with variables of the environment for that.
    #[must_use]
    pub fn with_store(mut self, store: &str, variables: &[(&str, &str)]) -> Self {
        store.clone_into(&mut self.store);
        self.variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self
    }

    /// Returns it with variables of the environment for its services.
    #[must_use]
    pub fn with_variables(mut self, variables: &[(&str, &str)]) -> Self {
        self.variables.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    /// Returns it with more flags for its workers.
    #[must_use]
    pub fn with_worker_flags(mut self, flags: &[&str]) -> Self {
        self.worker_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Returns the store's folder, unless it was given another store.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Returns where a service listens.
    pub fn endpoint(&self, name: &str) -> String {
        format!("unix://{}", self.socket(name).display())
    }

    /// Returns where workers reach a service.
    fn detoured(&self, name: &str) -> String {
        self.detours.get(name).cloned().unwrap_or_else(|| self.endpoint(name))
    }

    /// Has workers reach a service through a proxy; to be said before anything starts.
    pub fn detour(&mut self, name: &str, endpoint: String) {
        self.detours.insert(name.to_owned(), endpoint);
    }

    /// Has `llm-surgeon` reach the coordinator through a proxy.
    pub fn detour_of_callers(&mut self, endpoint: String) {
        self.callers = Some(endpoint);
    }

    /// Returns the socket of a service.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }

    /// Starts a coordinator and so many workers.
    pub fn start(&mut self, calibrators: usize, surgeons: usize) {
        self.start_one("coordinator");
        (0..calibrators).for_each(|n| self.start_one(&format!("calibrator-{n}")));
        (0..surgeons).for_each(|n| self.start_one(&format!("surgeon-{n}")));
    }

    /// Starts a service, or starts it again. Its name begins with its kind: `surgeon-1`; `worker-0` is a calibrator and a
    /// surgeon in one process.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_one(&mut self, name: &str) {
        let program = name.split('-').next().unwrap_or(name);
        let mut command = if program == "worker" {
            let mut worker = Command::new(binary());
            let beside = format!("unix://{}", self.socket(&format!("{name}-surgeon")).display());
            worker.args(["serve", "worker", "--surgeon-listen", &beside]);
            worker
        } else {
            Command::new(binary().with_file_name(program))
        };
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let log = std::fs::File::options().create(true).append(true).open(self.log(name));
        let log = log.unwrap_or_else(|e| panic!("the log of {name}: {e}"));
        command
            .envs(self.variables.iter().cloned())
            .arg("--store")
            .arg(&self.store)
            .args(["--listen", &self.endpoint(name)]);
        if program != "coordinator" {
            command.args(["--coordinator", &self.detoured("coordinator"), "--worker", name]);
            command.args(["--advertise", &self.detoured(name)]);
            command.args(["--device", "cpu", "--threads", "1"]).args(&self.worker_flags);
        }
        command.env("RUST_BACKTRACE", "0").stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}; is it built?"));
        self.services.insert(name.to_owned(), child);
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("log")
    }

    /// Returns what a service has said.
    pub fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.log(name)).unwrap_or_default()
    }

    /// Ends a service at once: SIGKILL.
    pub fn kill(&mut self, name: &str) {
        if let Some(mut child) = self.services.remove(name) {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }

    /// Waits for a service that ends by itself, and returns its exit status.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn ended(&mut self, name: &str) -> Option<i32> {
        let mut child = self.services.remove(name)?;
        let ended = until(|| child.try_wait().ok().flatten());
        ended.unwrap_or_else(|| panic!("{name} does not end")).code()
    }

    /// Sends a signal to a service.
    pub fn signal(&self, name: &str, signal: &str) {
        if let Some(child) = self.services.get(name) {
            let _ = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        }
    }

    /// Stops a service where it is (SIGSTOP), until [`Cluster::wake`].
    pub fn stall(&self, name: &str) {
        self.signal(name, "STOP");
    }

    /// Lets a stalled service go on.
    pub fn wake(&self, name: &str) {
        self.signal(name, "CONT");
    }

    /// Sends SIGTERM and returns the exit status.
    ///
    /// # Panics
    /// When the service does not end in time.
    pub fn terminate(&mut self, name: &str) -> Option<i32> {
        self.signal(name, "TERM");
        let mut child = self.services.remove(name)?;
        let ended = until(|| child.try_wait().ok().flatten());
        ended.unwrap_or_else(|| panic!("{name} does not stop")).code()
    }

    /// Returns `submit` of glassllm as [`crate::prune`] asks for it, followed to its end.
    pub fn submit(&self, output: &Path) -> Command {
        let mut command = self.client("submit");
        command.arg(crate::glassllm()).arg("--data").arg(root().join("testdata/text/calibration"));
        command.arg("--eval-data").arg(root().join("testdata/text/heldout")).args(["--eval-samples", "8"]);
        command.args(["--seq-len", "128", "--samples", "24", "--multiple-of", "1"]).arg("--out").arg(output);
        command
    }

    /// Returns a command of `llm-surgeon` for this cluster's coordinator.
    pub fn client(&self, command: &str) -> Command {
        let mut client = Command::new(binary());
        let coordinator = self.callers.clone().unwrap_or_else(|| self.endpoint("coordinator"));
        client.arg(command).args(["--coordinator", &coordinator]).env("RUST_BACKTRACE", "0");
        client
    }

    /// Returns the standard output of a client's command that must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ask(&self, command: &str, words: &[&str]) -> String {
        let output = expect(self.client(command).args(words), 0);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until so many workers have been heard of.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_for_workers(&self, count: usize) {
        let heard = until(|| (self.ask("workers", &["--json"]).lines().count() >= count).then_some(()));
        assert!(heard.is_some(), "not all {count} workers came: {}", self.ask("workers", &[]));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let names: Vec<String> = self.services.keys().cloned().collect();
        for name in &names {
            self.kill(name);
        }
        if std::thread::panicking() {
            for name in names {
                let said = self.said(&name);
                let tail: Vec<&str> = said.lines().rev().take(30).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                // The test fails; this is why.
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    format!("--- {name}\n{}\n", tail.join("\n")).as_bytes(),
                );
            }
        }
    }
}

/// Waits for something, and returns it; nothing if it does not come in time.
pub fn until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
