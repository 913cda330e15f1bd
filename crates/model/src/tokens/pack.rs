//! Documents to sequences of equal length: a seeded choice for calibration, a fixed protocol for evaluation.
//! Does not read files.

use super::{Document, Documents, TextForm, Tokenizer};
use crate::ModelError;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use types::DataDescription;

/// Tokens looked at for each token asked for: the choice is spread over that much text, and no more is tokenised.
const SPREAD: u64 = 4;
/// Samples that a piece of a long document is about as long as. As a stretch is twice as long, no two samples come from
/// one piece: few samples should still show much of the data's variety.
const PIECE: u64 = 2;
/// A text's usual length per token, in bytes; only sets how much is tokenised in one go.
const BYTES_PER_TOKEN: u64 = 4;
/// Bytes of evaluation text above which its tokenisation needs gigabytes.
const LARGE_TEXT: usize = 32 << 20;

/// How calibration samples are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Tokens of a sample.
    pub seq_len: u64,
    /// Samples of a set: what one shot sees.
    pub samples: u64,
    /// Sets wanted, none with a sample of another: at least 1.
    pub sets: u32,
    /// Fixes the choice.
    pub seed: u64,
}

/// Calibration samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// Token ids, (sets · `samples`) × `seq_len`, set after set.
    pub ids: Vec<Vec<i64>>,
    /// Where they come from. `tokens` counts the tokens that were tokenised to choose from, which is less than there
    /// are when the data is larger than the choice needs.
    pub description: DataDescription,
}

/// Evaluation segments.
#[derive(Debug, Clone, PartialEq)]
pub struct Segments {
    /// Token ids, segments × `seq_len`.
    pub ids: Vec<Vec<i64>>,
    /// Segments there are in the data: ⌊N / `seq_len`⌋.
    pub in_data: u64,
    /// Where they come from. `tokens` is N, all tokens of the data; `samples` the segments taken.
    pub description: DataDescription,
}

/// Returns sets of `samples` sequences of `seq_len` tokens, chosen by the seed, each set spread over the data.
///
/// Documents (long ones in pieces of about two samples) are shuffled, tokenised in that order until there are four
/// times the tokens of one set, and enough for all sets, or no more text, and put one after the other with nothing in
/// between but what the tokenizer's post-processor adds to a document (BOS, for a tokenizer that has one; conversations
/// hold theirs). The sequence is cut into windows, and one window drawn from each of sets · `samples` equal stretches of
/// it; the sets take the stretches in turn. Less text gives fewer sets.
///
/// # Errors
/// Less text than one set needs.
pub fn pack_samples(documents: &Documents, tokenizer: &Tokenizer, draw: Draw) -> Result<Samples, ModelError> {
    let Draw { seq_len, samples, sets, seed } = draw;
    checked(seq_len)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let needed = samples.saturating_mul(seq_len);
    let mut pieces = pieces(&documents.documents, seq_len);
    pieces.shuffle(&mut rng);
    let tokens = tokenise(&pieces, tokenizer, needed.saturating_mul(SPREAD.max(sets.into())))?;
    let found = tokens.len() as u64;
    if found < needed {
        let remedy = format!(
            "add text, or ask for fewer or shorter samples (--samples {} would do at this --seq-len)",
            found / seq_len
        );
        return Err(ModelError::TooLittleText { found, needed, remedy });
    }
    let windows = found / seq_len;
    let sets = u64::from(sets).clamp(1, windows / samples);
    let stretches = sets * samples;
    let drawn = (0..stretches)
        .map(|i| rng.random_range(share(i, windows, stretches)..share(i + 1, windows, stretches)))
        .collect::<Vec<_>>();
    let ids = (0..sets)
        .flat_map(|set| drawn.iter().skip(set as usize).step_by(sets as usize))
        .map(|&number| window(&tokens, number, seq_len))
        .collect();
    Ok(Samples {
        ids,
        description: DataDescription { sets: sets as u32, ..describe(documents, tokenizer, found, samples, seq_len) },
    })
}

