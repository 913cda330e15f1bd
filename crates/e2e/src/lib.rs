//! End-to-end tests: the workspace checks itself, whole runs through the real binary, processes that are killed.
//!
//! Holds helpers only; the tests are in `tests/`. Never a dependency of anything.

pub mod cluster;
pub mod dice;
pub mod disturbed;
pub mod flaky;
pub mod moto;
pub mod proxy;
pub mod rotel;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns the binary under test: beside the test's own folder in the target directory.
///
/// # Panics
/// When it was not built: `cargo build --release -p cli` first (the Makefile does).
pub fn binary() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let binary = own.parent().and_then(Path::parent).map(|p| p.join("llm-surgeon")).unwrap_or_default();
    assert!(binary.is_file(), "{} is not built; run: cargo build --release -p cli", binary.display());
    binary
}

/// Returns the repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the folder of what the scripts have made.
pub fn cache() -> PathBuf {
    let home = || std::env::var("HOME").map(|home| format!("{home}/.cache"));
    let base = || std::env::var("XDG_CACHE_HOME").or_else(|_| home()).map(|base| format!("{base}/llm-surgeon"));
    PathBuf::from(std::env::var("LLM_SURGEON_CACHE").or_else(|_| base()).unwrap_or_default())
}

/// Returns a program of the Python environment `name` that `make test-models` makes in the cache.
///
/// # Panics
/// When it is not there.
pub fn python_program(environment: &str, program: &str) -> PathBuf {
    let path = cache().join("venvs").join(environment).join("bin").join(program);
    assert!(path.is_file(), "{} is missing; run: make test-models", path.display());
    path
}

/// Returns the glassllm model that `make test-models` converts into the cache.
///
/// # Panics
/// When it is not there.
pub fn glassllm() -> PathBuf {
    let folder = cache().join("models/glassllm-en");
    assert!(folder.join("config.json").is_file(), "{} is missing; run: make test-models", folder.display());
    folder
}

/// Returns `llm-surgeon prune` of glassllm on the repository's small text, small enough for a test: 2 shots to 80 %.
pub fn prune(output: &Path) -> Command {
    let mut command = prune_plain(output);
    command.args(["--target-size", "0.8", "--eval-data"]).arg(root().join("testdata/text/heldout"));
    command.args(["--eval-samples", "8"]);
    command
}

/// Returns the same without target and held-out data.
pub fn prune_plain(output: &Path) -> Command {
    let mut command = prune_to(output);
    command.args(["--shots", "2"]);
    command
}

/// Returns the same without a number of shots.
pub fn prune_to(output: &Path) -> Command {
    prune_on(output, 24)
}

/// Returns the same on so many calibration samples.
pub fn prune_on(output: &Path, samples: u32) -> Command {
    let mut command = Command::new(binary());
    command.arg("prune").arg(glassllm()).arg("--data").arg(root().join("testdata/text/calibration"));
    command.arg("--out").arg(output);
    command.args(["--seq-len", "128", "--samples"]).arg(samples.to_string());
    command.args(["--multiple-of", "1", "--device", "cpu", "--threads", "1"]).env("RUST_BACKTRACE", "0");
    command
}

/// Returns the perplexity of a folder on the text and by the protocol of [`prune`].
///
/// # Panics
/// When `eval` fails.
pub fn perplexity(folder: &Path) -> f64 {
    let mut eval = Command::new(binary());
    eval.arg("eval").arg(folder).arg("--data").arg(root().join("testdata/text/heldout"));
    eval.args(["--seq-len", "128", "--samples", "8", "--device", "cpu", "--threads", "1", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&expect(&mut eval, 0).stdout).unwrap_or_default();
    find(&said, "perplexity").unwrap_or_else(|| panic!("eval tells no perplexity: {said}"))
}

/// Returns the first number under `key`, wherever it is.
fn find(value: &serde_json::Value, key: &str) -> Option<f64> {
    use serde_json::Value;
    match value {
        Value::Object(map) => map.get(key).and_then(Value::as_f64).or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(list) => list.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

/// Runs a command and returns its output if it ended with `code`.
///
/// # Panics
/// When it did not, with all it said.
pub fn expect(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert_eq!(
        output.status.code(),
        Some(code),
        "{command:?}\n--- stdout\n{}\n--- stderr\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs `prune` with `--json` and returns its summary.
///
/// # Panics
/// When it fails, or its last line is no summary.
pub fn summary(prune: &mut Command) -> serde_json::Value {
    let run = expect(prune.arg("--json"), 0);
    let said = String::from_utf8_lossy(&run.stdout);
    serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("no summary: {e}\n{said}"))
}

/// Returns a digest over the names and contents of all files below a folder, but for `report.html`, which tells times.
///
/// # Panics
/// When the folder cannot be read.
pub fn folder_digest(folder: &Path) -> String {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files.retain(|file| file.file_name().is_none_or(|name| name != "report.html"));
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let name = file.strip_prefix(folder).unwrap_or(&file).to_string_lossy().into_owned();
        let content = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        hasher.update(name.as_bytes()).update(&[0]).update(&(content.len() as u64).to_le_bytes()).update(&content);
    }
    hasher.finalize().to_hex().to_string()
}

/// Returns the names of a state folder's journal records, in order.
pub fn journal(state: &Path) -> Vec<PathBuf> {
    let Ok(runs) = std::fs::read_dir(state.join("runs")) else { return Vec::new() };
    let mut records: Vec<PathBuf> = runs
        .flatten()
        .filter_map(|run| std::fs::read_dir(run.path().join("journal")).ok())
        .flat_map(|entries| entries.flatten().map(|e| e.path()))
        // the store writes under a temporary name first
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().bytes().all(|b| b.is_ascii_digit())))
        .collect();
    records.sort();
    records
}
