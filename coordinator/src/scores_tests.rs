//! What can be of a block, and what cannot.

use super::*;
use proptest::prelude::*;
use types::{FactorDamping, LayerDescription, Pattern, Sizes, Target, Unit};

const ROWS: u64 = 4;
const COLUMNS: u64 = 6;
const CHANNELS: u32 = 6;
const FREED: u64 = 12;

fn layer(name: &str) -> LayerId {
    LayerId::new(name).unwrap()
}

fn block() -> BlockDescription {
    let described = |name: &str, curvature| LayerDescription {
        layer: layer(name),
        rows: ROWS,
        columns: COLUMNS,
        bias: true,
        input: layer(name),
        curvature,
    };
    let group = |name: &str, kind, units, together| UnitGroup {
        layer: layer(name),
        kind,
        units,
        together,
        min_keep: 1,
        columns_per_unit: 1,
        freed_per_unit: Sizes { prunable: FREED, parameters: FREED, bytes: 4 * FREED },
    };
    BlockDescription {
        block: 0,
        layers: vec![described("q", false), described("o", true), described("down", true)],
        groups: vec![group("o", UnitKind::QueryHead, 2, 2), group("down", UnitKind::FfnChannel, CHANNELS, 1)],
    }
}

fn due(structure: Structure) -> Due {
    Due::of(&block(), structure, |_| None)
}

fn step(kind: UnitKind, index: u32, freed: u64) -> PathStep {
    PathStep { unit: Unit { kind, index }, cost: 0.5, freed }
}

fn path(name: &str, steps: Vec<PathStep>) -> RemovalPath {
    RemovalPath { layer: layer(name), steps, damping: FactorDamping::default() }
}

fn heads(heads: &[u32]) -> RemovalPath {
    path("o", heads.iter().map(|head| step(UnitKind::QueryHead, *head, FREED)).collect())
}

fn channels(channels: &[u32]) -> RemovalPath {
    path("down", channels.iter().map(|channel| step(UnitKind::FfnChannel, *channel, FREED)).collect())
}

fn lines(name: &str, steps: &[(UnitKind, u32, u64)]) -> RemovalPath {
    path(name, steps.iter().map(|(kind, index, freed)| step(*kind, *index, *freed)).collect())
}

#[track_caller]
fn refused(due: &Due, paths: &[RemovalPath], words: &str) {
    let refused = due.check(paths).unwrap_err().to_string();
    assert!(refused.contains(words), "{refused}");
}

#[test]
fn paths_of_units_are_of_what_is_there_each_once() {
    let due = due(Structure::Coupled);
    assert_eq!(due.check(&[heads(&[2, 0]), channels(&[5, 0, 1])]), Ok(()));
    assert_eq!(due.check(&[heads(&[]), channels(&[])]), Ok(()));
    refused(&due, &[heads(&[2]), channels(&[5, 5])], "path.steps[1]: of down: ffn-channel 5 is not there, or goes");
    refused(&due, &[heads(&[2]), channels(&[CHANNELS])], "is not there");
    refused(&due, &[heads(&[2]), channels(&[0, 1, 2, 3, 4, 5])], "path.steps[5]: of down: 5 may go");
    refused(&due, &[heads(&[0, 1, 2]), channels(&[])], "2 may go");
    let dear = path("down", vec![step(UnitKind::FfnChannel, 0, FREED + 1)]);
    refused(&due, &[heads(&[]), dear], "it frees 12 weights, not 13");
    let foreign = path("down", vec![step(UnitKind::KvGroup, 0, FREED)]);
    refused(&due, &[heads(&[]), foreign], "kv-group 0 is not there");
}

#[test]
fn each_layer_has_one_path_in_the_order_of_the_model() {
    let due = due(Structure::Coupled);
    let words = "paths are due of o, down, in this order";
    refused(&due, &[channels(&[])], words);
    refused(&due, &[heads(&[])], words);
    refused(&due, &[channels(&[]), heads(&[])], words);
    refused(&due, &[heads(&[]), channels(&[]), channels(&[])], words);
    refused(&due, &[heads(&[]), path("elsewhere", vec![])], words);
}

#[test]
fn units_that_went_in_an_earlier_shot_do_not_go_again() {
    let cut = |kept: &[u32]| LayerState {
        layer: layer("down"),
        kind: UnitKind::FfnChannel,
        kept: kept.to_vec(),
        kept_rows: vec![],
        zeros: 0,
        weights: None,
    };
    let of = |state: &LayerState| Due::of(&block(), Structure::Coupled, |l| (*l == state.layer).then_some(state));
    let some = of(&cut(&[1, 4]));
    assert_eq!(some.check(&[heads(&[]), channels(&[4])]), Ok(()));
    refused(&some, &[heads(&[]), channels(&[0])], "is not there");
    let none = of(&cut(&[]));
    assert_eq!(none.check(&[heads(&[])]), Ok(()), "what is gone altogether has no path");
    let corrected = LayerState { kind: UnitKind::Whole, ..cut(&[]) };
    assert_eq!(of(&corrected), due(Structure::Coupled), "new weights are no removal");
}

