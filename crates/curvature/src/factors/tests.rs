#![allow(clippy::float_cmp, reason = "equal to the last bit is the claim")]

use super::*;
use proptest::prelude::*;
use testkit::{devices, max_difference, random};

fn gram(x_nc: &Tensor) -> Tensor {
    x_nc.tr().matmul(x_nc)
}

#[test]
fn panels_give_the_full_product() {
    for device in devices() {
        for c in [1, 5, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 37] {
            let x = random(&[40, c], 5).to_device(device);
            let mut factors = BlockFactors::new();
            factors.accumulate(Side::Input, "fc2", &x).unwrap();
            factors.accumulate(Side::Input, "fc2", &x.narrow(0, 0, 7)).unwrap();
            factors.add_tokens(47);
            let expected = (gram(&x) + gram(&x.narrow(0, 0, 7))) / 47.0;
            let found = factors.finish(Side::Input, "fc2").unwrap();
            assert!(max_difference(&found, &expected) < 1e-12, "c = {c}");
            assert_eq!(max_difference(&found, &found.tr()), 0.0);
        }
    }
}

#[test]
fn packing_keeps_every_bit_of_f32_in_the_documented_order() {
    let mut factors = BlockFactors::new();
    factors.accumulate(Side::Gradient, "o_proj", &random(&[9, 4], 1).to_kind(Kind::Float)).unwrap();
    factors.accumulate(Side::Input, "o_proj", &random(&[9, 3], 2).to_kind(Kind::Float)).unwrap();
    factors.accumulate(Side::Input, "down_proj", &random(&[9, 5], 3).to_kind(Kind::Float)).unwrap();
    factors.add_tokens(9);
    let packed = factors.pack().unwrap();
    let keys: Vec<_> = packed.iter().map(|(key, values)| (key.as_str(), values.size()[0])).collect();
    assert_eq!(keys, [("A:down_proj", 15), ("A:o_proj", 6), ("G:o_proj", 10)]);
    let a = factors.finish(Side::Input, "o_proj").unwrap() * 9.0;
    let by_rows: Vec<f64> =
        [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)].iter().map(|&(i, j)| a.double_value(&[i, j])).collect();
    let difference = max_difference(&packed[1].1, &Tensor::from_slice(&by_rows));
    assert!(difference < 1e-5, "{difference}");
    for device in devices() {
        let copies = packed.iter().map(|(key, values)| (key.clone(), values.copy())).collect();
        let read = BlockFactors::unpack(9, copies, device).unwrap();
        for (side, layer) in [(Side::Input, "down_proj"), (Side::Input, "o_proj"), (Side::Gradient, "o_proj")] {
            let difference = max_difference(&read.finish(side, layer).unwrap(), &factors.finish(side, layer).unwrap());
            assert_eq!(difference, 0.0, "{layer}");
        }
    }
}

#[test]
fn packed_nonsense_is_refused() {
    let values = |n: i64| Tensor::zeros([n], (Kind::Float, Device::Cpu));
    for (key, n) in [("A:x", 4), ("A:x", 0), ("B:x", 6), ("x", 6)] {
        let read = BlockFactors::unpack(1, vec![(key.to_owned(), values(n))], Device::Cpu);
        assert!(matches!(read, Err(CurvatureError::Packed { .. })), "{key} {n}");
    }
}

#[test]
fn packed_sums_merge_to_the_bits_that_unpacked_ones_do() {
    let shard = |seed: u64| {
        let (x, g) = (random(&[9, 5], seed).to_kind(Kind::Float), random(&[9, 3], seed + 1).to_kind(Kind::Float));
        let mut factors = BlockFactors::new();
        factors.accumulate(Side::Input, "down", &x).unwrap();
        factors.accumulate(Side::Gradient, "down", &g).unwrap();
        factors.accumulate_diagonal("down", &x, &g).unwrap();
        factors.pack().unwrap()
    };
    let (mut packed, mut unpacked) = (shard(1), BlockFactors::unpack(9, shard(1), Device::Cpu).unwrap());
    for seed in [3, 5, 7] {
        merge_packed(&mut packed, shard(seed), &|| ()).unwrap();
        unpacked.merge(&BlockFactors::unpack(9, shard(seed), Device::Cpu).unwrap()).unwrap();
    }
    let expected = unpacked.pack().unwrap();
    assert_eq!(packed.len(), 3);
    for ((name, found), (expected_name, expected)) in packed.iter().zip(&expected) {
        assert!(name == expected_name && found.equal(expected), "{name}");
    }
}

