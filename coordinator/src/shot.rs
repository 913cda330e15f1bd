//! The algorithm: The LLM Surgeon (arXiv 2312.17244, algorithm 1), one line a stage.
//!
//! Every stage first asks the journal what of it is done, so going on after a kill is this same code. No stage here
//! computes a number from tensors; calibrators and surgeons do that, the coordinator decides.

use crate::error::RunError;
use crate::run::Run;
use crate::stages::{
    allocate, calibrate, clean, commit, correct, evaluate, inherit, iterate, materialise, next_round, open, prepare,
    refine, score, take_back, update,
};
use crate::trace::{self, traced};

/// Prunes a model: the dense baseline, the shots, the smaller model.
pub async fn run_to_the_end(run: &Run) -> Result<(), RunError> {
    traced(run, trace::WHOLE, begin(run)).await?;
    for shot in 1.. {
        traced(run, shot, run_shot(run, shot)).await?;
        if run.history(|h| h.is_last(shot)) {
            break;
        }
    }
    Ok(())
}

/// What comes before the shots.
async fn begin(run: &Run) -> Result<(), RunError> {
    prepare(run).await?; //                       check model, data and target before anything expensive
    inherit(run).await?; //                       the kept shots of another run, if this one begins with them
    evaluate(run, 0).await //                     held-out loss of the dense model
}

/// One shot: curvature, costs, one threshold over the whole model, correlated updates; a smaller model where one is wanted.
pub async fn run_shot(run: &Run, shot: u32) -> Result<(), RunError> {
    open(run, shot).await?; //                    the schedule's size for this shot
    iterate(run, shot).await?; //                 0  Kronecker sums only: the passes of a power iteration but the last
    tokio::try_join!(
        calibrate(run, shot), //                  1  Kronecker factors of the loss's curvature, block by block from the last …
        score(run, shot), //                  2  … and, while earlier blocks are still swept, costs along each layer's path
                          //                     (or after the sweep, where samples that are not finite may be left out)
    )?;
    loop {
        loop {
            refine(run, shot).await?; //          3  single weights only: the costs near the threshold, and …
            allocate(run, shot).await?; //           … one cut over all layers
            update(run, shot).await?; //          4  removal and correlated update of what remains
            if !next_round(run, shot).await? {
                break; //                            single weights only: chosen in rounds, under the same curvature
            }
            score(run, shot).await?;
        }
        commit(run, shot).await?; //              the checkpoint's manifest, written last
        correct(run, shot).await?; //             5  low-rank correction, if asked for
        evaluate(run, shot).await?; //            6  held-out loss
        if !take_back(run, shot).await? {
            break; //                                adaptive schedule: cut less deep if the loss rose too far
        }
    }
    clean(run, shot).await?; //                   what no later shot needs
    materialise(run, shot).await //               7  the smaller model, proved to load: after the last shot, and at sizes on the way
}
