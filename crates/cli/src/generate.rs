//! `generate`: a few greedy tokens after a prompt. Uses no service and keeps no cache.

use crate::args::GenerateArgs;
use crate::error::CliError;
use crate::output::{print, print_json, print_line};
use crate::progress;
use model::generate::{End, greedy};
use model::tokens::{TextStream, Tokenizer};
use model::{Decoder, ModelError, ModelFolder, Overlay, device};
use serde::Serialize;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::time::Instant;

/// What the model said.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Generated {
    model: String,
    /// What follows the prompt.
    text: String,
    /// Its tokens.
    ids: Vec<i64>,
    /// Tokens of the prompt, special ones included.
    prompt_tokens: u64,
    /// Whether the model ended its text itself.
    ended: bool,
    seconds: f64,
    tokens_per_second: f64,
}

/// Whether text is shown as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    AsItComes,
    AtTheEnd,
}

/// Generates and prints.
pub(crate) fn run(args: &GenerateArgs) -> Result<(), CliError> {
    let display = progress::start(args.quiet, "warn")?;

    // Everything that can be wrong with the request is found before the weights are read.
    let folder = ModelFolder::open(&args.model)?;
    let tokenizer = Tokenizer::open(&args.model)?;
    let prompt = prompt(args, &tokenizer)?;
    check_length(args, &folder, prompt.len() as u64)?;
    args.machine.threads.into_iter().for_each(device::set_threads);
    let place = args.machine.device.open()?;
    let held = (device::kind(args.dtype), place);
    let decoder = Decoder::open(folder, Overlay::default(), args.machine.weights, held)?;

    let streams = !args.json && io::stdout().is_terminal();
    let show = if streams { Show::AsItComes } else { Show::AtTheEnd };
    let generated = generate(args, &decoder, &tokenizer, &prompt, show)?;
    match (args.json, show) {
        (true, _) => print_json(&generated)?,
        (false, Show::AsItComes) => print_line("")?,
        (false, Show::AtTheEnd) => print_line(&generated.text)?,
    }
    display.line(&figures(&generated));
    Ok(())
}

/// Returns the tokens to go on from.
fn prompt(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<Vec<i64>, CliError> {
    if args.prompt.is_empty() {
        return Err(CliError::Usage("--prompt: there is no text to go on from; give it some".to_owned()));
    }
    let ids = if args.chat { tokenizer.encode_message(&args.prompt)? } else { tokenizer.encode(&args.prompt)? };
    if ids.is_empty() {
        return Err(CliError::Usage("--prompt: the tokenizer makes no token of it; give other text".to_owned()));
    }
    Ok(ids)
}

/// Refuses a prompt and an answer that together are longer than the model was made for.
fn check_length(args: &GenerateArgs, folder: &ModelFolder, prompt: u64) -> Result<(), CliError> {
    let config = folder.config();
    // the last token is never read
    let total = i64::try_from(prompt + args.tokens - 1).unwrap_or(i64::MAX);
    let refuse = |why: String| {
        Err(CliError::Usage(format!(
            "--prompt has {prompt} tokens and --tokens asks for {}: {why}; shorten one of them",
            args.tokens
        )))
    };
    if total > config.max_positions {
        return refuse(format!("the model was made for {} in all", config.max_positions));
    }
    config.check_length(total).or_else(|e| refuse(e.to_string()))
}

fn generate(
    args: &GenerateArgs,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompt: &[i64],
    show: Show,
) -> Result<Generated, CliError> {
    let mut stream = TextStream::after(tokenizer, prompt)?;
    let (mut ids, mut text) = (Vec::new(), String::new());
    let mut fault = None;
    let show_new = |new: Result<String, ModelError>, text: &mut String| -> Result<(), CliError> {
        let new = new?;
        if show == Show::AsItComes && !new.is_empty() {
            print(&new)?;
        }
        text.push_str(&new);
        Ok(())
    };
    let start = Instant::now();
    let end = greedy(decoder, prompt, args.tokens, &mut |id| {
        ids.push(id);
        match show_new(stream.push(id), &mut text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                fault = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(error) = fault {
        return Err(error);
    }
    show_new(stream.finish(), &mut text)?;
    // the end token was computed like the others
    let ended = end == End::Eos;
    let computed = ids.len() as u64 + u64::from(ended);
    Ok(Generated {
        model: args.model.display().to_string(),
        text,
        prompt_tokens: prompt.len() as u64,
        ended,
        seconds,
        tokens_per_second: computed as f64 / seconds.max(f64::MIN_POSITIVE),
        ids,
    })
}

fn figures(generated: &Generated) -> String {
    let why = if generated.ended { "the model ended its text" } else { "as many as asked for" };
    format!(
        "{} tokens after {} ({why}), {:.1} tokens/s without a cache",
        generated.ids.len(),
        generated.prompt_tokens,
        generated.tokens_per_second
    )
}
