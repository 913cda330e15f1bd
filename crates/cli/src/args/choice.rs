//! Flags with named choices: the names of the domain's enums, each with a line of help.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use std::str::FromStr;
use types::{InvalidPattern, Pattern, Structure, UnknownName};

/// Name and explanation of each choice of one flag.
pub(super) type Choices = &'static [(&'static str, &'static str)];

pub(super) const STRUCTURE: Choices = &[
    (
        "coupled",
        "FFN channels and attention heads: tensors become smaller, the result is smaller and faster everywhere",
    ),
    ("row-column", "rows and columns of each layer become zero, as in the paper; tensors keep their shapes"),
    ("element", "single weights become zero; tensors keep their shapes"),
    ("n:m", "n of every m consecutive weights of a row stay, the others become zero; write it as 2:4 or 4:8"),
];
pub(super) const HEADS: Choices = &[
    ("kv-group", "a key/value head with all its query heads"),
    ("query-head", "one query head of every key/value head; the key/value heads stay"),
    ("keep", "attention is left as it is"),
];
pub(super) const SHAPE: Choices = &[
    ("uniform", "the same widths in every block: loads in every runtime"),
    (
        "per-layer",
        "the curvature decides each block's widths: loads in transformers with the folder's code, and in llama.cpp",
    ),
    ("padded", "the curvature decides; narrower blocks padded with zeros: loads in every runtime, but is not smaller"),
    ("auto", "uniform, unless the first shot's costs predict that per-layer is worth it; the report says why"),
];
pub(super) const FORMAT: Choices = &[
    ("hf", "a folder for transformers, vLLM and what else reads its files"),
    ("gguf", "model.gguf for llama.cpp"),
    ("both", "both in one folder"),
];
pub(super) const GGUF_TYPE: Choices = &[
    ("auto", "as in the model's files"),
    ("f32", "32-bit float"),
    ("f16", "16-bit float"),
    ("bf16", "16-bit brain float"),
    ("q8_0", "8-bit integers with a scale for each 32; f16 where a row is no multiple of 32"),
];
pub(super) const SCORING: Choices = &[
    ("sequential", "exact cost of each removal given all earlier ones"),
    ("independent", "each structure as if it were removed alone, as in the paper"),
];
pub(super) const UPDATE: Choices = &[
    ("correlated", "what remains is corrected for everything removed, jointly"),
    ("grouped", "element and n:m: in groups of --max-correlate weights, one after the other, as in the paper"),
    ("two-sided", "element and n:m: in one pass over rows and columns"),
    ("independent", "the sum of the corrections for each removal alone, the paper's cheaper variant"),
    ("none", "what remains stays as it is"),
];
pub(super) const CURVATURE: Choices = &[
    ("kfac", "second moments of inputs and of output gradients"),
    ("activations", "second moments of inputs only, as layer-wise methods do"),
    ("diagonal", "mean squares of each weight's gradient, without correlations; needs --update none"),
    ("identity", "none: magnitude pruning, a baseline"),
];
pub(super) const FISHER: Choices = &[
    ("empirical", "gradients for the next tokens of the data"),
    ("sampled", "gradients for tokens sampled from the model"),
];
pub(super) const SCHEDULE: Choices = &[
    ("linear", "each shot removes the same amount"),
    ("geometric", "each shot removes the same share of what is left"),
    ("adaptive", "each shot goes as far as --max-rise lets it, and back if the held-out loss disagrees"),
];
pub(super) const SHOT_DATA: Choices = &[
    ("new", "samples that no earlier shot has seen, as long as the data has enough"),
    ("same", "the first shot's samples"),
];
pub(super) const DAMPING_SCALE: Choices = &[
    ("diagonal", "of each diagonal entry itself: inputs of any scale are treated alike"),
    ("mean", "of the diagonal's mean, as in the paper: a few large inputs set it for all"),
];
pub(super) const DTYPE: Choices = &[
    ("f32", "32-bit float: exact and the same everywhere"),
    ("bf16", "16-bit brain float: half the memory, fast on GPUs"),
    ("f16", "16-bit float: half the memory; may overflow"),
];

/// A structure, with the pattern when it is n:m.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StructureArg {
    /// What is removed at once.
    pub(crate) structure: Structure,
    /// n:m.
    pub(crate) pattern: Option<Pattern>,
}

/// Returns a parser of `--structure`: a name, or a pattern.
pub(super) fn structure() -> impl TypedValueParser<Value = StructureArg> {
    StructureParser
}

#[derive(Clone)]
struct StructureParser;

impl TypedValueParser for StructureParser {
    type Value = StructureArg;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<StructureArg, clap::Error> {
        let text = value.to_string_lossy();
        if text.contains(':') {
            let refuse = |e: InvalidPattern| {
                clap::Error::raw(ErrorKind::InvalidValue, format!("--structure: {e}\n")).with_cmd(command)
            };
            let pattern = text.parse::<Pattern>().map_err(refuse)?;
            return Ok(StructureArg { structure: Structure::NofM, pattern: Some(pattern) });
        }
        let structure = parser::<Structure>(STRUCTURE).parse_ref(command, arg, value)?;
        Ok(StructureArg { structure, pattern: None })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(values(STRUCTURE)))
    }
}

/// Returns a parser that takes the names in `choices` and shows their explanations in the long help.
pub(super) fn parser<T>(choices: Choices) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownName> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(values(choices)).try_map(|name| name.parse::<T>())
}

fn values(choices: Choices) -> impl Iterator<Item = PossibleValue> {
    choices.iter().map(|(name, help)| PossibleValue::new(*name).help(*help))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{
        AttentionUnit, Curvature, DampingScale, Dtype, Fisher, Schedule, Scoring, Shape, ShotData, Structure, Update,
    };

    #[test]
    fn a_structure_is_a_name_or_a_pattern() {
        let parse = |text: &str| {
            let command = clap::Command::new("x").arg(clap::Arg::new("s").value_parser(structure()));
            command.try_get_matches_from(["x", text]).map(|m| *m.get_one::<StructureArg>("s").unwrap())
        };
        assert_eq!(parse("element").unwrap(), StructureArg { structure: Structure::Element, pattern: None });
        assert_eq!(parse("2:4").unwrap().pattern, Pattern::new(2, 4).ok());
        for bad in ["4:2", "n:m", "rows"] {
            let message = parse(bad).unwrap_err().to_string();
            assert!(
                message.contains(bad) && message.contains(if bad == "rows" { "row-column" } else { "2:4" }),
                "{message}"
            );
        }
    }

    #[test]
    fn the_help_lists_exactly_the_choices_that_exist() {
        let names = |choices: Choices| choices.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(STRUCTURE), Structure::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(HEADS), AttentionUnit::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(SHAPE), Shape::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(SCORING), Scoring::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(UPDATE), Update::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(CURVATURE), Curvature::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(FISHER), Fisher::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(SCHEDULE), Schedule::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(SHOT_DATA), ShotData::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(DAMPING_SCALE), DampingScale::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(DTYPE), Dtype::ALL.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}
