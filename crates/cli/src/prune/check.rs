//! What can be seen to be wrong before anything expensive starts. The workers check again; this is only sooner.

use super::request::is_address;
use crate::error::CliError;
use crate::sizes::check_target;
use model::ModelFolder;
use model::export;
use model::tokens::Tokenizer;
use model::units;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use types::{RunSpec, Structure};

/// Returns whether a file, a folder or a match of a glob is there.
pub(crate) fn data_is_there(path: &str) -> bool {
    Path::new(path).exists() || glob::glob(path).is_ok_and(|mut found| found.next().is_some())
}

/// Returns a fault for every data path where there is nothing.
pub(crate) fn missing_data(flag: &'static str, paths: &[String]) -> Vec<CliError> {
    let missing = paths.iter().filter(|path| !data_is_there(path));
    missing.map(|path| CliError::DataMissing { flag, path: path.clone() }).collect()
}

/// Refuses what is no path of this machine: only workers reach buckets and artifacts.
pub(crate) fn only_paths<'a>(places: impl IntoIterator<Item = (&'static str, &'a str)>) -> Result<(), CliError> {
    let elsewhere = places.into_iter().filter(|(_, place)| is_address(place));
    let refused = |(flag, place): (&str, &str)| {
        CliError::Usage(format!(
            "{flag} '{place}': this command works on folders and files of this machine; llm-surgeon submit has workers reach others"
        ))
    };
    CliError::from_all(elsewhere.map(refused).collect())
}

/// Checks model, data and target of a run, without writing anything. All faults are reported at once.
pub(super) fn inputs(spec: &RunSpec, folder: &ModelFolder) -> Result<(), CliError> {
    let mut faults = missing_data("--data", &spec.data);
    faults.extend(missing_data("--eval-data", &spec.eval_data));
    faults.extend(Tokenizer::open(folder.path()).err().map(CliError::from));
    let tokens = i64::try_from(spec.seq_len).unwrap_or(i64::MAX);
    faults.extend(folder.config().check_length(tokens).err().map(|e| CliError::Usage(format!("--seq-len: {e}"))));
    faults.extend(export::check_writable(folder, spec).err().map(CliError::from));
    if spec.structure == Structure::Coupled {
        let model = units::describe_for(folder, spec)?;
        faults.extend(check_target(&model, spec.target, spec.multiple_of).err());
    }
    CliError::from_all(faults)
}

/// Makes sure that a folder is one that runs keep their state in.
pub(crate) fn state_folder(state: &Path) -> Result<(), CliError> {
    if state.join("runs").is_dir() {
        return Ok(());
    }
    Err(CliError::Usage(format!("'{}' is no state folder: it holds no runs", state.display())))
}

/// Returns the fault of a state folder without the run that was named, or, if none was, without any: `otherwise`.
pub(crate) fn no_run(state: &Path, named: Option<&str>, otherwise: &str) -> CliError {
    let folder = state.display();
    CliError::Usage(match named {
        Some(name) => format!("'{folder}' has no run {name}"),
        None => format!("'{folder}' {otherwise}"),
    })
}

/// Makes sure that the output can be created beside its final name, and returns its parent.
pub(crate) fn output_parent(output: &Path) -> Result<PathBuf, CliError> {
    let parent = output.parent().unwrap_or(Path::new("/")).to_owned();
    writable("--out", output, &parent)?;
    Ok(parent)
}

/// Makes sure that a folder is there and that files can be made in it.
pub(super) fn writable(flag: &'static str, path: &Path, folder: &Path) -> Result<(), CliError> {
    let probe = folder.join(format!(".llm-surgeon-{}", std::process::id()));
    let tried =
        fs::create_dir_all(folder).and_then(|()| File::create_new(&probe)).and_then(|_| fs::remove_file(&probe));
    tried.map_err(|source| CliError::Unwritable { flag, path: path.to_owned(), folder: folder.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_that_matches_nothing_is_missing_data() {
        let dir = tempfile::tempdir().unwrap();
        let pattern = dir.path().join("*.txt").display().to_string();
        assert_eq!(missing_data("--data", std::slice::from_ref(&pattern)).len(), 1);
        fs::write(dir.path().join("a[1].txt"), "x").unwrap();
        assert!(missing_data("--data", &[pattern, dir.path().join("a[1].txt").display().to_string()]).is_empty());
    }

    #[test]
    fn a_file_in_the_way_is_an_output_that_cannot_be_created() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = output_parent(&file.join("out")).unwrap_err();
        assert_eq!(error.exit(), crate::error::Exit::Output);
        assert!(output_parent(&dir.path().join("new/out")).is_ok());
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 0);
    }
}
