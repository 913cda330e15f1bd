//! How numbers look to people, and tables of them. Does not print.

use std::fmt::Write as _;

/// Returns a count with its thousands apart: `134,515,008`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a count in short: `134.5 M`, `6.74 B`, `1,234`.
pub(crate) fn short_count(number: u64) -> String {
    match number {
        0..100_000 => grouped(number),
        100_000..1_000_000_000 => format!("{:.1} M", number as f64 / 1e6),
        _ => format!("{:.2} B", number as f64 / 1e9),
    }
}

/// Returns seconds for people: `0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..10 => format!("{:.2} s", seconds.max(0.0)),
        10..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Returns a time that is only known roughly: `12 s`, `3 min`, `2 h 05 min`.
pub(crate) fn rough_duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..300 => format!("{} min {:02} s", whole / 60, whole % 60 / 10 * 10),
        300..3600 => format!("{} min", (whole + 30) / 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Returns a share in percent with one decimal: `80.0 %`.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", 100.0 * part as f64 / whole as f64)
}

/// Returns the first twelve characters of a digest: enough to tell two apart by eye.
pub(crate) fn short_digest(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Returns a rise of the loss, in nats per token, with as many digits as tell something.
pub(crate) fn nats(rise: f64) -> String {
    match rise.abs() {
        size if size >= 0.0001 || size == 0.0 => format!("{rise:.4}"),
        size if size >= 1e-6 => format!("{rise:.6}"),
        _ => format!("{rise:.1e}"),
    }
}

/// Returns the text as one word of a POSIX shell.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=,+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Returns `1 layer` or `3 layers`.
pub(crate) fn plural(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// On which side a column's cells line up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells under each other, aligned by spaces.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns an empty table with these columns.
    pub(crate) fn new(align: &[Align]) -> Self {
        Self { align: align.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells at its end stay empty.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Returns the lines, each after `indent` spaces and ended by a line feed.
    pub(crate) fn render(&self, indent: usize) -> String {
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..self.align.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for ((cell, width), align) in row.iter().zip(&widths).zip(&self.align) {
                let padding = " ".repeat(width - cell.chars().count());
                let _ = match align {
                    Align::Left => write!(line, "{cell}{padding}  "),
                    Align::Right => write!(line, "{padding}{cell}  "),
                }; // writing to a String does not fail
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 134_515_008].map(grouped), ["0", "999", "1,000", "134,515,008"]);
        assert_eq!([1234, 134_515_008, 6_738_415_616].map(short_count), ["1,234", "134.5 M", "6.74 B"]);
        assert_eq!([0.42, 12.34, 200.0, 7500.0].map(duration), ["0.42 s", "12.3 s", "3 min 20 s", "2 h 05 min"]);
        assert_eq!([59.6, 95.0, 610.0].map(rough_duration), ["1 min 00 s", "1 min 30 s", "10 min"]);
        assert_eq!(percent(4, 5), "80.0 %");
        assert_eq!([0.0, 0.04321, -0.000_051, 3.2e-9].map(nats), ["0.0000", "0.0432", "-0.000051", "3.2e-9"]);
        assert_eq!([plural(1, "layer"), plural(0, "layer")], ["1 layer", "0 layers"]);
    }

    #[test]
    fn a_path_is_quoted_only_where_a_shell_needs_it() {
        assert_eq!(shell_word("/a/b-1.0"), "/a/b-1.0");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn cells_line_up_and_lines_have_no_trailing_spaces() {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        table.row(["a", "1", "x"]);
        table.row(["long", "100"]);
        assert_eq!(table.render(2), "  a       1  x\n  long  100\n");
    }
}
