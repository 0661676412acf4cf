//! A bar chart as SVG, of groups of bars: one for each side of a case.

use std::fmt::Write;

/// The sides of some cases, to be drawn.
#[derive(Debug)]
pub struct Chart {
    title: String,
    sides: Vec<String>,
    groups: Vec<(String, Vec<Bar>)>,
}

#[derive(Debug)]
struct Bar {
    /// Its place in `sides`, from which it has its colour.
    side: usize,
    ratio: f64,
    label: String,
}

const COLOURS: [&str; 10] = [
    "#4c566a", "#d08770", "#bf616a", "#5e81ac", "#81a1c1", "#ebcb8b", "#b48ead", "#a3be8c",
    "#88c0d0", "#8a7a5c",
];
const BAR: usize = 14;
const GAP: usize = 26;
const LEFT: usize = 170;
const WIDTH: usize = 520;
const TOP: usize = 40;

impl Chart {
    /// Makes a chart without bars, of this quantity.
    pub fn new(title: &str) -> Chart {
        Chart {
            title: title.to_owned(),
            sides: Vec::new(),
            groups: Vec::new(),
        }
    }

    /// Adds a group of bars: the sides, their values, and their ratios to the
    /// first, which is how long they are.
    pub fn group<'a>(&mut self, name: &str, bars: impl Iterator<Item = (&'a str, f64, f64)>) {
        let bars = bars.map(|(name, value, ratio)| {
            let known = self.sides.iter().position(|side| side == name);
            let side = known.unwrap_or_else(|| {
                self.sides.push(name.to_owned());
                self.sides.len() - 1
            });
            let label = format!("× {ratio:.2} ({value:.1})");
            Bar { side, ratio, label }
        });
        let bars = bars.collect();
        self.groups.push((name.to_owned(), bars));
    }

    /// Draws it.
    pub fn svg(&self) -> String {
        let bars: usize = self.groups.iter().map(|(_, bars)| bars.len()).sum();
        let height = TOP + bars * BAR + self.groups.len() * GAP;
        let mut svg = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| {
            svg.write_fmt(text).expect("a string takes all");
            svg.push('\n');
        };
        let width = LEFT + WIDTH + 150;
        line(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">"
        ));
        line(format_args!(
            "<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"8\" y=\"20\" font-size=\"14\">{}</text>",
            self.title
        ));
        let ratios = self.groups.iter().flat_map(|(_, bars)| bars);
        let most = ratios.map(|bar| bar.ratio).fold(1.0, f64::max);
        let one = LEFT as f64 + WIDTH as f64 / most;
        let mut y = TOP;
        for (name, bars) in &self.groups {
            line(format_args!(
                "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{name}</text>",
                y + 10
            ));
            y += BAR;
            for bar in bars {
                let length = bar.ratio / most * WIDTH as f64;
                let (side, label) = (&self.sides[bar.side], &bar.label);
                let colour = COLOURS[bar.side % COLOURS.len()];
                let (middle, end) = (y + 10, LEFT as f64 + length + 6.0);
                line(format_args!(
                    "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{side}</text>\
                     <rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                     <text x=\"{end:.1}\" y=\"{middle}\">{label}</text>",
                    LEFT - 6,
                    BAR - 2,
                ));
                y += BAR;
            }
            y += GAP - BAR;
        }
        // Where the first is.
        line(format_args!(
            "<path d=\"M{one:.1} {TOP}V{y}\" stroke=\"black\" stroke-dasharray=\"2 3\"/>"
        ));
        line(format_args!("</svg>"));
        svg
    }
}
