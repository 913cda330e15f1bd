//! Inputs to begin with: what the repository has, and what a target can make better than a person can write it.

use std::path::Path;

/// Where seeds go; unset where none are asked for.
const FOLDER: &str = "LLM_SURGEON_SEEDS";

/// Writes a target's seeds, if the environment names a folder for them. To be called before libFuzzer reads that folder.
///
/// # Panics
/// When they cannot be written.
pub fn plant(seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    std::fs::create_dir_all(&folder).expect("a folder for seeds");
    for (number, seed) in seeds().into_iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("{number:03}")), seed).expect("a seed");
    }
}

/// Returns a file of the repository's `testdata`.
///
/// # Panics
/// When it is not there.
pub fn example(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
