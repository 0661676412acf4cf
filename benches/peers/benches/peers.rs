//! greenhack and its peers in one table. See `src/lib.rs` for how, and `src/bin/` for how
//! each peer is driven.
//!
//! Run it with `cargo bench -p greenhack-peers`; `-- --quick` makes few rounds, `--million`
//! suspends a million, `--plot=docs/peers.svg` draws the ratios. A word selects cases.
#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use greenhack_benches::{Case, Row, Table};
use greenhack_peers::{CASES, Process, plot};

const ALL: &str = env!("CARGO_BIN_EXE_sides");
const OF_COROSENSEI_02: &str = env!("CARGO_BIN_EXE_sides_corosensei_02");

/// The sides, and in which program they are. The first is what others are compared with.
const SIDES: [(&str, &str); 11] = [
    (".await", ALL),
    (".await, boxed", ALL),
    ("greenhack", ALL),
    ("greenhack, 1 MiB", ALL),
    ("stackful", ALL),
    ("ruloom", OF_COROSENSEI_02),
    ("corosensei-awaiter-trait", OF_COROSENSEI_02),
    ("may", ALL),
    ("wasmtime's fiber", ALL),
    ("spawn_blocking", ALL),
    ("block_in_place", ALL),
];

fn main() {
    let table = Table::from_args();
    let mut drawn = Vec::new();
    for (name, operations, _) in CASES {
        let mut case = Case::new(name, operations);
        for (side, program) in SIDES {
            let mut process = None;
            case = case.try_side(side, move |n| {
                let process = process.get_or_insert_with(|| Process::start(program, side, name));
                let nanos = process
                    .ask(n)?
                    .parse()
                    .map_err(|error| format!("{error}"))?;
                Ok(Duration::from_nanos(nanos))
            });
        }
        drawn.push((name, table.case(case)));
    }
    matrix(&drawn);
    let path = std::env::args().find_map(|arg| arg.strip_prefix("--plot=").map(str::to_owned));
    if let Some(path) = path {
        // A bench runs in the directory of its package.
        let path = format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
        fs::write(&path, plot(&drawn)).expect("the plot can be written");
    }
    let mut counts = vec![10_000, 100_000];
    if std::env::args().any(|arg| arg == "--million") {
        counts.push(1_000_000);
    }
    for name in ["suspended", "suspended hungry"] {
        if table.wants(name) {
            suspended(name, &counts);
        }
    }
}

/// Prints the ratios of all cases in one table: a line for each side.
fn matrix(cases: &[(&str, Vec<Row>)]) {
    let cases: Vec<_> = cases.iter().filter(|(_, rows)| !rows.is_empty()).collect();
    if cases.is_empty() {
        return;
    }
    print!("\n| ratio of times |");
    cases.iter().for_each(|(name, _)| print!(" {name} |"));
    print!("\n|---|");
    cases.iter().for_each(|_| print!("--:|"));
    for (index, (side, _)) in SIDES.iter().enumerate().skip(1) {
        print!("\n| {side} |");
        for (_, rows) in &cases {
            match &rows[index].result {
                Ok((_, ratio)) => print!(" {ratio:.2} |"),
                Err(failure) => print!(" {failure} |"),
            }
        }
    }
    println!();
}

/// What so many tasks hold that are suspended at once, each side in a fresh process.
fn suspended(name: &str, counts: &[u64]) {
    println!(
        "\n| {name} | side | µs to make | KiB resident | KiB of page tables | mappings \
         | µs to resume and end |\n|--:|---|--:|--:|--:|--:|--:|"
    );
    for &count in counts {
        for (side, program) in SIDES {
            let takes_threads = ["spawn_blocking", "block_in_place"].contains(&side);
            // The system has no more ids, and others want some, too.
            let result = if takes_threads && count > 10_000 {
                Err("left out: a thread each".to_owned())
            } else {
                Process::start(program, side, name).ask(count)
            };
            match result {
                Ok(answer) => {
                    let numbers = answer.split(' ').filter_map(|number| number.parse().ok());
                    let numbers: Vec<f64> = numbers.collect();
                    let [made, resident, tables, mappings, ended] = numbers[..] else {
                        panic!("{side} answers {answer}");
                    };
                    println!(
                        "| {count} | {side} | {made:.2} | {resident:.2} | {tables:.2} \
                         | {mappings} | {ended:.2} |"
                    );
                }
                Err(failure) => println!("| {count} | {side} | {failure} | | | | |"),
            }
        }
    }
}
