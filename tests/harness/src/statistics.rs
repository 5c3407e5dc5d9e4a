//! The arithmetic of the benchmarks: quantiles, and how far to trust a ratio or a difference of two of them.
//!
//! Pure and repeatable: the same samples give the same interval, since the resampling draws from a fixed seed.

/// How often the samples are drawn anew. A 95 % interval needs some thousands; more changes only its third digit.
const RESAMPLES: usize = 4000;

/// The middle 95 % of what resampling gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// The value below which the share `q` (0 to 1) of the samples lies, interpolated between neighbours.
/// NaN for no samples.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_of_sorted(&sorted, q)
}

pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// A figure of two sets of samples (a ratio of medians, say) with its bootstrap interval: both sets are drawn anew,
/// with replacement and independently of each other.
pub fn compare(a: &[f64], b: &[f64], figure: impl Fn(&[f64], &[f64]) -> f64) -> (f64, Interval) {
    let mut random = Random(0x5eed);
    let mut figures: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (a, b) = (random.resample(a), random.resample(b));
            figure(&a, &b)
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    let interval =
        Interval { low: quantile_of_sorted(&figures, 0.025), high: quantile_of_sorted(&figures, 0.975) };
    (figure(a, b), interval)
}

/// `median(a) / median(b)`.
pub fn ratio(a: &[f64], b: &[f64]) -> (f64, Interval) {
    compare(a, b, |a, b| median(a) / median(b))
}

/// The difference of the quantiles `q` of both.
pub fn added(a: &[f64], b: &[f64], q: f64) -> (f64, Interval) {
    compare(a, b, |a, b| quantile(a, q) - quantile(b, q))
}

fn quantile_of_sorted(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// SplitMix64: small, well spread, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// As many samples, sorted by nothing, some of them several times.
    fn resample(&mut self, samples: &[f64]) -> Vec<f64> {
        // The bias of the remainder is nothing at a few hundred samples out of 2^64.
        samples.iter().map(|_| samples[(self.next() % samples.len() as u64) as usize]).collect()
    }
}

#[cfg(test)]
mod tests;
