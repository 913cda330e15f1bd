//! A folder of one test, with tiny models to break and text to read, and the program run in it.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden");

/// A test's own folder.
pub(crate) struct Place(TempDir);

/// What the program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Checks the exit code and that standard error names every one of `parts`, and that nothing pretends to be a result.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in\n{}", self.stderr);
        }
        assert_eq!(self.stdout, "");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    /// Checks that all went well and returns what is on standard output.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }
}

impl Place {
    /// Returns a folder with `model` (a copy of the golden model of that name, and a tokenizer) and `text.txt` in it.
    pub(crate) fn with(model: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let files = fs::read_dir(Path::new(GOLDEN).join(model)).unwrap().map(|f| f.unwrap().path());
        fs::create_dir(place.path("model")).unwrap();
        for file in files {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            if name.starts_with("model") || name == "config.json" {
                fs::copy(&file, place.path("model").join(name)).unwrap();
            }
        }
        place.write("model/tokenizer.json", &tokenizer().to_string());
        let words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run"];
        let text: Vec<_> = (0..600).map(|n: usize| words[n * n % 7 + n % 4]).collect();
        place.write("text.txt", &text.join(" "));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Changes keys of the model's config.
    pub(crate) fn configure(&self, changes: &[(&str, Value)]) {
        let text = fs::read_to_string(self.path("model/config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        self.write("model/config.json", &config.to_string());
    }

    /// Runs the program in this folder, and sends it a signal (`INT`, `TERM`) once it has said `when`.
    pub(crate) fn interrupt(&self, args: &[&str], when: &str, signal: &str) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-surgeon"));
        command.args(args).current_dir(self.0.path()).env_remove("LLM_SURGEON_LOG");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut stderr: Vec<String> = Vec::new();
        while !stderr.last().is_some_and(|line| line.contains(when)) {
            stderr.push(lines.next().unwrap());
        }
        let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        stderr.extend(lines);
        let output = child.wait_with_output().unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: stderr.join("\n"),
        }
    }

    /// Runs the program in this folder.
    pub(crate) fn run(&self, args: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-surgeon"));
        let output: Output =
            command.args(args).current_dir(self.0.path()).env_remove("LLM_SURGEON_LOG").output().unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs `prune model --data text.txt --out out` with more flags.
    pub(crate) fn prune(&self, more: &[&str]) -> Said {
        self.run(&[&["prune", "model", "--data", "text.txt", "--out", "out"], more].concat())
    }

    /// Checks that a refused `prune` left nothing behind.
    #[track_caller]
    pub(crate) fn untouched(&self) {
        for name in ["out", "out.state"] {
            assert!(!self.path(name).exists(), "{name} was made");
        }
    }
}

/// A tokenizer of the printable ASCII characters, space and line feed: 96 tokens, as many as the golden models have.
fn tokenizer() -> Value {
    let letters = ('!'..='~').chain(['\u{120}', '\u{10a}']);
    let vocab: serde_json::Map<_, _> = letters.enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": bytes, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}
