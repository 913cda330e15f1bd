//! Blocks with widths of their own: what config.json says of them, and the code by which transformers builds them.
//!
//! Stock classes give every block the config's one width. The code is a class of the same family that gives each its own;
//! it comes with the folder and is run with `trust_remote_code=True`.

use crate::compact::Place;
use crate::config::PER_BLOCK;
use crate::{BlockWidths, Family};
use serde_json::{Map, Value, json};

/// The file with the code that builds blocks with widths of their own.
pub const FILE: &str = "modeling_per_layer.py";

/// The key that lets code written for equal blocks read the widest.
pub(super) const GLOBAL_ACCESS: &str = "allow_global_per_layer_attribute_access";

/// The code for Mistral.
const CODE: &str = include_str!("modeling_per_layer.py");

/// Returns the code for `family`.
pub(super) fn code(family: Family) -> String {
    let code = CODE.replace("Mistral", stem(family)).replace("mistral", family.name());
    if family == Family::Opt { code.replace("self.model.layers", "self.model.decoder.layers") } else { code }
}

/// Says in `raw` how wide each block is that differs from the `widest`, and where the code is.
pub(super) fn insert(family: Family, blocks: &[Place], widest: BlockWidths, raw: &mut Map<String, Value>) {
    let digits = blocks.len().saturating_sub(1).to_string().len();
    let mut own = Map::new();
    for (number, block) in blocks.iter().enumerate() {
        let pairs = block.widths.keys(family).into_iter().zip(widest.keys(family));
        let differs =
            pairs.filter(|(own, widest)| own != widest).map(|((key, value), _)| (key.to_owned(), json!(value)));
        let differs: Map<String, Value> = differs.collect();
        if !differs.is_empty() {
            own.insert(format!("{number:0digits$}"), Value::Object(differs));
        }
    }
    let class = format!("PerLayer{}", family.architecture());
    raw.insert("architectures".to_owned(), json!([class]));
    raw.insert("auto_map".to_owned(), json!({ "AutoModelForCausalLM": format!("modeling_per_layer.{class}") }));
    raw.insert(PER_BLOCK.to_owned(), Value::Object(own));
    raw.insert(GLOBAL_ACCESS.to_owned(), json!(true));
}

/// Returns what the names of a family's classes begin with.
fn stem(family: Family) -> &'static str {
    let name = family.architecture();
    name.strip_suffix("ForCausalLM").unwrap_or(name)
}