#[test]
fn a_row_frees_a_weight_in_each_column_that_is_left_and_the_last_ones_stay() {
    use UnitKind::{Column, Row};
    let due = due(Structure::RowColumn);
    let rest = lines("down", &[]);
    let of = |steps: &[(UnitKind, u32, u64)]| [lines("o", steps), rest.clone()];
    assert_eq!(due.check(&of(&[(Row, 0, 6), (Column, 5, 3), (Row, 1, 5)])), Ok(()));
    refused(&due, &of(&[(Row, 0, 6), (Column, 5, 4)]), "it frees 3 weights, not 4");
    refused(&due, &of(&[(Row, 0, 6), (Row, 0, 6)]), "goes a second time");
    refused(&due, &of(&[(Row, 0, 6), (Row, 1, 6), (Row, 2, 6), (Row, 3, 6)]), "row 3 is not there");
    refused(&due, &of(&[(UnitKind::FfnChannel, 0, 6)]), "is not there");
}

fn coming(layers: u32, steps: u64) -> Coming {
    Coming::begin(&due(Structure::Coupled), (layers, steps)).unwrap()
}

#[test]
fn more_than_the_model_has_is_not_even_taken_in() {
    let begin = |layers, steps| Coming::begin(&due(Structure::Coupled), (layers, steps));
    assert!(begin(2, 7).is_ok());
    assert!(begin(3, 7).is_err() && begin(2, 8).is_err());
    let mut few = coming(2, 1);
    assert!(few.add(channels(&[0, 1]).into()).is_err(), "more steps than were announced");
    let mut one = coming(1, 4);
    one.add(heads(&[0]).into()).unwrap();
    assert!(one.add(channels(&[0]).into()).is_err(), "more layers than were announced");
}

#[test]
fn a_path_goes_on_where_the_last_message_ended_and_half_a_report_is_none() {
    let more = |path: RemovalPath| v1::LayerPath { damping: None, ..path.into() };
    let after_three = || {
        let mut coming = coming(2, 4);
        coming.add(heads(&[0]).into()).unwrap();
        coming.add(more(heads(&[2]))).unwrap();
        coming.add(channels(&[1]).into()).unwrap();
        coming
    };
    assert!(after_three().add(channels(&[2]).into()).is_err(), "it begins a second time");
    assert!(after_three().add(more(channels(&[]))).is_err(), "it goes on with nothing");
    let mut whole = after_three();
    whole.add(more(channels(&[2]))).unwrap();
    assert_eq!(whole.finish(), Ok(vec![heads(&[0, 2]), channels(&[1, 2])]));
    assert!(coming(2, 4).add(more(heads(&[0]))).is_err(), "it begins without its damping");
    let mut half = coming(2, 4);
    half.add(heads(&[0, 2]).into()).unwrap();
    let short = half.finish().unwrap_err().to_string();
    assert!(short.contains("1 of 2 layers and 2 of 4 steps came"), "{short}");
}

#[test]
fn histograms_count_every_item_once() {
    let spec = RunSpec::new("m", "d", "o", Target::Size(0.5));
    let all = items(&block(), &spec);
    assert_eq!(all, [(layer("o"), 24), (layer("down"), 24)]);
    let windows = RunSpec { pattern: Some(Pattern::new(2, 4).unwrap()), ..spec };
    assert_eq!(items(&block(), &windows), [(layer("o"), 4), (layer("down"), 4)], "columns after the last window stay");

    let histogram = |name: &str, bins: &[(u16, u64)]| CostHistogram {
        layer: layer(name),
        bins: bins.to_vec(),
        damping: FactorDamping::default(),
    };
    let first = [histogram("o", &[(3, 20), (9, 4)]), histogram("down", &[(3, 24)])];
    assert_eq!(check_histograms(&all, &first), Ok(()));
    for bad in [
        vec![first[0].clone()],
        vec![first[1].clone(), first[0].clone()],
        vec![first[0].clone(), histogram("down", &[(3, 23)])],
        vec![first[0].clone(), histogram("down", &[(3, u64::MAX), (4, 25)])],
    ] {
        assert!(check_histograms(&all, &bad).is_err(), "{bad:?}");
    }
    let second = items_with(&first, 9);
    assert_eq!(check_histograms(&second, &[histogram("o", &[(7, 4)]), histogram("down", &[])]), Ok(()));
    assert!(check_histograms(&second, &[histogram("o", &[(7, 5)]), histogram("down", &[])]).is_err());
}

proptest! {
    #[test]
    fn any_order_of_different_units_is_a_path_and_a_repetition_never_is(
        order in Just((0..CHANNELS).collect::<Vec<_>>()).prop_shuffle(),
        length in 1..CHANNELS as usize,
        again in any::<prop::sample::Index>(),
    ) {
        let due = due(Structure::Coupled);
        let mut path = order[..length].to_vec();
        prop_assert_eq!(due.check(&[heads(&[]), channels(&path)]), Ok(()));
        path[length - 1] = if length == 1 { CHANNELS } else { path[again.index(length - 1)] };
        prop_assert!(due.check(&[heads(&[]), channels(&path)]).is_err());
    }
}
