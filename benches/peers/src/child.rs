//! The part of a side's own process.

use std::io::stdin;
use std::panic;
use std::process::exit;

use crate::Side;
use crate::cases::{CASES, suspend};

/// Answers what the table asks on standard input, until it asks no more.
///
/// `name` is that of a case, which is then measured for each number that comes; or
/// `suspended`, with numbers of tasks; or `suspended hungry`.
///
/// # Panics
///
/// If there is no such case. Every panic ends the process.
pub fn answer<S: Side>(name: &str) {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        hook(info);
        // A task that has panicked would be waited for.
        exit(1);
    }));
    let numbers = stdin().lines().map(|line| line.unwrap().parse().unwrap());
    if let Some(hungry) = name.strip_prefix("suspended") {
        for count in numbers {
            let count: u64 = count;
            let results = suspend::<S>(count as usize, !hungry.is_empty());
            println!("{}", results.map(|result| result.to_string()).join(" "));
        }
        return;
    }
    let found = CASES.iter().find(|(case, ..)| *case == name);
    let (_, _, case) = found.expect("a case has this name");
    for n in numbers {
        println!("{}", case.measure::<S>(n).as_nanos());
    }
}
