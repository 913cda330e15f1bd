//! Greedy tokens: the argmax of the whole forward pass, up to the end token or the limit.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use common::golden;
use model::generate::{End, greedy};
use model::{Decoder, ModelError, ModelFolder, Overlay};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

fn load(name: &str) -> Decoder {
    let folder = ModelFolder::open(&golden(name)).unwrap();
    Decoder::load(&folder, &Overlay::default(), Kind::Float, Device::Cpu).unwrap()
}

fn run(decoder: &Decoder, prompt: &[i64], limit: u64) -> (Vec<i64>, End) {
    let mut ids = Vec::new();
    let end = greedy(decoder, prompt, limit, &mut |id| {
        ids.push(id);
        ControlFlow::Continue(())
    });
    (ids, end.unwrap())
}

#[test]
fn every_token_is_the_argmax_of_the_forward_pass() {
    for name in ["llama-gqa", "opt"] {
        let mut decoder = load(name);
        decoder.config.eos.clear();
        let (found, end) = run(&decoder, &[5, 9, 13], 6);
        assert_eq!((found.len(), end), (6, End::Limit));
        let all = [&[5, 9, 13], found.as_slice()].concat();
        let logits = decoder.forward_logits(&Tensor::from_slice(&all).unsqueeze(0)).unwrap();
        let likely = Vec::<i64>::try_from(logits.argmax(-1, false).squeeze_dim(0)).unwrap();
        assert_eq!(found, likely[2..8], "{name}");
    }
}

#[test]
fn an_end_token_ends_and_is_not_given() {
    let mut decoder = load("llama-gqa");
    decoder.config.eos.clear();
    let (all, _) = run(&decoder, &[5, 9, 13], 6);
    let at = all.iter().position(|id| *id != all[0]).unwrap();
    decoder.config.eos = vec![-1, all[at]];
    assert_eq!(run(&decoder, &[5, 9, 13], 6), (all[..at].to_vec(), End::Eos));
}

#[test]
fn the_caller_may_stop_and_nothing_is_made_of_nothing() {
    let mut decoder = load("llama-gqa");
    decoder.config.eos.clear();
    let mut seen = 0;
    let end = greedy(&decoder, &[5], 9, &mut |_| {
        seen += 1;
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((end.unwrap(), seen), (End::Stopped, 2));
    let on = &mut |_| ControlFlow::Continue(());
    assert!(matches!(greedy(&decoder, &[], 9, on), Err(ModelError::Shape { .. })));
    decoder.head *= f64::NAN;
    assert!(matches!(greedy(&decoder, &[5], 9, on), Err(ModelError::NotFinite { .. })));
}
