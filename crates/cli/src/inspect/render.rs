//! An inspection as a page of plain text.

use super::{Inspection, Left};
use crate::sizes::flag;
use crate::text::{Align, Table, grouped, percent, short_count, short_digest};
use std::fmt::Write as _;
use types::{BlockDescription, LayerDescription, Sizes, Structure, UnitKind, format_bytes};

impl Inspection {
    /// Returns the page, ended by a line feed.
    pub(super) fn render(&self) -> String {
        let mut page = format!("{}\n\n{}", self.model, self.facts().render(2));
        // Writing to a String does not fail.
        let _ = write!(page, "\nSizes\n{}", self.sizes().render(2));
        for (blocks, layers) in self.alike() {
            let _ = write!(page, "\n{blocks}\n{}", layers.render(2));
        }
        let _ = write!(page, "\nUnits that can be removed ({})\n{}", self.structure, self.units());
        if let Some(left) = &self.left {
            let _ = write!(page, "\n{}", self.left(left));
        }
        page
    }

    fn facts(&self) -> Table {
        let mut table = Table::new(&[Align::Left, Align::Left]);
        let d = &self.description;
        let tied = if self.tied { ", head tied to the embedding" } else { "" };
        table.row(["family", &d.family]);
        table.row(["blocks", &d.blocks.len().to_string()]);
        table.row(["hidden", &grouped(d.hidden)]);
        let most = if self.own_widths { "up to " } else { "" };
        let heads = format!("{most}{} query, {most}{} key/value, {} wide", self.heads, self.kv_heads, self.head_dim);
        table.row(["heads", &heads]);
        table.row(["FFN", &format!("{most}{}", grouped(self.ffn.max(0) as u64))]);
        table.row(["vocabulary", &format!("{}{tied}", grouped(d.vocabulary))]);
        table.row(["positions", &grouped(d.max_positions)]);
        table.row(["stored as", &self.dtypes.join(", ")]);
        table.row(["digest", short_digest(&d.digest)]);
        table
    }

    fn sizes(&self) -> Table {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right]);
        let dense = &self.description.dense;
        let row = |name: &str, s: &Sizes| {
            [name.to_owned(), grouped(s.prunable), grouped(s.parameters), format_bytes(s.bytes)]
        };
        table.row(["", "prunable weights", "all parameters", "tensors"]);
        table.row(row("now", dense));
        if let Some(least) = &self.smallest {
            table.row(row("at least", least));
            table.row([
                String::new(),
                percent(least.prunable, dense.prunable),
                percent(least.parameters, dense.parameters),
                percent(least.bytes, dense.bytes),
            ]);
        }
        table
    }

    /// Returns the layers of the blocks, blocks that look alike under one heading.
    fn alike(&self) -> Vec<(String, Table)> {
        let shapes = |block: &BlockDescription| -> Vec<_> {
            let shape = |l: &LayerDescription| (short_name(l, block.block), l.rows, l.columns, l.bias);
            block.layers.iter().map(shape).collect()
        };
        let mut parts: Vec<(u32, u32, &BlockDescription)> = Vec::new();
        for block in &self.description.blocks {
            match parts.last_mut() {
                Some((_, last, first)) if shapes(first) == shapes(block) => *last = block.block,
                _ => parts.push((block.block, block.block, block)),
            }
        }
        let heading = |first: u32, last: u32| match last - first {
            0 => format!("Block {first}"),
            _ => format!("Blocks {first} to {last}, each"),
        };
        parts.into_iter().map(|(first, last, block)| (heading(first, last), layers(block))).collect()
    }

    fn units(&self) -> String {
        let zeroed = match self.structure {
            Structure::Coupled => None,
            Structure::RowColumn => Some("row and every column"),
            Structure::Element => Some("weight"),
            Structure::NofM => Some("row's weights by windows"),
        };
        if let Some(what) = zeroed {
            return format!("  every {what} of the layers above; what goes becomes zero, tensors keep their shapes\n");
        }
        let Some(block) = self.description.blocks.first() else { return String::new() };
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right, Align::Right]);
        table.row(["unit", "a block", "stay at least", "weights each", "bytes each"]);
        for group in &block.groups {
            let quantum = if group.kind == UnitKind::FfnChannel { self.multiple_of.min(group.units) } else { 1 };
            table.row([
                group.kind.to_string(),
                grouped(u64::from(group.units * group.together)),
                grouped(u64::from(group.min_keep.max(quantum) * group.together)),
                grouped(group.freed_per_unit.prunable),
                grouped(group.freed_per_unit.bytes),
            ]);
        }
        let mut text = table.render(2);
        if let Some(group) = block.groups.iter().find(|g| g.together > 1) {
            let _ = writeln!(text, "  ({} heads go together, one of each key/value head)", group.together);
        }
        text
    }

    fn left(&self, left: &Left) -> String {
        let dense = &self.description.dense;
        let whole = dense.measured_by(&left.target);
        let share = percent(left.limit.min(whole), whole);
        let mut text = format!("{} leaves at most {} ({share})\n", flag(left.target), self.measured(left));
        if self.structure.keeps_shapes() {
            text.push_str("  as weights that are not zero; which, the curvature decides\n");
            return text;
        }
        let attention = self.description.groups().find(|g| g.kind != UnitKind::FfnChannel);
        let unit = attention.map_or("attention", |g| g.kind.name());
        let per_choice = attention.map_or(1, |g| g.together);
        let mut table = Table::new(&[Align::Right; 6]);
        table.row([&format!("{unit}s"), "FFN width", "prunable", "left", "parameters", "tensors"]);
        for widths in &left.uniform {
            table.row([
                widths.attention.map_or_else(|| "all".to_owned(), |n| (n * per_choice).to_string()),
                widths.ffn.map_or_else(|| "all".to_owned(), |n| grouped(u64::from(n))),
                grouped(widths.sizes.prunable),
                widths.share(dense),
                short_count(widths.sizes.parameters),
                format_bytes(widths.sizes.bytes),
            ]);
        }
        text.push_str(
            "Equal blocks that meet it, one line for each width of attention; the curvature decides which:\n",
        );
        text + &table.render(2)
    }

    fn measured(&self, left: &Left) -> String {
        let limit = left.limit.min(self.description.dense.measured_by(&left.target));
        match left.target {
            types::Target::Size(_) => format!("{} prunable weights", grouped(limit)),
            types::Target::Parameters(_) => format!("{} parameters", grouped(limit)),
            types::Target::Bytes(_) => format_bytes(limit),
        }
    }
}

fn layers(block: &BlockDescription) -> Table {
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right, Align::Left]);
    table.row(["layer", "rows", "columns", "weights", ""]);
    for layer in &block.layers {
        table.row([
            short_name(layer, block.block),
            grouped(layer.rows),
            grouped(layer.columns),
            grouped(layer.rows * layer.columns),
            if layer.bias { "bias" } else { "" }.to_owned(),
        ]);
    }
    table
}

/// Returns a layer's name inside its block: `mlp.down_proj` for `model.layers.3.mlp.down_proj`.
fn short_name(layer: &LayerDescription, block: u32) -> String {
    let name = layer.layer.as_str();
    name.split_once(&format!(".{block}.")).map_or(name, |(_, inner)| inner).to_owned()
}
