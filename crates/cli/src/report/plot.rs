//! Drawing: axes, marks and the page's colours. Knows nothing of runs.
//!
//! Plots are drawn in a few fixed colours, each of which becomes a CSS variable of the page, so that one picture serves
//! light and dark. They are 420 units wide: readable on a telephone, and side by side on a screen.

use crate::error::CliError;
use crate::text::nats;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Serialize;

/// Text.
pub(crate) const INK: RGBColor = RGBColor(1, 1, 1);
/// Text of less weight.
pub(crate) const MUTED: RGBColor = RGBColor(2, 2, 2);
/// Lines of the grid.
pub(crate) const GRID: RGBColor = RGBColor(3, 3, 3);
/// What is shown.
pub(crate) const ACCENT: RGBColor = RGBColor(4, 4, 4);
/// What is marked in it.
pub(crate) const MARK: RGBColor = RGBColor(5, 5, 5);

/// The page's variable for each colour.
const VARIABLES: [(RGBColor, &str); 5] =
    [(INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (ACCENT, "accent"), (MARK, "mark")];

/// Pixels of the drawing for a unit of the picture: the library knows whole pixels only.
const SCALE: u32 = 4;
/// Width of a picture, in units.
const WIDTH: u32 = 420;
/// Height of a picture with axes, in units.
const HEIGHT: u32 = 280;
/// Height of text, in units.
const TEXT: u32 = 13;

/// A picture of the page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Plot {
    pub(crate) id: &'static str,
    pub(crate) title: String,
    /// What it shows, for who cannot see it.
    pub(crate) description: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// What is inside of the `svg` element.
    pub(crate) body: String,
    /// Words below it.
    pub(crate) note: Option<String>,
}

/// Name and words of a picture.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) id: &'static str,
    pub(crate) title: String,
    pub(crate) description: String,
}

/// Both axes of a picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axes<'a> {
    /// From left to right; falling is allowed.
    pub(crate) x: (f64, f64),
    /// From bottom to top.
    pub(crate) y: (f64, f64),
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    pub(crate) x_unit: Unit,
}

/// How the numbers at the x axis are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Shares, in percent.
    Percent,
    /// As they are.
    Plain,
}

/// Where to draw.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Where to draw, with axes.
pub(crate) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
/// Whether drawing went well.
pub(crate) type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Returns units of the picture in pixels of the drawing.
pub(crate) fn px(units: u32) -> u32 {
    units * SCALE
}

/// Returns the style of text at a point of it.
pub(crate) fn text(colour: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    TextStyle {
        color: colour.to_backend_color(),
        ..TextStyle::from(("sans-serif", px(TEXT)).into_font()).pos(Pos::new(horizontal, vertical))
    }
}

/// Returns a picture of so many units' height, drawn freely on a field of (width, height) pixels.
pub(crate) fn picture(
    about: About,
    height: u32,
    draw: impl FnOnce(&Area<'_>, (i32, i32)) -> Drawn,
) -> Result<Plot, CliError> {
    let size = (px(WIDTH), px(height));
    let failed = |e: DrawingAreaErrorKind<std::io::Error>| CliError::Page(format!("{}: {e}", about.title));
    let mut drawing = String::new();
    {
        let area = SVGBackend::with_string(&mut drawing, size).into_drawing_area();
        draw(&area, (size.0 as i32, size.1 as i32)).and_then(|()| area.present()).map_err(failed)?;
    }
    let About { id, title, description } = about;
    Ok(Plot { id, title, description, width: size.0, height: size.1, body: themed(&drawing), note: None })
}

/// Returns a picture with axes.
pub(crate) fn chart(
    about: About,
    axes: &Axes<'_>,
    draw: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Result<Plot, CliError> {
    let (x, y) = (opened(axes.x), opened(axes.y));
    picture(about, HEIGHT, |area, _| {
        let mut chart = ChartBuilder::on(area)
            .margin_top(px(30))
            .margin_right(px(16))
            .x_label_area_size(px(46))
            .y_label_area_size(px(54))
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.stroke_width(SCALE))
            .light_line_style(TRANSPARENT)
            .axis_style(MUTED.stroke_width(SCALE))
            .set_all_tick_mark_size(px(4))
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&|value| tick(*value, x, axes.x_unit))
            .y_label_formatter(&|value| tick(*value, y, Unit::Plain))
            .label_style(text(MUTED, HPos::Left, VPos::Top))
            .axis_desc_style(text(MUTED, HPos::Left, VPos::Top))
            .x_desc(axes.x_label)
            .draw()?;
        area.draw_text(axes.y_label, &text(MUTED, HPos::Left, VPos::Top), (px(4) as i32, px(4) as i32))?;
        draw(&mut chart)
    })
}

/// Draws a line through points.
pub(crate) fn line(chart: &mut Chart<'_, '_>, points: &[(f64, f64)], style: ShapeStyle) -> Drawn {
    chart.draw_series(LineSeries::new(points.iter().copied(), style)).map(drop)
}