/// Returns the segments that perplexity is measured on.
///
/// The protocol: documents joined by an empty line, tokenised once (so at most one BOS, at the very start), cut into
/// ⌊N / `seq_len`⌋ segments that do not overlap. With a `limit` above 0 that many evenly spaced ones are returned:
/// number ⌊i · n / limit⌋ for each i.
///
/// All of the text is tokenised as one, whatever the limit: time is linear in its length, memory about 150 bytes for
/// each byte of it.
///
/// # Errors
/// Less text than one segment.
pub fn segments(
    documents: &Documents,
    tokenizer: &Tokenizer,
    seq_len: u64,
    limit: u64,
) -> Result<Segments, ModelError> {
    checked(seq_len)?;
    let texts: Vec<_> = documents.documents.iter().map(|d| d.text.as_str()).collect();
    let text = texts.join("\n\n");
    if text.len() > LARGE_TEXT {
        tracing::warn!(bytes = text.len(), "large evaluation text: tokenising it as one takes much memory");
    }
    let tokens = match documents.documents.first().map(|d| d.form) {
        Some(TextForm::Chat) => tokenizer.encode_inner(&text)?,
        Some(TextForm::Plain) | None => tokenizer.encode(&text)?,
    };
    let found = tokens.len() as u64;
    let in_data = found / seq_len;
    if in_data == 0 {
        let remedy = "add text, or ask for shorter sequences (--seq-len)".to_owned();
        return Err(ModelError::TooLittleText { found, needed: seq_len, remedy });
    }
    let taken = if limit == 0 { in_data } else { limit.min(in_data) };
    let ids = (0..taken).map(|i| window(&tokens, share(i, in_data, taken), seq_len)).collect();
    Ok(Segments { ids, in_data, description: describe(documents, tokenizer, found, taken, seq_len) })
}

/// A stretch of a document that is tokenised on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece<'a> {
    text: &'a str,
    /// Whether special tokens belong before it.
    opens: bool,
    /// Whether special tokens belong after it.
    closes: bool,
}

/// Returns every document in pieces, so that no single file is the whole choice.
fn pieces(documents: &[Document], seq_len: u64) -> Vec<Piece<'_>> {
    let longest = (PIECE * BYTES_PER_TOKEN).saturating_mul(seq_len).max(1 << 10) as usize;
    let mut pieces = Vec::with_capacity(documents.len());
    for document in documents {
        let special = document.form == TextForm::Plain;
        let mut rest = document.text.as_str();
        let mut first = true;
        while !rest.is_empty() {
            let (text, after) = rest.split_at(cut(rest, longest));
            pieces.push(Piece { text, opens: special && first, closes: special && after.is_empty() });
            first = false;
            rest = after;
        }
    }
    pieces
}

/// Returns where the first piece of a text ends: after a line, or else before a blank, at most `longest` bytes in.
fn cut(text: &str, longest: usize) -> usize {
    if text.len() <= longest {
        return text.len();
    }
    let end = text.floor_char_boundary(longest);
    let line = text[..end].rfind('\n').map(|at| at + 1);
    let blank = text[..end].rfind(' ');
    line.filter(|&at| at > end / 2).or(blank.filter(|&at| at > end / 2)).unwrap_or(end)
}

/// Returns the tokens of the first pieces: at least `wanted`, or all there are.
fn tokenise(pieces: &[Piece<'_>], tokenizer: &Tokenizer, wanted: u64) -> Result<Vec<i64>, ModelError> {
    let mut tokens = Vec::new();
    let mut rest = pieces;
    while !rest.is_empty() && (tokens.len() as u64) < wanted {
        let missing = wanted - tokens.len() as u64;
        let bytes = missing.saturating_mul(BYTES_PER_TOKEN).clamp(64 << 10, 8 << 20);
        let (batch, after) = rest.split_at(batch(rest, bytes as usize));
        let encoded = tokenizer.encode_many(batch.iter().map(|p| p.text).collect())?;
        for (piece, ids) in batch.iter().zip(encoded) {
            if piece.opens {
                tokens.extend(tokenizer.prefix());
            }
            tokens.extend(ids);
            if piece.closes {
                tokens.extend(tokenizer.suffix());
            }
        }
        rest = after;
    }
    Ok(tokens)
}

/// Returns how many pieces, at least one, make up `bytes`.
fn batch(pieces: &[Piece<'_>], bytes: usize) -> usize {
    let mut sum = 0;
    pieces
        .iter()
        .position(|p| {
            sum += p.text.len();
            sum >= bytes
        })
        .map_or(pieces.len(), |last| last + 1)
}

/// Returns ⌊i · all / parts⌋.
fn share(i: u64, all: u64, parts: u64) -> u64 {
    (u128::from(i) * u128::from(all) / u128::from(parts)) as u64
}

fn window(tokens: &[i64], number: u64, seq_len: u64) -> Vec<i64> {
    let start = (number * seq_len) as usize;
    tokens[start..start + seq_len as usize].to_vec()
}

fn checked(seq_len: u64) -> Result<(), ModelError> {
    if seq_len < 2 {
        let expected = "at least 2 tokens".to_owned();
        return Err(ModelError::Shape { what: "seq_len", expected, found: vec![seq_len as i64] });
    }
    Ok(())
}

fn describe(documents: &Documents, tokenizer: &Tokenizer, tokens: u64, samples: u64, seq_len: u64) -> DataDescription {
    DataDescription {
        digest: documents.digest.clone(),
        tokenizer_digest: tokenizer.digest().to_owned(),
        documents: documents.documents.len() as u64,
        skipped: documents.skipped,
        tokens,
        samples,
        sets: 1,
        seq_len,
        overlap: 0,
        bos: tokenizer.bos(),
    }
}
