//! The model card: a stub that says where the model comes from.

use super::gguf;
use crate::ModelFolder;
use crate::compact::{Place, differ};
use std::path::Path;
use types::Format;

/// Keys of the base model's card that hold for the pruned model as well.
const INHERITED: [&str; 4] = ["license:", "license_name:", "license_link:", "language:"];

/// Returns README.md for the model pruned from `folder`. Does not name the output: its bytes do not depend on where it
/// is written.
pub(super) fn text(folder: &ModelFolder, places: &[Place], format: Format) -> String {
    let base = base_model(folder.path());
    let inherited = inherited(folder.path());
    format!(
        "---\n{inherited}base_model: {base}\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- pruned\n---\n\n\
         # {base}, pruned\n\n\
         A smaller version of `{base}`, made by LLM Surgeon (structured pruning with Kronecker-factored curvature, \
         arXiv 2312.17244). What was removed where, what it cost and how it was measured is in `pruning_report.json`.\n\n\
         ```\n{}```\n\n\
         The licence of the base model applies.\n",
        use_of_it(places, format)
    )
}

/// Returns lines that load the model in this folder.
fn use_of_it(places: &[Place], format: Format) -> String {
    let mut lines = Vec::new();
    if format.has_hf() {
        let trust = if differ(places) { ", trust_remote_code=True" } else { "" };
        lines.push("from transformers import AutoModelForCausalLM, AutoTokenizer".to_owned());
        lines.push(format!("model = AutoModelForCausalLM.from_pretrained(\".\"{trust})"));
        lines.push("tokenizer = AutoTokenizer.from_pretrained(\".\")".to_owned());
    }
    if format.has_gguf() {
        lines.push(format!("llama-cli -m {} -p \"Once upon a time\"", gguf::FILE));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Returns the base model's name on the hub if it lies in a hub cache, otherwise the name of its folder.
pub(super) fn base_model(folder: &Path) -> String {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let names: Vec<_> = absolute.iter().map(|part| part.to_string_lossy()).collect();
    let cached = names.iter().find_map(|name| name.strip_prefix("models--"));
    match (cached, names.last()) {
        (Some(hub), _) => hub.replacen("--", "/", 1),
        (None, Some(last)) => last.to_string(),
        (None, None) => "unknown".to_owned(),
    }
}

/// Returns the lines of the base model's card that are kept.
fn inherited(folder: &Path) -> String {
    let Ok(card) = std::fs::read_to_string(folder.join("README.md")) else { return String::new() };
    let mut lines = card.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return String::new();
    }
    let mut kept = String::new();
    let mut inside = false;
    for line in lines.take_while(|line| line.trim_end() != "---") {
        // A list's items stand below its key, indented or with a dash.
        inside = if line.starts_with([' ', '-']) { inside } else { INHERITED.iter().any(|key| line.starts_with(key)) };
        if inside {
            kept.push_str(line.trim_end());
            kept.push('\n');
        }
    }
    kept
}
