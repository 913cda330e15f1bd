//! Keys by cost alone, for rows and columns that were each scored as if they went alone. Does not merge layers.

use super::{Point, Segment};

/// Appends one segment for each point of a path, with the largest cost up to it as key.
///
/// A step goes when its cost and those before it are at most τ; on the sorted paths of independent scoring this is
/// "cost at most τ". What a step frees already leaves out what rows and columns before it share with it.
pub(super) fn segments(path: usize, points: &[Point], out: &mut Vec<Segment>) {
    out.extend((1..points.len()).map(|end| Segment { path, key: points[end].highest + 0.0, start: end - 1, end }));
}