#[test]
fn packed_sums_take_what_only_one_has_and_refuse_what_does_not_fit() {
    let values = |n: i64| Tensor::ones([n], (Kind::Float, Device::Cpu));
    let one = |key: &str, n| vec![(key.to_owned(), values(n))];
    let mut sums = one("A:x", 3);
    merge_packed(&mut sums, one("G:x", 6), &|| ()).unwrap();
    assert_eq!(sums.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["A:x", "G:x"]);
    let wider = merge_packed(&mut sums, one("G:x", 10), &|| ()).unwrap_err().to_string();
    assert!(wider.contains("G of x") && wider.contains("[3, 3], got [4, 4]"), "{wider}");
    for (key, n) in [("A:x", 4), ("B:x", 6), ("x", 6), ("D:x", 6)] {
        assert!(
            matches!(merge_packed(&mut sums, one(key, n), &|| ()), Err(CurvatureError::Packed { .. })),
            "{key} {n}"
        );
        assert!(matches!(merge_packed(&mut one(key, n), Vec::new(), &|| ()), Err(CurvatureError::Packed { .. })));
    }
    let matrix = |c: i64| vec![("D:x".to_owned(), values(2 * c).view([2, c]))];
    let diagonal = merge_packed(&mut matrix(3), matrix(1), &|| ()).unwrap_err();
    assert!(matches!(diagonal, CurvatureError::Shape { .. }), "a row is not spread over others: {diagonal}");
}

#[test]
fn faults_name_side_and_layer() {
    let mut factors = BlockFactors::new();
    let x = random(&[3, 2], 1);
    factors.accumulate(Side::Input, "layers.4.fc2", &x).unwrap();
    let text = |error: CurvatureError| error.to_string();
    assert!(text(factors.finish(Side::Input, "layers.4.fc2").unwrap_err()).contains("A of layers.4.fc2"), "no tokens");
    assert!(text(factors.finish(Side::Gradient, "layers.4.fc2").unwrap_err()).contains("G of layers.4.fc2"), "unknown");
    let wider = factors.accumulate(Side::Input, "layers.4.fc2", &random(&[3, 4], 1)).unwrap_err();
    assert!(text(wider).contains("[-1, 2], got [3, 4]"));
    factors.add_tokens(3);
    let bad = Tensor::from_slice(&[1.0, f64::INFINITY]).view([1, 2]);
    factors.accumulate(Side::Input, "layers.4.fc2", &bad).unwrap();
    for error in [factors.finish(Side::Input, "layers.4.fc2").unwrap_err(), factors.pack().unwrap_err()] {
        assert!(matches!(&error, CurvatureError::NotFinite { name } if name == "A of layers.4.fc2"), "{error}");
    }
}

