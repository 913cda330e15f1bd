//! Conversations written out as the model was trained to see them: Jinja chat templates.
//!
//! Follows transformers' `apply_chat_template`, but gives templates no clock: one that
//! would print today's date prints its fixed one, so that the same data gives the same tokens on any day.

use super::json::{json_file, text_file, token};
use crate::ModelError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

const NAME: &str = "chat_template";
const SPECIAL_TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// What follows the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing: the conversation is over.
    Over,
    /// What the model sees before it answers.
    Answer,
}

/// A model folder's chat template with the special tokens it may name.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    /// The compiled template, or why it does not compile: that is a fault only once a conversation is to be read.
    environment: Result<Environment<'static>, String>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Returns the template of a model folder, from `chat_template.jinja` or else `tokenizer_config.json`.
    pub(super) fn open(folder: &Path) -> Result<Option<Self>, ModelError> {
        let config = json_file(&folder.join("tokenizer_config.json"))?;
        let Some(source) = source(folder, &config)? else { return Ok(None) };
        let more = json_file(&folder.join("special_tokens_map.json"))?;
        let special_tokens = SPECIAL_TOKENS
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), token(&config[name]).or_else(|| token(&more[name]))?)))
            .collect();
        Ok(Some(Self { environment: compile(source), special_tokens }))
    }

    /// Returns a conversation as text, or what is wrong with it or the template.
    pub(super) fn render(&self, messages: &[Value], ending: Ending) -> Result<String, String> {
        let environment = self.environment.as_ref().map_err(Clone::clone)?;
        for (i, message) in messages.iter().enumerate() {
            if !message["role"].is_string() {
                return Err(format!("message {} has no 'role'; expected objects with 'role' and 'content'", i + 1));
            }
            if message.get("content").is_none() && message.get("tool_calls").is_none() {
                return Err(format!("message {} has no 'content'; expected objects with 'role' and 'content'", i + 1));
            }
        }
        let special_tokens = minijinja::Value::from(Serde(&self.special_tokens));
        let messages = minijinja::Value::from(Serde(messages));
        let add_generation_prompt = ending == Ending::Answer;
        let values = context! { messages, add_generation_prompt, ..special_tokens };
        environment.get_template(NAME).and_then(|template| template.render(values)).map_err(|e| says(&e))
    }
}

fn compile(source: String) -> Result<Environment<'static>, String> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| says(&e))?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(NAME, source).map_err(|e| says(&e))?;
    Ok(environment)
}

/// Returns the template of a model folder: a file of its own, or what is in its `tokenizer_config.json`, here `config`.
pub(crate) fn source(folder: &Path, config: &Value) -> Result<Option<String>, ModelError> {
    Ok(text_file(&folder.join("chat_template.jinja"))?.or_else(|| source_in(config)))
}

/// Returns the template in a `tokenizer_config.json`: one text, or the one called `default` of a list.
fn source_in(config: &Value) -> Option<String> {
    match &config[NAME] {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|t| t["name"] == "default").or(named.first())?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn says(e: &Error) -> String {
    format!("the model's chat template says: {e}")
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(ensure_ascii=False)`; the template engine's own filter would escape `<` and `'`.
#[allow(clippy::needless_pass_by_value, reason = "the template engine hands the options over by value")]
fn to_json(value: &minijinja::Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    match indent {
        _ if ascii == Some(true) => Err(Error::new(ErrorKind::InvalidOperation, "tojson knows no ensure_ascii=true")),
        Some(width) => written(value, PrettyFormatter::with_indent(" ".repeat(width.min(16)).as_bytes())),
        None => written(value, Spaced),
    }
}

fn written(value: &minijinja::Value, formatter: impl Formatter) -> Result<String, Error> {
    let fault = |e: String| Error::new(ErrorKind::InvalidOperation, e);
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter)).map_err(|e| fault(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| fault(e.to_string()))
}

/// JSON on one line with Python's blanks after `,` and `:`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
