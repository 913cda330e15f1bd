//! Flags with named choices: the names of the domain's enums, each with a line of help.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::str::FromStr;
use types::UnknownName;

/// Name and explanation of each choice of one flag.
pub(super) type Choices = &'static [(&'static str, &'static str)];

pub(super) const STRUCTURE: Choices = &[
    (
        "coupled",
        "FFN channels and attention heads: tensors become smaller, the result is smaller and faster everywhere",
    ),
    ("row-column", "rows and columns of each layer become zero, as in the paper; tensors keep their shapes"),
];
pub(super) const HEADS: Choices = &[
    ("kv-group", "a key/value head with all its query heads"),
    ("query-head", "one query head of every key/value head; the key/value heads stay"),
    ("keep", "attention is left as it is"),
];
pub(super) const SHAPE: Choices = &[
    ("uniform", "the same widths in every block: loads in every runtime"),
    ("per-layer", "the curvature decides each block's widths; written padded with zeros to equal widths"),
];
pub(super) const SCORING: Choices = &[
    ("sequential", "exact cost of each removal given all earlier ones"),
    ("independent", "each structure as if it were removed alone, as in the paper"),
];
pub(super) const UPDATE: Choices = &[
    ("correlated", "what remains is corrected for everything removed, jointly and in closed form"),
    ("none", "what remains stays as it is"),
];
pub(super) const CURVATURE: Choices = &[
    ("kfac", "second moments of inputs and of output gradients"),
    ("activations", "second moments of inputs only, as layer-wise methods do"),
    ("identity", "none: magnitude pruning, a baseline"),
];
pub(super) const FISHER: Choices = &[
    ("empirical", "gradients for the next tokens of the data"),
    ("sampled", "gradients for tokens sampled from the model"),
];
pub(super) const SCHEDULE: Choices = &[
    ("linear", "each shot removes the same amount"),
    ("geometric", "each shot removes the same share of what is left"),
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

/// Returns a parser that takes the names in `choices` and shows their explanations in the long help.
pub(super) fn parser<T>(choices: Choices) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownName> + Clone + Send + Sync + 'static,
{
    let values = choices.iter().map(|(name, help)| PossibleValue::new(*name).help(*help));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{
        AttentionUnit, Curvature, DampingScale, Dtype, Fisher, Schedule, Scoring, Shape, ShotData, Structure, Update,
    };

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
