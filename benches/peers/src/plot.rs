//! A plot of the ratios.

use std::fmt::Write;

use greenhack_benches::Row;

const LINE: f64 = 16.0;
const LEFT: f64 = 190.0;
const WIDTH: f64 = 470.0;
const RIGHT: f64 = 100.0;

/// The ratios from here to there, a power of 10 after the other.
const LEAST: f64 = 0.1;
const MOST: f64 = 10_000.0;

/// Draws the ratios of all sides, case by case, as SVG. The scale is logarithmic, and
/// bars begin at 1, where the first side is.
pub fn plot(cases: &[(&str, Vec<Row>)]) -> String {
    let cases = cases.iter().filter(|(_, rows)| !rows.is_empty());
    let mut y = 30.0;
    let mut body = String::new();
    for (name, rows) in cases {
        y += 1.5 * LINE;
        text(&mut body, 8.0, y, "start", "bold", name);
        for row in rows.iter().skip(1) {
            y += LINE;
            bar(&mut body, y, row);
        }
        y += 4.0;
    }
    let (width, height) = (LEFT + WIDTH + RIGHT, y + 12.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let title = "Time, as a multiple of native async code (logarithmic; shorter is better)";
    text(&mut svg, 8.0, 16.0, "start", "bold", title);
    let mut tick = LEAST;
    while tick < MOST * 1.5 {
        let (x, color) = (place(tick), if tick == 1.0 { "#555" } else { "#ddd" });
        let bottom = height - 8.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} 38V{bottom:.1}\" stroke=\"{color}\"/>"
        );
        text(&mut svg, x, 34.0, "middle", "normal", &format!("{tick}×"));
        // Powers of 10 have to be exact to be printed.
        tick = (tick * 100.0).round() / 10.0;
    }
    svg + &body + "</svg>\n"
}

fn bar(svg: &mut String, y: f64, row: &Row) {
    text(svg, LEFT - 6.0, y, "end", "normal", row.side);
    let (_, ratio) = match &row.result {
        Ok(result) => *result,
        Err(failure) => return text(svg, place(1.0) + 4.0, y, "start", "normal", failure),
    };
    let (from, to) = (place(ratio.min(1.0)), place(ratio.max(1.0)));
    let color = if row.side.starts_with("greenhack") {
        "#2a7"
    } else if row.side.starts_with(".await") {
        "#888"
    } else {
        "#c85"
    };
    let _ = writeln!(
        svg,
        "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"10\" fill=\"{color}\"/>",
        y - 9.0,
        (to - from).max(1.0)
    );
    text(svg, to + 4.0, y, "start", "normal", &format!("{ratio:.2}"));
}

/// Where a ratio is.
fn place(ratio: f64) -> f64 {
    let along = (ratio / LEAST).log10() / (MOST / LEAST).log10();
    LEFT + WIDTH * along.clamp(0.0, 1.0)
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, weight: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">\
         {text}</text>"
    );
}
