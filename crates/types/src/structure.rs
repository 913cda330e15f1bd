//! The closed sets of choices: what is removed, how it is scored, updated and shaped.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A word that is not one of the choices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} '{value}', expected one of {expected}")]
pub struct UnknownName {
    /// What was being chosen.
    pub what: &'static str,
    /// What was given.
    pub value: String,
    /// The names that exist, joined by commas.
    pub expected: String,
}

/// Declares an enum of named choices with text conversions that agree with its serde form.
macro_rules! choices {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every choice, in the order in which help texts list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the name used on the command line, in logs and in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(value: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|c| c.name() == value).ok_or_else(|| UnknownName {
                    what: $what,
                    value: value.to_owned(),
                    expected: Self::ALL.iter().map(|c| c.name()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

choices! {
    /// What is removed at once.
    Structure, "structure" {
        /// Units that make tensors smaller: FFN channels, kv groups, query heads.
        Coupled = "coupled",
        /// Rows and columns of each layer, as in the paper; the result is dense with zeros.
        RowColumn = "row-column",
        /// Single weights; the result is dense with zeros.
        Element = "element",
        /// n of every m consecutive weights of a row stay ([`Pattern`]); the result is dense with zeros.
        NofM = "n:m",
    }
}

impl Structure {
    /// Returns whether single weights go by one threshold on their costs, instead of units along paths.
    pub fn is_masked(self) -> bool {
        matches!(self, Self::Element | Self::NofM)
    }

    /// Returns whether tensors keep their shapes and what goes becomes zero.
    pub fn keeps_shapes(self) -> bool {
        self != Self::Coupled
    }
}

choices! {
    /// The kind of one removable unit.
    UnitKind, "unit kind" {
        /// Gate row j, up row j, down column j (OPT: fc1 row and bias, fc2 column).
        FfnChannel = "ffn-channel",
        /// k and v rows of one kv head, q rows and o columns of its query heads.
        KvGroup = "kv-group",
        /// q rows and o columns of one query head in every kv group.
        QueryHead = "query-head",
        /// An output feature of one layer.
        Row = "row",
        /// An input feature of one layer.
        Column = "column",
        /// One weight.
        Element = "element",
        /// No unit: the layer is whole, only its weights are new.
        Whole = "whole",
    }
}

choices! {
    /// Which unit attention is pruned by under [`Structure::Coupled`].
    AttentionUnit, "attention unit" {
        /// A kv head with all its query heads.
        KvGroup = "kv-group",
        /// One query head of every kv group.
        QueryHead = "query-head",
        /// Attention is left as it is.
        Keep = "keep",
    }
}

choices! {
    /// How the widths of the result relate across blocks.
    Shape, "shape" {
        /// The same widths in every block: loads everywhere.
        Uniform = "uniform",
        /// The curvature decides each block's widths, and they are written as they are.
        PerLayer = "per-layer",
        /// The curvature decides, and narrower blocks are padded with zeros to the widest: loads everywhere, is not smaller.
        Padded = "padded",
        /// Uniform, unless the first shot's costs predict that per-layer is worth more than it takes to load it.
        Auto = "auto",
    }
}

impl Shape {
    /// Returns whether cuts leave all blocks equally wide; `auto` is none that cuts are made by.
    pub fn is_uniform(self) -> bool {
        self == Self::Uniform
    }

    /// Returns the shape that cuts of this one are set against: uniform against widths of their own.
    #[must_use]
    pub fn other(self) -> Self {
        if self.is_uniform() { Self::PerLayer } else { Self::Uniform }
    }
}

choices! {
    /// For which runtimes the result is written.
    Format, "format" {
        /// A folder for transformers and what reads its files.
        Hf = "hf",
        /// A GGUF file for llama.cpp.
        Gguf = "gguf",
        /// Both in one folder.
        Both = "both",
    }
}

impl Default for Format {
    /// What runs were written as before there was a choice.
    fn default() -> Self {
        Self::Hf
    }
}

impl Default for GgufType {
    /// What runs were written as before there was a choice.
    fn default() -> Self {
        Self::Auto
    }
}

impl Format {
    /// Returns whether there is a Hugging Face folder.
    pub fn has_hf(self) -> bool {
        self != Self::Gguf
    }

    /// Returns whether there is a GGUF file.
    pub fn has_gguf(self) -> bool {
        self != Self::Hf
    }
}

choices! {
    /// Number format of the matrices in a GGUF file; vectors are always f32.
    GgufType, "GGUF type" {
        /// The base model's.
        Auto = "auto",
        /// 32-bit float.
        F32 = "f32",
        /// 16-bit float.
        F16 = "f16",
        /// 16-bit brain float.
        Bf16 = "bf16",
        /// 8-bit integers with a scale for each 32 of a row; f16 where a row is no multiple of 32.
        Q8 = "q8_0",
    }
}

choices! {
    /// How costs account for what was removed before.
    Scoring, "scoring" {
        /// Exact marginal costs along a removal path.
        Sequential = "sequential",
        /// Each structure as if it were removed alone (the paper).
        Independent = "independent",
    }
}

choices! {
    /// What happens to the remaining weights.
    Update, "update" {
        /// The joint optimum for everything removed: in closed form, or by conjugate gradients where there is none.
        Correlated = "correlated",
        /// Removed weights in groups of at most `max_correlate`, one group after the other (the paper; element and n:m).
        Grouped = "grouped",
        /// One pass over rows and columns (element and n:m).
        TwoSided = "two-sided",
        /// The sum of the updates of each removal as if it were alone (the paper's independent variant).
        Independent = "independent",
        /// Remaining weights stay as they are.
        None = "none",
    }
}

choices! {
    /// Which factors costs and updates use.
    Curvature, "curvature" {
        /// Kronecker factors A and G.
        Kfac = "kfac",
        /// A alone; G is the identity (layer-wise methods).
        Activations = "activations",
        /// The diagonal of the Fisher itself, one number a weight; no correlations, so no updates.
        Diagonal = "diagonal",
        /// Neither: magnitude.
        Identity = "identity",
    }
}

choices! {
    /// Whose labels the Fisher uses.
    Fisher, "fisher" {
        /// Labels of the data.
        Empirical = "empirical",
        /// Labels sampled from the model.
        Sampled = "sampled",
    }
}

choices! {
    /// Which calibration samples each shot sees.
    ShotData, "shot data" {
        /// Samples no earlier shot has seen, as long as the data has enough of them.
        New = "new",
        /// The first shot's.
        Same = "same",
    }
}

choices! {
    /// How the size goes down over the shots.
    Schedule, "schedule" {
        /// Equal steps of size.
        Linear = "linear",
        /// Equal ratios of size.
        Geometric = "geometric",
        /// The largest step whose predicted rise of the loss stays within a bound; taken back if the held-out loss disagrees.
        Adaptive = "adaptive",
    }
}

choices! {
    /// What λ is a fraction of, when a factor is damped.
    DampingScale, "damping scale" {
        /// Each diagonal entry itself: correlations shrink by 1 / (1 + λ), whatever an input's scale.
        Diagonal = "diagonal",
        /// The mean of the diagonal (the paper): one number for all entries.
        Mean = "mean",
    }
}

impl Structure {
    /// Returns whether a shot can choose what goes in rounds: single weights, whose costs a joint update moves.
    pub fn takes_rounds(self, update: Update, curvature: Curvature) -> bool {
        self.is_masked() && update == Update::Correlated && curvature != Curvature::Identity
    }
}

impl DampingScale {
    /// Returns λ for A and G when none is asked for.
    pub fn usual(self, structure: Structure) -> (f64, f64) {
        // Single weights use both inverses, rows that of G: its small eigenvalues are noise. Units use that of A alone. Half of
        // the single weights are no small step, so what G says of rows moving together is hardly to be trusted: on SmolLM2
        // 2:4 costs x 11.7 with 0.1, x 4.1 with 1, x 2.3 with 10.
        let g = match (structure, self) {
            (Structure::Element | Structure::NofM, Self::Diagonal) => 10.0,
            (Structure::Element | Structure::NofM, Self::Mean) => 0.1,
            (Structure::RowColumn, Self::Diagonal) => 0.3,
            (Structure::RowColumn, Self::Mean) | (Structure::Coupled, _) => 0.01,
        };
        match self {
            Self::Diagonal => (0.1, g),
            Self::Mean => (0.01, g),
        }
    }
}

choices! {
    /// Number format of weights and activations during forward and backward passes.
    Dtype, "dtype" {
        /// 32-bit float.
        F32 = "f32",
        /// 16-bit brain float.
        Bf16 = "bf16",
        /// 16-bit float.
        F16 = "f16",
    }
}

impl Dtype {
    /// Returns the size of one number, in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// n of every m consecutive weights of a row stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pattern {
    /// Weights that stay in a window; at least 1 and less than m.
    pub n: u32,
    /// Weights of a window.
    pub m: u32,
}

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no pattern n:m with 1 ≤ n < m ≤ 64; write for example 2:4")]
pub struct InvalidPattern(pub String);

impl Pattern {
    /// The widest window: a mask of it fits 64 bits.
    pub const WIDEST: u32 = 64;

    /// Returns the pattern n:m.
    pub fn new(n: u32, m: u32) -> Result<Self, InvalidPattern> {
        let good = 0 < n && n < m && m <= Self::WIDEST;
        if good { Ok(Self { n, m }) } else { Err(InvalidPattern(format!("{n}:{m}"))) }
    }

    /// Returns the share of the weights that stays when every window is cut.
    pub fn share(self) -> f64 {
        f64::from(self.n) / f64::from(self.m)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.n, self.m)
    }
}

impl std::str::FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let numbers = text.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        let (n, m) = numbers.ok_or_else(|| InvalidPattern(text.to_owned()))?;
        Self::new(n, m)
    }
}

/// One removable unit of a layer, by its index in the original model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unit {
    /// What it is.
    pub kind: UnitKind,
    /// Channel, kv head, query head within the block, row or column; counted in the original, unpruned model.
    pub index: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_reads_back_and_a_bad_one_says_what_to_write() {
        assert_eq!("2:4".parse(), Pattern::new(2, 4));
        assert_eq!(Pattern::new(4, 8).map(|p| p.to_string()), Ok("4:8".to_owned()));
        for bad in ["4:4", "0:4", "2", "2:65", "-1:4", "a:b"] {
            let message = bad.parse::<Pattern>().map_err(|e| e.to_string());
            assert!(message.is_err_and(|m| m.contains(bad) && m.contains("2:4")), "{bad}");
        }
    }

    #[test]
    fn every_name_reads_back_and_equals_its_serde_form() {
        for s in Structure::ALL {
            assert_eq!(s.name().parse::<Structure>().as_ref(), Ok(s));
            assert_eq!(serde_json::to_string(s).ok(), Some(format!("\"{s}\"")));
        }
        let err = "rows".parse::<Structure>().map_err(|e| e.to_string());
        assert_eq!(err, Err("unknown structure 'rows', expected one of coupled, row-column, element, n:m".to_owned()));
    }
}
