//! Tokens to text as they come. Knows no model.

use super::Tokenizer;
use crate::ModelError;

/// What stands for bytes that are no text: also for a letter whose last bytes are still to come.
const INCOMPLETE: char = char::REPLACEMENT_CHARACTER;

/// The text that follows a prompt, token by token; special tokens are left out.
///
/// Everything is decoded anew with each token, prompt included, because what a token means to the text depends on those
/// before it: meant for tens of tokens, not for books.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<i64>,
    /// Bytes of the text that were handed out, or are the prompt's.
    given: usize,
}

impl<'a> TextStream<'a> {
    /// Returns the stream of what follows `prompt`.
    pub fn after(tokenizer: &'a Tokenizer, prompt: &[i64]) -> Result<Self, ModelError> {
        let given = tokenizer.decode(prompt)?.trim_end_matches(INCOMPLETE).len();
        Ok(Self { tokenizer, ids: prompt.to_vec(), given })
    }

    /// Returns the text that is complete with this token and was not before; often none.
    pub fn push(&mut self, id: i64) -> Result<String, ModelError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(self.beyond(text.trim_end_matches(INCOMPLETE)))
    }

    /// Returns what is left: a letter that was never completed, as the replacement character.
    pub fn finish(mut self) -> Result<String, ModelError> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(self.beyond(&text))
    }

    fn beyond(&mut self, text: &str) -> String {
        let new = text.get(self.given..).unwrap_or_default().to_owned();
        self.given += new.len();
        new
    }
}
