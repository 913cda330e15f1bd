//! One value for each flag: from the command line, else from the environment, else from the settings file.

use super::exit::{Exit, Failure};
use clap::{ArgAction, Command};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config";

/// Gives every flag its environment variable.
pub(super) fn with_environment(command: Command, prefix: &str) -> Command {
    let command = command.args_override_self(true);
    let named = |a: &clap::Arg| a.get_long().map(|long| (a.get_id().clone(), long.to_owned()));
    let names: Vec<(clap::Id, String)> = command.get_arguments().filter_map(named).collect();
    let own = names.into_iter().filter(|(_, long)| !matches!(long.as_str(), "help" | "version"));
    own.fold(command, |command, (id, long)| {
        let variable = variable(prefix, &long);
        command.mut_arg(id, |arg| arg.env(variable))
    })
}

fn variable(prefix: &str, long: &str) -> String {
    format!("{prefix}_{}", long.replace('-', "_").to_uppercase())
}

/// Returns the words of the command line with those of the settings file before them, so that the line's own win. What
/// the environment sets is left out of the file's.
pub(super) fn with_file(command: &Command, given: Vec<OsString>, prefix: &str) -> Result<Vec<OsString>, Failure> {
    let Some(path) = named_file(&given, prefix) else { return Ok(given) };
    let usage = |problem: String| Failure::new(Exit::Usage, format!("--config {}: {problem}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| usage(e.to_string()))?;
    let is_set = |long: &str| std::env::var_os(variable(prefix, long)).is_some();
    let words = words(command, &text, is_set).map_err(usage)?;
    let mut line = given.into_iter();
    let program = line.next();
    Ok(program.into_iter().chain(words.into_iter().map(OsString::from)).chain(line).collect())
}

fn named_file(given: &[OsString], prefix: &str) -> Option<PathBuf> {
    let mut words = given.iter().skip(1);
    let mut named = std::env::var_os(variable(prefix, CONFIG)).map(PathBuf::from);
    while let Some(word) = words.next() {
        if word == "--config" {
            named = words.next().map(PathBuf::from);
        } else if let Some(path) = word.to_str().and_then(|w| w.strip_prefix("--config=")) {
            named = Some(Path::new(path).to_owned());
        }
    }
    named
}

/// Returns the settings of a file as words of a command line.
fn words(command: &Command, text: &str, is_set: impl Fn(&str) -> bool) -> Result<Vec<String>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    let mut words = Vec::new();
    let mut faults = Vec::new();
    for (key, value) in &table {
        let flag = command.get_arguments().find(|a| a.get_long() == Some(key.as_str()) && key != CONFIG);
        match flag.map(|flag| (flag.get_action(), value)) {
            None => faults.push(format!("'{key}' is no setting; --help lists the flags")),
            Some(_) if is_set(key) => {}
            Some((ArgAction::SetTrue, toml::Value::Boolean(on))) => {
                words.extend(on.then(|| format!("--{key}")));
            }
            Some((ArgAction::SetTrue, _)) => faults.push(format!("'{key}' is true or false")),
            Some((_, value)) => match plain(value) {
                Some(text) => words.push(format!("--{key}={text}")),
                None => faults.push(format!("'{key}' takes a text or a number")),
            },
        }
    }
    if faults.is_empty() { Ok(words) } else { Err(faults.join("; ")) }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, FromArgMatches, Parser};

    #[derive(Debug, Parser, PartialEq)]
    struct Flags {
        /// A file
        #[arg(long)]
        config: Option<PathBuf>,
        /// A text
        #[arg(long)]
        listen_at: Option<String>,
        /// A number
        #[arg(long, default_value_t = 7)]
        threads: u32,
        /// A switch
        #[arg(long)]
        insecure: bool,
    }

    fn parsed(file: &str, line: &[&str]) -> Result<Flags, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        std::fs::write(&path, file).unwrap();
        let command = with_environment(Flags::command(), "SETTINGS_TEST");
        let mut given: Vec<OsString> = vec!["program".into(), "--config".into(), path.into()];
        given.extend(line.iter().map(OsString::from));
        let all = with_file(&command, given, "SETTINGS_TEST").map_err(|f| f.message)?;
        let matches = command.try_get_matches_from(all).map_err(|e| e.to_string())?;
        Flags::from_arg_matches(&matches).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_comes_before_the_file_and_the_file_before_the_default() {
        let file = "threads = 3\nlisten-at = \"here\"\ninsecure = true";
        let flags = parsed(file, &["--listen-at", "there"]).unwrap();
        assert_eq!((flags.threads, flags.listen_at.as_deref(), flags.insecure), (3, Some("there"), true));
        assert_eq!(parsed("", &[]).unwrap().threads, 7);
    }

    #[test]
    fn the_environment_comes_before_the_file() {
        let command = with_environment(Flags::command(), "SETTINGS_TEST");
        let both = "threads = 3\nlisten-at = \"here\"";
        assert_eq!(words(&command, both, |long| long == "threads").unwrap(), ["--listen-at=here"]);
        let of = |id: &str| command.get_arguments().find(|a| a.get_id() == id).and_then(|a| a.get_env()).unwrap();
        assert_eq!(of("listen_at"), "SETTINGS_TEST_LISTEN_AT");
    }

    #[test]
    fn faults_of_a_file_are_told_all_at_once_with_its_name() {
        let error = parsed("thread = 3\ninsecure = 1\nthreads = [1]", &[]).unwrap_err();
        for part in ["settings.toml", "'thread' is no setting", "'insecure' is true or false", "'threads' takes"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(parsed("threads = ", &[]).unwrap_err().contains("settings.toml"));
    }
}