/// Draws a dot at each point.
pub(crate) fn dots(chart: &mut Chart<'_, '_>, points: &[(f64, f64)], radius: u32, colour: RGBColor) -> Drawn {
    let dot = |point: &(f64, f64)| Circle::new(*point, px(radius), colour.filled());
    chart.draw_series(points.iter().map(dot)).map(drop)
}

/// Draws a dashed line from one point to another.
pub(crate) fn dashes(chart: &mut Chart<'_, '_>, ends: [(f64, f64); 2], colour: RGBColor) -> Drawn {
    let series = DashedLineSeries::new(ends, px(4), px(4), colour.stroke_width(SCALE));
    chart.draw_series(series).map(drop)
}

/// Writes text beside a point: `away` units to the right (left, if negative) and up.
pub(crate) fn label(chart: &Chart<'_, '_>, at: (f64, f64), away: (i32, i32), words: &str, colour: RGBColor) -> Drawn {
    let horizontal = match away.0.signum() {
        1 => HPos::Left,
        0 => HPos::Center,
        _ => HPos::Right,
    };
    let area = chart.plotting_area();
    let (x, y) = area.map_coordinate(&at);
    let (left, top) = area.get_base_pixel();
    let scale = SCALE as i32;
    let spot = (x - left + away.0 * scale, y - top - away.1 * scale);
    area.strip_coord_spec().draw_text(words, &text(colour, horizontal, VPos::Center), spot)
}

/// Returns a line's style.
pub(crate) fn stroke(colour: impl Color, units: u32) -> ShapeStyle {
    ShapeStyle::from(colour.to_rgba()).stroke_width(px(units))
}

/// Returns a range that has a width.
fn opened((from, to): (f64, f64)) -> (f64, f64) {
    if (to - from).abs() < f64::MIN_POSITIVE {
        (from - 0.5 * from.abs().max(1.0), to + 0.5 * to.abs().max(1.0))
    } else {
        (from, to)
    }
}

/// Returns a number at an axis with as many digits as its range asks for.
fn tick(value: f64, (from, to): (f64, f64), unit: Unit) -> String {
    let (shown, span, sign) = match unit {
        Unit::Percent => (100.0 * value, 100.0 * (to - from).abs(), " %"),
        Unit::Plain => (value, (to - from).abs(), ""),
    };
    if span < 1e-4 {
        return format!("{}{sign}", nats(shown));
    }
    let digits = (0.0 - (span / 6.0).log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{shown:.digits$}");
    let zero = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
    format!("{}{sign}", if zero { "0" } else { &text })
}

/// Returns what is inside of the drawing's `svg` element, its colours replaced by the page's variables.
fn themed(drawing: &str) -> String {
    let inside = drawing.split_once('>').map_or(drawing, |(_, rest)| rest);
    let inside = inside.trim_end().strip_suffix("</svg>").unwrap_or(inside);
    VARIABLES.iter().fold(inside.to_owned(), |text, (RGBColor(r, g, b), name)| {
        let hex = format!("#{r:02X}{g:02X}{b:02X}");
        let text = text.replace(&format!("fill=\"{hex}\""), &format!("style=\"fill:var(--{name})\""));
        text.replace(&format!("stroke=\"{hex}\""), &format!("style=\"stroke:var(--{name})\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_page_s_colours_and_no_others() {
        let about = About { id: "p", title: "P".into(), description: "d".into() };
        let axes =
            Axes { x: (1.0, 0.5), y: (0.0, 2.0), x_label: "size <left>", y_label: "rise", x_unit: Unit::Percent };
        let plot = chart(about, &axes, |chart| {
            line(chart, &[(1.0, 0.0), (0.5, 2.0)], stroke(ACCENT, 2))?;
            dashes(chart, [(0.7, 0.0), (0.7, 2.0)], MARK)?;
            label(chart, (0.7, 1.0), (-4, 8), "a & b", INK)
        })
        .unwrap();
        assert!(!plot.body.contains('#') && !plot.body.contains("svg"), "{}", plot.body);
        for wanted in ["stroke:var(--accent)", "fill:var(--ink)", "size &lt;left&gt;", "a &amp; b", "70 %"] {
            assert!(plot.body.contains(wanted), "{wanted} is not in {}", plot.body);
        }
    }

    #[test]
    fn numbers_at_an_axis_are_short() {
        assert_eq!(tick(0.7, (1.0, 0.5), Unit::Percent), "70 %");
        assert_eq!(tick(0.705, (0.71, 0.70), Unit::Percent), "70.5 %");
        assert_eq!(tick(0.1 + 0.2, (0.0, 1.0), Unit::Plain), "0.3");
        assert_eq!(tick(-1e-17, (0.0, 1.0), Unit::Plain), "0");
        assert_eq!(tick(2e-6, (0.0, 1e-5), Unit::Plain), "0.000002");
    }
}
