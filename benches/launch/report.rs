//! The tables, and whether the bars are met. A bar is judged by the median's figure; the interval beside it says how far to
//! trust that.

use crate::latency::Latencies;
use crate::rounds::{Score, uneven};
use crate::table::{Verdict, between, new};
use enoki_harness::Resident;
use enoki_harness::statistics::{added, median, quantile, ratio};

/// A peer of a rate, and how many times its rate ours must be.
pub struct Bar {
    /// The beginning of the peer's name.
    pub peer: &'static str,
    pub ratio: f64,
    /// Not as much as this, but more.
    pub strict: bool,
}

/// B1 and B3: rates, ours first.
pub fn rates(title: &str, ours: &Score, peers: &[&Score], bars: &[Bar], verdict: &mut Verdict) {
    println!("\n{title}");
    let several = ours.landed.len() > 1;
    let mut header = vec!["", "in flight", "starts/s", "from-to", "rounds", "CPU s/start"];
    header.extend(several.then_some("by host"));
    header.extend(["ours / this [95 %]", "bar", ""]);
    let mut table = new(&header);
    for score in std::iter::once(&ours).chain(peers) {
        let (low, high) = (quantile(&score.rates, 0.0), quantile(&score.rates, 1.0));
        let mut row = vec![
            score.name.clone(),
            score.in_flight().map_or("one order".to_owned(), |number| number.to_string()),
            format!("{:.1}", score.rate()),
            format!("{low:.1}-{high:.1}"),
            score.rates.len().to_string(),
            format!("{:.3}", median(&score.cpu)),
        ];
        if several {
            let counts: Vec<String> = score.landed.iter().map(usize::to_string).collect();
            let counts = counts.join("/");
            let what = format!("{} landed {counts} on its hosts, which is not even", score.name);
            verdict.judge(title, uneven(&score.landed) <= 1, what);
            row.push(counts);
        }
        let bar = bars.iter().find(|bar| score.name.starts_with(bar.peer));
        if std::ptr::eq(*score, ours) {
            row.extend(["", "", ""].map(str::to_owned));
        } else {
            let (value, interval) = ratio(&ours.rates, &score.rates);
            row.push(format!("{value:.2} {}", between(interval)));
            if let Some(bar) = bar {
                let good = if bar.strict { value > bar.ratio } else { value >= bar.ratio };
                let sign = if bar.strict { ">" } else { ">=" };
                let what = format!("{value:.3} x {}, not {sign} {}", score.name, bar.ratio);
                row.push(format!("{sign} {}", bar.ratio));
                row.push(verdict.judge(title, good, what).to_owned());
            }
        }
        table.add_row(row);
    }
    println!("{table}");
    for bar in bars.iter().filter(|bar| !peers.iter().any(|peer| peer.name.starts_with(bar.peer))) {
        verdict.unjudged.push(format!("{title}: against {}, which was left out", bar.peer));
    }
}

/// What chose the numbers in flight; none of it is in the other tables.
pub fn trials(scores: &[Score]) {
    println!("\ntrials that chose the number in flight, starts/s, at");
    let mut numbers: Vec<usize> =
        scores.iter().flat_map(|score| &score.trials).map(|trial| trial.in_flight).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let header: Vec<String> =
        std::iter::once(String::new()).chain(numbers.iter().map(usize::to_string)).collect();
    let mut table = new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for score in scores.iter().filter(|score| !score.trials.is_empty()) {
        let rate = |number: &usize| {
            let trial = score.trials.iter().find(|trial| trial.in_flight == *number);
            trial.map_or(String::new(), |trial| format!("{:.1}", trial.rate))
        };
        table.add_row(std::iter::once(score.name.clone()).chain(numbers.iter().map(rate)));
    }
    println!("{table}");
}

/// B2: milliseconds that Enoki adds.
pub fn latencies(title: &str, all: &[Latencies], bars: &[(f64, f64)], verdict: &mut Verdict) {
    println!("\n{title}");
    let mut table =
        new(&["host full", "samples", "", "enoki ms", "by hand ms", "added ms [95 %]", "bar ms", ""]);
    for level in all {
        for &(q, bar) in bars {
            let (value, interval) = added(&level.ours, &level.raw, q);
            let name = format!("p{:.0}", q * 100.0);
            let what = format!("{name} {value:+.1} ms on a host {} % full, not <= {bar}", level.full);
            table.add_row(vec![
                format!("{} %", level.full),
                level.ours.len().to_string(),
                name,
                format!("{:.1}", quantile(&level.ours, q)),
                format!("{:.1}", quantile(&level.raw, q)),
                format!("{value:+.1} {}", between(interval)),
                format!("<= {bar}"),
                verdict.judge(title, value <= bar, what).to_owned(),
            ]);
        }
    }
    println!("{table}");
}

/// B7: memory of a process, idle and at the end.
pub struct Memory {
    pub part: &'static str,
    pub idle: Resident,
    pub after: Resident,
    /// Megabytes (10^6 bytes), as the table has them.
    pub bar: f64,
}

pub fn memory(title: &str, all: &[Memory], verdict: &mut Verdict) {
    println!("\n{title}");
    let mut table =
        new(&["", "idle MB (not of files)", "after the launches MB (not of files)", "bar MB", ""]);
    for one in all {
        let worst = megabytes(one.idle.all.max(one.after.all));
        let what = format!("{} {worst:.1} MB, not <= {}", one.part, one.bar);
        table.add_row(vec![
            one.part.to_owned(),
            both(one.idle),
            both(one.after),
            format!("<= {}", one.bar),
            verdict.judge(title, worst <= one.bar, what).to_owned(),
        ]);
    }
    println!("{table}");
}

fn both(memory: Resident) -> String {
    format!("{:.1} ({:.1})", megabytes(memory.all), megabytes(memory.own))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
