//! Correlation groups: which removed weights are solved for together. Knows no tensors.

use std::ops::Range;

/// Removed weights that are solved for together: a run of them in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CorrelationGroup {
    /// Rows from the first to the last that has some of them.
    pub(crate) rows: Range<i64>,
    /// Their numbers among all removed weights in row-major order.
    pub(crate) elements: Range<i64>,
}

/// Returns the groups in row-major order, each of at most `most` weights (at least 1): whole rows, as many as fit; a row with
/// more is split by its columns, all parts but the last full, and the next rows join the last as far as they fit.
pub(crate) fn correlation_groups(removed_per_row: &[i64], most: i64) -> Vec<CorrelationGroup> {
    let mut groups: Vec<CorrelationGroup> = Vec::new();
    let mut done = 0;
    for (row, &removed) in (0..).zip(removed_per_row) {
        let end = done + removed;
        if let Some(last) = groups.last_mut()
            && removed > 0
            && end - last.elements.start <= most
        {
            (last.rows.end, last.elements.end, done) = (row + 1, end, end);
        }
        while done < end {
            let part = done..end.min(done + most);
            done = part.end;
            groups.push(CorrelationGroup { rows: row..row + 1, elements: part });
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(removed_per_row: &[i64], most: i64) -> Vec<(Range<i64>, Range<i64>)> {
        correlation_groups(removed_per_row, most).into_iter().map(|g| (g.rows, g.elements)).collect()
    }

    #[test]
    fn whole_rows_go_together_and_long_rows_are_split() {
        assert_eq!(runs(&[2, 0, 1, 2], 3), [(0..3, 0..3), (3..4, 3..5)]);
        assert_eq!(runs(&[7, 2, 0, 1], 3), [(0..1, 0..3), (0..1, 3..6), (0..2, 6..9), (3..4, 9..10)]);
        assert_eq!(runs(&[0, 0], 3), []);
    }

    proptest! {
        #[test]
        fn every_weight_is_in_one_group_and_none_is_too_large(
            removed in prop::collection::vec(0_i64..20, 0..12), most in 1_i64..25,
        ) {
            let groups = correlation_groups(&removed, most);
            let mut next = 0;
            for group in &groups {
                prop_assert_eq!(group.elements.start, next);
                prop_assert!(group.elements.end - next <= most && group.elements.end > next);
                next = group.elements.end;
                let of_rows = |rows: Range<i64>| removed[rows.start as usize..rows.end as usize].iter().sum::<i64>();
                let before = of_rows(0..group.rows.start);
                let through = before + of_rows(group.rows.clone());
                prop_assert!(before <= group.elements.start && group.elements.end <= through);
                // More than one row: none of them but the first is split.
                prop_assert!(group.rows.end - group.rows.start == 1 || group.elements.end == through);
            }
            prop_assert_eq!(next, removed.iter().sum::<i64>());
        }
    }
}