#[test]
fn half_precision_is_summed_in_f32() {
    let x = random(&[6, 3], 8).to_kind(Kind::BFloat16);
    let mut factors = BlockFactors::new();
    factors.accumulate(Side::Input, "q_proj", &x).unwrap();
    factors.add_tokens(6);
    let found = factors.finish(Side::Input, "q_proj").unwrap();
    assert_eq!(found.kind(), Kind::Float);
    assert!(max_difference(&found, &(gram(&x.to_kind(Kind::Double)) / 6.0)) < 1e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn merging_any_split_equals_one_pass(seed in 0_u64..1000, n in 2_i64..40, c in 1_i64..12, cuts in prop::collection::vec(0.0_f64..1.0, 0..4)) {
        let x = random(&[n, c], seed);
        let mut whole = BlockFactors::new();
        whole.accumulate(Side::Gradient, "l", &x).unwrap();
        whole.add_tokens(n as u64);
        let mut edges: Vec<i64> = cuts.iter().map(|f| (f * n as f64) as i64).chain([0, n]).collect();
        edges.sort_unstable();
        let mut merged = BlockFactors::new();
        for pair in edges.windows(2) {
            let mut part = BlockFactors::new();
            part.accumulate(Side::Gradient, "l", &x.narrow(0, pair[0], pair[1] - pair[0])).unwrap();
            part.add_tokens((pair[1] - pair[0]) as u64);
            merged.merge(&part).unwrap();
        }
        prop_assert_eq!(merged.tokens, n as u64);
        let difference = max_difference(&merged.finish(Side::Gradient, "l").unwrap(), &whole.finish(Side::Gradient, "l").unwrap());
        prop_assert!(difference < 1e-12, "{difference}");
    }
}

#[test]
fn decay_keeps_means_and_makes_later_tokens_count_for_more() {
    let x = |seed| random(&[6, 3], seed);
    let of = |x_nc: &Tensor| {
        let mut factors = BlockFactors::new();
        factors.accumulate(Side::Input, "l", x_nc).unwrap();
        factors.add_tokens(6);
        factors
    };
    let mean = |factors: &BlockFactors| factors.finish(Side::Input, "l").unwrap();
    let (mut past, now) = (of(&x(1)), of(&x(2)));
    let (before, fresh) = (mean(&past), mean(&now));
    past.decay(0.5).unwrap();
    assert_eq!(past.tokens, 3);
    assert!(max_difference(&mean(&past), &before) < 1e-12);
    past.merge(&now).unwrap();
    assert!(max_difference(&mean(&past), &((before * 3 + fresh * 6) / 9)) < 1e-12);
    past.decay(0.0).unwrap();
    assert_eq!(past.tokens, 0);
}

#[test]
fn inputs_that_are_left_keep_their_second_moments() {
    let mut factors = BlockFactors::new();
    factors.accumulate(Side::Input, "l", &random(&[6, 5], 3)).unwrap();
    factors.add_tokens(6);
    let kept = Tensor::from_slice(&[0_i64, 3, 4]);
    let expected = factors.finish(Side::Input, "l").unwrap().index_select(0, &kept).index_select(1, &kept);
    factors.keep_inputs("l", &[0, 3, 4]).unwrap();
    assert!(max_difference(&factors.finish(Side::Input, "l").unwrap(), &expected) < 1e-15);
    factors.keep_inputs("another", &[9]).unwrap();
    assert!(matches!(factors.keep_inputs("l", &[3]), Err(CurvatureError::Shape { .. })));
}

#[test]
fn the_diagonal_is_that_of_the_dense_fisher() {
    let (x_nc, g_nr) = (random(&[12, 4], 1), random(&[12, 3], 2));
    // vec(g xᵀ) by rows, one a token: F = (1/N) Σ v vᵀ.
    let v_np = (g_nr.unsqueeze(2) * x_nc.unsqueeze(1)).view([12, 12]);
    let expected_rc = (gram(&v_np) / 12.0).diagonal(0, 0, 1).view([3, 4]);
    let part = |from: i64, tokens: i64| {
        let mut factors = BlockFactors::new();
        let (x, g) = (x_nc.narrow(0, from, tokens), g_nr.narrow(0, from, tokens));
        factors.accumulate_diagonal("l", &x, &g).unwrap();
        factors.add_tokens(tokens as u64);
        factors
    };
    let mut factors = part(0, 5);
    factors.merge(&part(5, 7)).unwrap();
    assert!(max_difference(&factors.finish_diagonal("l").unwrap(), &expected_rc) < 1e-12);
    factors.decay(0.5).unwrap();
    assert!(max_difference(&factors.finish_diagonal("l").unwrap(), &expected_rc) < 1e-12);
    let packed = factors.pack().unwrap();
    assert_eq!(packed[0].0, "D:l");
    let mut read = BlockFactors::unpack(6, packed, Device::Cpu).unwrap();
    read.keep_inputs("l", &[0, 3]).unwrap();
    let kept = expected_rc.index_select(1, &Tensor::from_slice(&[0_i64, 3]));
    assert!(max_difference(&read.finish_diagonal("l").unwrap(), &kept) < 1e-6);
    assert!(read.keep_inputs("l", &[2]).is_err());
    assert!(matches!(read.accumulate_diagonal("l", &x_nc, &g_nr), Err(CurvatureError::Shape { .. })));
    read.forget("l");
    assert!(matches!(read.finish_diagonal("l"), Err(CurvatureError::Unknown { .. })));
}
