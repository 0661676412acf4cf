//! What a process takes of its system.

use std::fs;

/// What the process holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Memory, in KiB.
    pub resident: usize,
    /// Page tables, in KiB.
    pub tables: usize,
    /// Mappings, in number.
    pub mappings: usize,
}

impl Held {
    /// Asks the system, which is Linux.
    pub fn now() -> Held {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let kib = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.unwrap().trim().trim_end_matches(" kB");
            number.parse().unwrap()
        };
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Held {
            resident: kib("VmRSS:"),
            tables: kib("VmPTE:"),
            mappings: maps.lines().count(),
        }
    }
}
