//! Keys by cost per freed weight. Does not merge layers.

use super::{Point, Segment};

/// Appends the edges of the lower convex hull of one path's (freed, cost) points, each with its slope as key.
///
/// Marginal costs are not monotone: a cheap removal may hide behind a dear one. On the hull the slopes rise, so whoever
/// takes edges in the order of their slope takes prefixes, and every prefix that ends at a hull point is the cheapest
/// way to free that much among all mixtures of its layer's points.
pub(super) fn segments(path: usize, points: &[Point], out: &mut Vec<Segment>) {
    let mut hull = vec![0];
    for (index, point) in points.iter().enumerate().skip(1) {
        let last = hull[hull.len() - 1];
        if point.freed == points[last].freed {
            continue;
        }
        while let [.., before, last] = hull[..] {
            if slope(&points[before], &points[last]) < slope(&points[last], point) {
                break;
            }
            hull.pop();
        }
        hull.push(index);
    }
    let mut key = f64::NEG_INFINITY;
    out.extend(hull.windows(2).map(|edge| {
        // The maximum guards the order of a path's edges against the last bit of a division; + 0.0 turns −0 into 0.
        key = key.max(slope(&points[edge[0]], &points[edge[1]])) + 0.0;
        Segment { path, key, start: edge[0], end: edge[1] }
    }));
}

fn slope(from: &Point, to: &Point) -> f64 {
    (to.cost - from.cost) / (to.freed - from.freed) as f64
}
