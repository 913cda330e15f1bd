//! What a target leaves: the smallest model that units can leave, and the pairs of widths that meet a target when all
//! blocks get the same. Pure; which pair is best only curvature can tell.

use crate::error::CliError;
use crate::text::{grouped, percent};
use serde::Serialize;
use types::{ModelDescription, Sizes, Target, UnitGroup, UnitKind, format_bytes};

/// Refuses a target that cannot be reached.
pub(crate) fn check_target(model: &ModelDescription, target: Target, multiple_of: u32) -> Result<(), CliError> {
    let limit = target.limit(&model.dense);
    let least = model.smallest(multiple_of);
    if limit == 0 {
        return Err(CliError::Usage(format!("{}: leaves nothing of the model; ask for more", flag(target))));
    }
    if least.measured_by(&target) <= limit {
        return Ok(());
    }
    let advice = "ask for more, or lower --multiple-of";
    let message = match target {
        Target::Size(_) => format!(
            "below what can remain: the units leave at least {:.3} of the prunable weights; {advice}",
            least.prunable as f64 / model.dense.prunable as f64
        ),
        Target::Parameters(_) => format!(
            "below what can remain: at least {} parameters of {} (embeddings and norms are never removed); {advice}",
            grouped(least.parameters),
            grouped(model.dense.parameters)
        ),
        Target::Bytes(_) => format!(
            "below what can remain: at least {} of {} (embeddings and norms are never removed); {advice}",
            format_bytes(least.bytes),
            format_bytes(model.dense.bytes)
        ),
    };
    Err(CliError::Usage(format!("{}: {message}", flag(target))))
}

/// Returns the target as it is written on the command line.
pub(crate) fn flag(target: Target) -> String {
    match target {
        Target::Size(fraction) => format!("--target-size {fraction}"),
        Target::Parameters(count) => format!("--target-params {count}"),
        Target::Bytes(bytes) => format!("--target-bytes {bytes}"),
    }
}

/// One way to meet a target with equal blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Widths {
    /// Attention units left in each block, as many as the description counts; `None` where attention has no units.
    pub(crate) attention: Option<u32>,
    /// FFN channels left in each block.
    pub(crate) ffn: Option<u32>,
    /// The model's size then.
    pub(crate) sizes: Sizes,
}

impl Widths {
    /// Returns the share of the prunable weights that is left.
    pub(crate) fn share(&self, dense: &Sizes) -> String {
        percent(self.sizes.prunable, dense.prunable)
    }
}

/// Returns, for each number of attention units, the widest FFN with which equal blocks meet the target.
pub(crate) fn uniform_widths(model: &ModelDescription, target: Target, multiple_of: u32) -> Vec<Widths> {
    let side =
        |ffn: bool| -> Vec<&UnitGroup> { model.groups().filter(|g| (g.kind == UnitKind::FfnChannel) == ffn).collect() };
    let (attention, ffn) = (Side::new(&side(false), multiple_of), Side::new(&side(true), multiple_of));
    let limit = target.limit(&model.dense);
    let widths = attention.choices().into_iter().filter_map(|heads| {
        let rest = model.dense - attention.freed(heads);
        let fits = |channels: &Option<u32>| (rest - ffn.freed(*channels)).measured_by(&target) <= limit;
        let channels = ffn.choices().into_iter().find(fits)?;
        Some(Widths { attention: heads, ffn: channels, sizes: rest - ffn.freed(channels) })
    });
    widths.collect()
}

/// The groups of one side of all blocks, cut alike.
struct Side {
    /// Units a block, at least so many, in steps of so many; `None` without groups.
    range: Option<(u32, u32, u32)>,
    /// What one unit of every block saves.
    freed_per_unit: Sizes,
}

