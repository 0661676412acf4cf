//! A harness for ratios.
//!
//! A busy machine makes absolute times worthless, but it disturbs all that runs
//! at the same time. So a [`Case`] runs its sides in turn, round after round,
//! the order changing, and compares within each round; the table shows the
//! median over the rounds and the range of its middle half.
//!
//! `cargo bench -p greenhack-benches --bench run -- cancel` runs the cases with
//! "cancel" in their name; `--quick` makes few rounds, `--rounds=11` as many.
#![forbid(unsafe_code)]

mod chart;
mod deep;
mod held;
pub mod load;
mod once;
mod race;
mod tasks;

pub use deep::sixteen_async;
pub use held::Held;
pub use once::Once;
pub use race::Race;
pub use tasks::{batches, in_task};

use std::fmt;
use std::time::Duration;

pub use chart::Chart;

/// How many rounds there are, and of what.
#[derive(Debug)]
pub struct Table {
    rounds: usize,
    filter: Vec<String>,
}

impl Table {
    /// Reads the command line, and prints the head of the table.
    pub fn from_args() -> Table {
        let (flags, filter): (Vec<_>, _) = std::env::args()
            .skip(1)
            .partition(|argument| argument.starts_with("--"));
        let rounds = flags.iter().find_map(|flag| flag.strip_prefix("--rounds="));
        let quick = flags.iter().any(|flag| flag == "--quick");
        println!(
            "| {:<34} | {:<26} | {:>9} | {:>21} | {:>24} | {:>15} |",
            "case", "side", "ns", "over the first, ns", "ratio to the first", "goal"
        );
        println!("|---|---|--:|--:|--:|--:|");
        Table {
            rounds: match rounds.map(str::parse) {
                Some(Ok(rounds)) if rounds > 0 => rounds,
                Some(_) => panic!("write `--rounds=11`"),
                None if quick => 5,
                None => 31,
            },
            filter,
        }
    }

    /// Runs a case and prints a line for each side, which it returns. There is none
    /// if the command line has left the case out.
    pub fn case(&self, mut case: Case<'_>) -> Vec<Row> {
        if !self.wants(&case.name) {
            return Vec::new();
        }
        let sides = case.sides.len();
        let mut nanos = vec![Vec::new(); sides];
        let mut failures = vec![None; sides];
        // The first round warms up.
        for round in 0..=self.rounds {
            for turn in 0..sides {
                let index = (round + turn) % sides;
                if failures[index].is_some() {
                    continue;
                }
                match (case.sides[index].run)(case.operations) {
                    Ok(elapsed) if round > 0 => {
                        nanos[index].push(elapsed.as_nanos() as f64 / case.operations as f64);
                    }
                    Ok(_) => {}
                    Err(failure) => failures[index] = Some(failure),
                }
            }
        }
        let line = |side: &str, nanos: String, over: String, ratio: String, goal: String| {
            println!(
                "| {:<34} | {side:<26} | {nanos:>9} | {over:>21} | {ratio:>24} | {goal:>15} |",
                case.name
            );
        };
        let mut rows = Vec::new();
        for (index, side) in case.sides.iter().enumerate() {
            let none = String::new;
            let result = if let Some(failure) = failures[index].take() {
                line(side.name, none(), none(), failure.clone(), none());
                Err(failure)
            } else {
                let pairs = || nanos[index].iter().zip(&nanos[0]);
                let over = Spread::of(pairs().map(|(ours, first)| ours - first));
                let ratio = Spread::of(pairs().map(|(ours, first)| ours / first));
                let median = Spread::of(nanos[index].iter().copied()).median;
                let goal = side.goal.map(|goal| goal.verdict(&over, &ratio));
                let (over, times) = match index {
                    0 => (none(), none()),
                    _ => (format!("{over:.1}"), format!("{ratio:.2}")),
                };
                let goal = goal.unwrap_or_default();
                line(side.name, format!("{median:.1}"), over, times, goal);
                Ok((median, ratio.median))
            };
            rows.push(Row {
                side: side.name,
                result,
            });
        }
        rows
    }

    /// Whether the command line asks for this case.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|part| name.contains(part.as_str()))
    }
}

/// What became of one side of a case.
#[derive(Clone, Debug)]
pub struct Row {
    /// The name of the side.
    pub side: &'static str,
    /// Medians: nanoseconds, and the ratio to the first side. Or why there are none.
    pub result: Result<(f64, f64), String>,
}

/// Ways to do the same thing; the first is what the others are compared with.
#[derive(Debug)]
pub struct Case<'a> {
    name: String,
    operations: u64,
    sides: Vec<Side<'a>>,
}

type Run<'a> = Box<dyn FnMut(u64) -> Result<Duration, String> + 'a>;

struct Side<'a> {
    name: &'static str,
    run: Run<'a>,
    goal: Option<Goal>,
}

impl fmt::Debug for Side<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<'a> Case<'a> {
    /// Makes a case that does something `operations` times a round.
    pub fn new(name: impl Into<String>, operations: u64) -> Self {
        Case {
            name: name.into(),
            operations,
            sides: Vec::new(),
        }
    }

    /// Adds a side: `run` does it as often as it is told, and says how long
    /// that took.
    pub fn side(self, name: &'static str, mut run: impl FnMut(u64) -> Duration + 'a) -> Self {
        self.try_side(name, move |operations| Ok(run(operations)))
    }

    /// Adds a side that may fail, and says how. It is not run again then. The first
    /// side must not.
    pub fn try_side(
        mut self,
        name: &'static str,
        run: impl FnMut(u64) -> Result<Duration, String> + 'a,
    ) -> Self {
        self.sides.push(Side {
            name,
            run: Box::new(run),
            goal: None,
        });
        self
    }

    /// Sets a goal for the side that was added last.
    pub fn goal(mut self, goal: Goal) -> Self {
        if let Some(side) = self.sides.last_mut() {
            side.goal = Some(goal);
        }
        self
    }
}

/// The most that a side may take.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// So many times the first side.
    Times(f64),
    /// So many nanoseconds more than the first side.
    Over(f64),
}

impl Goal {
    fn verdict(self, over: &Spread, ratio: &Spread) -> String {
        let (met, goal) = match self {
            Goal::Times(most) => (ratio.median <= most, format!("× {most}")),
            Goal::Over(most) => (over.median <= most, format!("+ {most} ns")),
        };
        format!("{goal}: {}", if met { "met" } else { "missed" })
    }
}

/// The median of some numbers, and where the middle half of them lies.
struct Spread {
    median: f64,
    middle: (f64, f64),
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<_> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |quarter: usize| sorted[(sorted.len() - 1) * quarter / 4];
        Spread {
            median: at(2),
            middle: (at(1), at(3)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let (low, high) = self.middle;
        write!(
            f,
            "{:.digits$} ({low:.digits$} to {high:.digits$})",
            self.median
        )
    }
}
