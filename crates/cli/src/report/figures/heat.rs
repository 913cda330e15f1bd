//! What went from each block: a field for each block and kind, darker where more is gone.

use super::super::plot::{ACCENT, About, Area, Drawn, GRID, INK, MUTED, Plot, picture, px, stroke, text};
use super::super::units::{Left, kinds};
use crate::error::CliError;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::fmt::Write as _;

/// Height of a row of fields, in units.
const ROW: u32 = 36;
/// Width of the names beside them.
const NAMES: u32 = 104;
/// What is below them: block numbers and the scale.
const FOOT: u32 = 64;
/// Fields up to this number in a row hold their figure.
const NUMBERED: usize = 10;
/// How much of the accent the darkest field has if there are figures on the fields, which must be read on it.
const UNDER_FIGURES: f64 = 0.5;

/// Returns the picture; `None` if there is nothing that can go.
pub(crate) fn heat_map(left: &[Left]) -> Result<Option<Plot>, CliError> {
    let kinds = kinds(left);
    let blocks = left.iter().map(|l| l.block + 1).max().unwrap_or(0);
    if kinds.is_empty() || blocks == 0 {
        return Ok(None);
    }
    let most = left.iter().map(Left::removed).fold(0.0, f64::max);
    let mut description = format!("{blocks} blocks from left to right, a row for each kind; darker is more removed.");
    for kind in &kinds {
        let of_kind: Vec<&Left> = left.iter().filter(|l| l.kind == *kind).collect();
        let (before, after) = of_kind.iter().fold((0, 0), |(b, a), l| (b + l.before, a + l.after));
        let share = if before == 0 { 0.0 } else { 100.0 * (before - after) as f64 / before as f64 };
        let _ = write!(description, " {kind}: {share:.1} % removed in all."); // writing to a String does not fail
    }
    let about = About { id: "removed", title: "Removed from each block".into(), description };
    let height = ROW * kinds.len() as u32 + FOOT;
    let numbered = blocks as usize <= NUMBERED;
    let darkest = if numbered { UNDER_FIGURES } else { 1.0 };
    let plot = picture(about, height, |area, (width, _)| {
        let names = px(NAMES) as i32;
        let step = f64::from(width - names) / f64::from(blocks);
        let edge = |block: u32| names + (f64::from(block) * step).round() as i32;
        for (row, kind) in kinds.iter().enumerate() {
            let top = px(ROW * row as u32) as i32;
            let middle = top + px(ROW) as i32 / 2;
            area.draw_text(kind, &text(INK, HPos::Right, VPos::Center), (names - px(8) as i32, middle))?;
            for one in left.iter().filter(|l| l.kind == *kind) {
                let field = [(edge(one.block), top), (edge(one.block + 1), top + px(ROW) as i32)];
                let part = if most > 0.0 { one.removed() / most } else { 0.0 };
                let figure = numbered.then(|| format!("{:.0}", 100.0 * one.removed()));
                draw_field(area, field, darkest * part, figure)?;
            }
        }
        let bottom = px(ROW * kinds.len() as u32) as i32;
        draw_numbers(area, blocks, bottom, |block| i32::midpoint(edge(block), edge(block + 1)))?;
        draw_scale(area, (names, bottom + px(40) as i32), (most, darkest))
    })?;
    Ok(Some(plot))
}

fn draw_field(area: &Area<'_>, field: [(i32, i32); 2], darkness: f64, figure: Option<String>) -> Drawn {
    let [(left, top), (right, bottom)] = field;
    let gap = (right - left).min(px(8) as i32) / 8;
    let inner = [(left + gap, top + px(1) as i32), (right - gap, bottom - px(1) as i32)];
    area.draw(&Rectangle::new(inner, ACCENT.mix(darkness).filled()))?;
    area.draw(&Rectangle::new(inner, stroke(GRID, 1)))?;
    let middle = (i32::midpoint(left, right), i32::midpoint(top, bottom));
    figure.map_or(Ok(()), |words| area.draw_text(&words, &text(INK, HPos::Center, VPos::Center), middle))
}

/// Numbers the blocks: all of them, or as many as fit.
fn draw_numbers(area: &Area<'_>, blocks: u32, top: i32, middle: impl Fn(u32) -> i32) -> Drawn {
    let every = [1, 2, 5, 10, 20, 50, 100].into_iter().find(|every| blocks <= 14 * every).unwrap_or(200);
    for block in (0..blocks).step_by(every as usize) {
        let at = (middle(block), top + px(4) as i32);
        area.draw_text(&block.to_string(), &text(MUTED, HPos::Center, VPos::Top), at)?;
    }
    area.draw_text("block", &text(MUTED, HPos::Right, VPos::Top), (px(NAMES - 8) as i32, top + px(4) as i32))
}

/// Says which darkness is how much.
fn draw_scale(area: &Area<'_>, (left, top): (i32, i32), (most, darkest): (f64, f64)) -> Drawn {
    let (width, height) = (px(24) as i32, px(14) as i32);
    for part in 0..5 {
        let darkness = darkest * f64::from(part) / 4.0;
        let at = [(left + part * width, top), (left + (part + 1) * width, top + height)];
        area.draw(&Rectangle::new(at, ACCENT.mix(darkness).filled()))?;
        area.draw(&Rectangle::new(at, stroke(GRID, 1)))?;
    }
    let middle = top + height / 2;
    area.draw_text("0 %", &text(MUTED, HPos::Right, VPos::Center), (left - px(8) as i32, middle))?;
    let words = format!("{:.0} % removed", 100.0 * most);
    area.draw_text(&words, &text(MUTED, HPos::Left, VPos::Center), (left + 5 * width + px(8) as i32, middle))
}
