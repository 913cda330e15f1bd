//! Documents out of one file's bytes. Does not clean text: what is in the file is what the model sees.

use super::chat::{ChatTemplate, Ending};
use super::files::{DataFile, Format};
use super::{Document, TextForm};
use crate::ModelError;
use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The column that holds a conversation when there is no text column.
const MESSAGES: &str = "messages";

/// Collects documents, file by file.
pub(super) struct Reader<'a> {
    text_column: &'a str,
    chat: Option<&'a ChatTemplate>,
    documents: Vec<Document>,
    skipped: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text_column: &'a str, chat: Option<&'a ChatTemplate>) -> Self {
        Self { text_column, chat, documents: Vec::new(), skipped: 0 }
    }

    /// Returns the documents and the number of empty ones.
    pub(super) fn finish(self) -> (Vec<Document>, u64) {
        (self.documents, self.skipped)
    }

    /// Adds every document of a file.
    pub(super) fn read(&mut self, file: &DataFile) -> Result<(), ModelError> {
        let bytes = file.bytes()?;
        match file.format {
            Format::Parquet => self.parquet(file, bytes),
            Format::Text => {
                let text = utf8(file, &bytes)?;
                self.push(text.to_owned(), TextForm::Plain);
                Ok(())
            }
            Format::JsonLines => self.json_lines(file, utf8(file, &bytes)?),
            Format::Json => self.json(file, utf8(file, &bytes)?),
        }
    }

    fn push(&mut self, text: String, form: TextForm) {
        if text.trim().is_empty() {
            self.skipped += 1;
        } else {
            self.documents.push(Document { text, form });
        }
    }

    fn json_lines(&mut self, file: &DataFile, text: &str) -> Result<(), ModelError> {
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let row = serde_json::from_str(line).map_err(|e| broken_json(file, i + 1, &e))?;
            self.row(file, row, &format!("line {}", i + 1))?;
        }
        Ok(())
    }

    /// Reads an array of rows, or rows one after the other.
    fn json(&mut self, file: &DataFile, text: &str) -> Result<(), ModelError> {
        if text.trim_start().starts_with('[') {
            let rows: Vec<Value> = serde_json::from_str(text).map_err(|e| broken_json(file, e.line(), &e))?;
            for (i, row) in rows.into_iter().enumerate() {
                self.row(file, row, &format!("item {}", i + 1))?;
            }
            return Ok(());
        }
        for (i, row) in serde_json::Deserializer::from_str(text).into_iter::<Value>().enumerate() {
            let row = row.map_err(|e| broken_json(file, e.line(), &e))?;
            self.row(file, row, &format!("item {}", i + 1))?;
        }
        Ok(())
    }

    fn row(&mut self, file: &DataFile, row: Value, place: &str) -> Result<(), ModelError> {
        let mut columns = match row {
            Value::Object(columns) => columns,
            Value::String(text) => {
                self.push(text, TextForm::Plain);
                return Ok(());
            }
            other => {
                return Err(file.fault(format!("{place}: holds {}, expected an object or a text", kind(&other))));
            }
        };
        for column in [self.text_column, MESSAGES] {
            if let Some(cell) = columns.remove(column) {
                return self.cell(file, cell, column, place);
            }
        }
        let names: Vec<_> = columns.keys().map(String::as_str).collect();
        Err(file.fault(missing_column(place, self.text_column, &names)))
    }

    fn cell(&mut self, file: &DataFile, cell: Value, column: &str, place: &str) -> Result<(), ModelError> {
        match cell {
            Value::String(text) => self.push(text, TextForm::Plain),
            Value::Null => self.skipped += 1,
            Value::Array(messages) if messages.is_empty() => self.skipped += 1,
            Value::Array(messages) => {
                let chat = self.chat.ok_or_else(|| {
                    file.fault(format!(
                        "{place}: column '{column}' holds a conversation, and the model folder has no chat template; \
                         add chat_template.jinja to it, or name a column of text with --text-column"
                    ))
                })?;
                let text = chat
                    .render(&messages, Ending::Over)
                    .map_err(|reason| file.fault(format!("{place}: column '{column}': {reason}")))?;
                self.push(text, TextForm::Chat);
            }
            other => {
                return Err(file.fault(format!(
                    "{place}: column '{column}' holds {}, expected text or a list of messages",
                    kind(&other)
                )));
            }
        }
        Ok(())
    }

    /// Reads a parquet file. The library panics at some damages instead of returning an error.
    fn parquet(&mut self, file: &DataFile, bytes: Vec<u8>) -> Result<(), ModelError> {
        let read = catch_unwind(AssertUnwindSafe(|| self.parquet_rows(file, bytes)));
        read.unwrap_or_else(|_| {
            Err(file.fault("is damaged: its parquet pages contradict each other; fetch the file again"))
        })
    }

    fn parquet_rows(&mut self, file: &DataFile, bytes: Vec<u8>) -> Result<(), ModelError> {
        let broken = |e: ParquetError| file.fault(format!("cannot be read as parquet: {e}; fetch the file again"));
        let reader = SerializedFileReader::new(Bytes::from(bytes)).map_err(broken)?;
        let schema = reader.metadata().file_metadata().schema();
        let Some(field) = schema.get_fields().iter().find(|f| f.name() == self.text_column) else {
            let names: Vec<_> = schema.get_fields().iter().map(|f| f.name()).collect();
            return Err(file.fault(missing_column("schema", self.text_column, &names)));
        };
        let column =
            Type::group_type_builder(schema.name()).with_fields(vec![field.clone()]).build().map_err(broken)?;
        for (i, row) in reader.get_row_iter(Some(column)).map_err(broken)?.enumerate() {
            let cell = row.map_err(broken)?.into_columns().pop().map(|(_, cell)| cell);
            match cell {
                Some(Field::Str(text)) => self.push(text, TextForm::Plain),
                Some(Field::Bytes(raw)) => match std::str::from_utf8(raw.data()) {
                    Ok(text) => self.push(text.to_owned(), TextForm::Plain),
                    Err(e) => {
                        let at = e.valid_up_to();
                        let reason = format!("row {}: '{}' is not UTF-8 at byte {at}", i + 1, self.text_column);
                        return Err(file.fault(reason));
                    }
                },
                Some(Field::Null) | None => self.skipped += 1,
                Some(_) => {
                    let reason = format!("row {}: column '{}' holds no text; name another", i + 1, self.text_column);
                    return Err(file.fault(reason));
                }
            }
        }
        Ok(())
    }
}

/// Returns the bytes as text, without a byte order mark; a NUL byte tells binary data from text.
fn utf8<'a>(file: &DataFile, bytes: &'a [u8]) -> Result<&'a str, ModelError> {
    let offset = match std::str::from_utf8(bytes) {
        Ok(text) => match text.find('\0') {
            None => return Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
            Some(offset) => offset,
        },
        Err(e) => e.valid_up_to(),
    };
    Err(file.fault(format!("binary data, or text that is not UTF-8, at byte {offset}; convert it or leave it out")))
}

fn broken_json(file: &DataFile, line: usize, e: &serde_json::Error) -> ModelError {
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    file.fault(format!("line {line}, column {}: not valid JSON: {what}", e.column()))
}

fn missing_column(place: &str, wanted: &str, names: &[&str]) -> String {
    format!("{place}: no column '{wanted}'; the columns are {}; choose one with --text-column", names.join(", "))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
