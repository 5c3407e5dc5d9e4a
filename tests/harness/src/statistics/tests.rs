use super::{Interval, added, compare, median, quantile, ratio};

/// Numbers from 0 to 999 without a pattern that matters (the constants are Knuth's).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % 1000) as f64
    }

    fn some(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn width(interval: Interval) -> f64 {
    interval.high - interval.low
}

#[test]
fn quantiles_are_interpolated() {
    let samples = [4.0, 1.0, 3.0, 2.0];
    assert_eq!(median(&samples), 2.5);
    assert_eq!(quantile(&samples, 0.0), 1.0);
    assert_eq!(quantile(&samples, 1.0), 4.0);
    assert!((quantile(&samples, 0.9) - 3.7).abs() < 1e-9);
    assert_eq!(median(&[7.0]), 7.0);
    assert!(median(&[]).is_nan());
}

#[test]
fn equal_samples_have_no_spread() {
    let (value, interval) = ratio(&[6.0; 7], &[3.0; 7]);
    assert_eq!((value, interval), (2.0, Interval { low: 2.0, high: 2.0 }));
}

#[test]
fn the_interval_holds_the_figure_and_repeats() {
    let ours: Vec<f64> = (0..40).map(|n| 20.0 + f64::from(n % 7)).collect();
    let peer: Vec<f64> = (0..40).map(|n| 10.0 + f64::from(n % 5)).collect();
    let (value, interval) = ratio(&ours, &peer);
    assert!(interval.low <= value && value <= interval.high, "{value} {interval:?}");
    assert!(interval.low > 1.5 && interval.high < 2.5, "{interval:?}");
    assert_eq!(ratio(&ours, &peer), (value, interval));
}

#[test]
fn more_samples_make_the_interval_narrower() {
    let mut draws = Draws(1);
    let (_, few) = added(&draws.some(25), &draws.some(25), 0.5);
    let (_, many) = added(&draws.some(400), &draws.some(400), 0.5);
    assert!(width(many) < width(few), "{many:?} {few:?}");
}

/// Of the true difference of two known distributions, about 95 of 100 intervals must hold it.
#[test]
fn the_interval_covers_the_truth_about_as_often_as_it_says() {
    let mut draws = Draws(7);
    // The sum of four uniform draws is round enough; the medians differ by 100.
    let mut rounded =
        |shift: f64| -> Vec<f64> { (0..20).map(|_| shift + draws.some(4).iter().sum::<f64>()).collect() };
    let held = (0..100)
        .filter(|_| {
            let (_, interval) = added(&rounded(100.0), &rounded(0.0), 0.5);
            interval.low <= 100.0 && 100.0 <= interval.high
        })
        .count();
    assert!((88..100).contains(&held), "{held} of 100");
}

#[test]
fn any_figure_can_be_compared() {
    let largest = |samples: &[f64]| quantile(samples, 1.0);
    let (value, interval) = compare(&[1.0, 5.0], &[2.0, 2.0], |a, b| largest(a) - largest(b));
    assert_eq!((value, interval), (3.0, Interval { low: -1.0, high: 3.0 }));
}
