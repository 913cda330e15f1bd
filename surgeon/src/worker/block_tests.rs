//! Laying a block's factors out from what is in the store.

use super::*;
use crate::bench::merged;
use model::tensor_file;
use service::ComputeThread;
use std::collections::BTreeMap;
use tch::{Device, Tensor};

const SHARDS: u32 = 3;

fn shot() -> (RunId, u32) {
    (RunId::new("r").unwrap(), 1)
}

fn block() -> Block {
    Block { quarantined: Vec::new(), number: 6, checkpoint: None, shards: SHARDS, round: 0 }
}

fn of(pass: u32) -> BlockPass {
    BlockPass { run: shot().0, shot: shot().1, pass, shards: SHARDS, block: block().number }
}

/// Factors of one shard of all passes.
fn file(shard: u32) -> Bytes {
    let scale = [1.0, 1e4, 1e-3][shard as usize % 3];
    let values: Vec<f32> = (0..45_u32).map(|n| ((n * 37 + shard * 101) % 97) as f32 / 7.0 * scale).collect();
    let metadata = BTreeMap::from([("tokens".to_owned(), "40".to_owned())]);
    Bytes::from(tensor_file::encode(&[("A:down".to_owned(), Tensor::from_slice(&values))], &metadata).unwrap())
}

/// The sum of the first shards of a pass.
fn sum(pass: u32, shards: u32) -> Bytes {
    let first = pass * SHARDS;
    let rest = first + 1..first + shards;
    rest.fold(file(first), |sum, shard| merged(vec![sum], vec![file(shard)], &|| ()).unwrap())
}

fn blocks() -> Blocks {
    let compute = ComputeThread::spawn("surgeon-test", 4).unwrap();
    let bench = Arc::new(Mutex::new(Bench::new(Device::Cpu)));
    Blocks { compute, bench, turn: Arc::default(), store: Store::memory() }
}

impl Blocks {
    /// Stores a pass of which the first shards are merged.
    async fn put_pass(&self, pass: u32, shards: u32) {
        if shards > 0 {
            let (run, shot) = shot();
            let key = keys::merged(&run, shot, pass, block().number, shards);
            self.store.put(&key, sum(pass, shards)).await.unwrap();
        }
        for number in 0..SHARDS {
            let own = if number < shards { Bytes::new() } else { file(pass * SHARDS + number) };
            self.store.put(&of(pass).own_key(number), own).await.unwrap();
        }
    }

    async fn laid_out(&self, passes: u32) -> Result<Vec<Bytes>, Error> {
        self.lay_out(&shot(), (&block(), passes - 1), &CancellationToken::new()).await?;
        self.on_bench(move |bench| Ok((0..passes as usize).map(|pass| bench.packed(pass)).collect())).await
    }
}

#[tokio::test]
async fn however_many_shards_are_merged_the_same_bits_are_laid_out() {
    let expected = vec![sum(0, SHARDS), sum(1, SHARDS)];
    for count in 0..=SHARDS {
        let surgeon = blocks();
        surgeon.put_pass(0, SHARDS - count).await;
        surgeon.put_pass(1, count).await;
        assert!(surgeon.laid_out(2).await.unwrap() == expected, "{count} shards merged");
    }
}

#[tokio::test]
async fn of_several_sums_the_longest_counts() {
    let surgeon = blocks();
    surgeon.put_pass(0, 2).await;
    let (run, shot) = shot();
    surgeon.store.put(&keys::merged(&run, shot, 0, block().number, 1), file(0)).await.unwrap();
    assert!(surgeon.laid_out(1).await.unwrap() == [sum(0, SHARDS)]);
}

#[tokio::test]
async fn a_shard_that_was_merged_into_nothing_is_named() {
    let surgeon = blocks();
    surgeon.put_pass(0, 1).await;
    let lost = of(0).own_key(2);
    surgeon.store.put(&lost, Bytes::new()).await.unwrap();
    let error = surgeon.laid_out(1).await.unwrap_err();
    assert!(matches!(&error, Error::Damaged { key, .. } if *key == lost), "{error}");
    surgeon.store.delete(&lost).await.unwrap();
    let error = surgeon.laid_out(1).await.unwrap_err();
    assert!(matches!(error, Error::FactorsGone { shard: 2, .. }), "{error}");
}