impl Side {
    fn new(groups: &[&UnitGroup], multiple_of: u32) -> Self {
        let range = groups.first().map(|group| {
            let step = if group.kind == UnitKind::FfnChannel { multiple_of } else { 1 };
            (group.units, group.must_keep(multiple_of) / group.together.max(1), step.max(1))
        });
        // Units that only go together count as one here.
        let freed = groups.iter().map(|g| g.freed_per_unit * u64::from(g.together));
        Self { range, freed_per_unit: freed.fold(Sizes::default(), |sum, f| sum + f) }
    }

    /// Returns the widths that are allowed, falling: all units, then multiples of the step.
    fn choices(&self) -> Vec<Option<u32>> {
        let Some((units, least, step)) = self.range else { return vec![None] };
        let multiples = (least.div_ceil(step)..units.div_ceil(step)).rev().map(|n| Some(n * step));
        std::iter::once(Some(units)).chain(multiples).collect()
    }

    fn freed(&self, left: Option<u32>) -> Sizes {
        let gone = self.range.map_or(0, |(units, ..)| units - left.unwrap_or(units));
        self.freed_per_unit * u64::from(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{BlockDescription, LayerId};

    /// Two blocks of 4 kv groups (100 weights each) and 256 channels (3 weights each), and 500 other parameters.
    fn model() -> ModelDescription {
        let sizes = |n: u64| Sizes { prunable: n, parameters: n, bytes: 4 * n };
        let group = |kind, units, freed: u64| UnitGroup {
            layer: LayerId::new("l").unwrap(),
            kind,
            units,
            together: 1,
            min_keep: 1,
            columns_per_unit: 1,
            freed_per_unit: sizes(freed),
        };
        let block = |block| BlockDescription {
            block,
            layers: vec![],
            groups: vec![group(UnitKind::KvGroup, 4, 100), group(UnitKind::FfnChannel, 256, 3)],
        };
        let prunable = 2 * (4 * 100 + 256 * 3);
        ModelDescription {
            family: "llama".into(),
            digest: String::new(),
            hidden: 1,
            vocabulary: 1,
            max_positions: 1,
            dense: Sizes { prunable, parameters: prunable + 500, bytes: 4 * (prunable + 500) },
            blocks: vec![block(0), block(1)],
            own_widths_refused: String::new(),
        }
    }

    #[test]
    fn each_number_of_heads_gets_the_widest_ffn_that_meets_the_target() {
        let target = Target::Size(0.75);
        let found = uniform_widths(&model(), target, 64);
        let pairs: Vec<_> = found.iter().map(|w| (w.attention, w.ffn)).collect();
        // 0.75 × 2336 = 1752: 4 groups leave 952 for channels of 6, that is 158; 3 groups 1152 and 192; and so on.
        assert_eq!(pairs, [(Some(4), Some(128)), (Some(3), Some(192)), (Some(2), Some(192)), (Some(1), Some(256))]);
        assert!(found.iter().all(|w| w.sizes.measured_by(&target) <= target.limit(&model().dense)));
        assert_eq!(found[0].sizes.prunable, 2 * (400 + 128 * 3));
    }

    #[test]
    fn a_target_below_what_can_remain_says_what_can() {
        // 1 group and 64 channels a block: 2 × (100 + 192) = 584 of 2336.
        assert_eq!(model().smallest(64).prunable, 584);
        assert!(check_target(&model(), Target::Size(0.25), 64).is_ok());
        let error = check_target(&model(), Target::Size(0.2), 64).unwrap_err().to_string();
        assert!(error.contains("--target-size 0.2") && error.contains("at least 0.250"), "{error}");
        let error = check_target(&model(), Target::Parameters(900), 64).unwrap_err().to_string();
        assert!(error.contains("at least 1,084 parameters"), "{error}");
        assert!(check_target(&model(), Target::Size(1e-9), 1).unwrap_err().to_string().contains("leaves nothing"));
        assert!(uniform_widths(&model(), Target::Size(0.1), 64).is_empty());
    }
}
