//! The tables of a benchmark, and whether its bars are met.

use comfy_table::{CellAlignment, Table, presets};
use enoki_harness::statistics::Interval;

/// What was missed.
#[derive(Default)]
pub struct Verdict {
    pub missed: Vec<String>,
    pub unjudged: Vec<String>,
}

impl Verdict {
    /// The title's first word is the benchmark's name.
    pub fn judge(&mut self, title: &str, good: bool, what: String) -> &'static str {
        if !good {
            self.missed.push(format!("{}: {what}", title.split(' ').next().unwrap_or(title)));
        }
        if good { "met" } else { "MISSED" }
    }

    /// Says what was cut, not judged and missed; whether the run is good, as one is that judges nothing.
    pub fn print(&self, cut: &[String], judged: bool) -> bool {
        told("cut", cut);
        told("not judged", &self.unjudged);
        told(if judged { "MISSED" } else { "missed, were this more than a smoke run" }, &self.missed);
        self.missed.is_empty() || !judged
    }
}

fn told(what: &str, lines: &[String]) {
    if !lines.is_empty() {
        println!("\n{what}:");
    }
    for line in lines {
        println!("  {line}");
    }
}

/// An interval as the tables have it.
pub fn between(interval: Interval) -> String {
    format!("[{:.2}-{:.2}]", interval.low, interval.high)
}

/// A table whose first column is words and whose others are figures.
pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
