//! RFC 3339 in UTC with nanoseconds, always 30 bytes, without a calendar library.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of every timestamp: `2026-11-22T10:48:00.123456789Z`.
pub const LEN: usize = 30;

/// A point in time since the Unix epoch. Times before it are told as the epoch itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp {
    pub secs: u64,
    pub nanos: u32,
}

impl Timestamp {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { secs: since.as_secs(), nanos: since.subsec_nanos() }
    }

    /// The text as bytes. Years past 9999 are told as 9999, so that the length never changes.
    pub fn to_bytes(self) -> [u8; LEN] {
        let (year, month, day) = civil(self.secs / 86_400);
        let (hour, minute, second) = (self.secs / 3600 % 24, self.secs / 60 % 60, self.secs % 60);
        let mut out = *b"0000-00-00T00:00:00.000000000Z";
        put(&mut out[0..4], year.min(9999));
        put(&mut out[5..7], month);
        put(&mut out[8..10], day);
        put(&mut out[11..13], hour);
        put(&mut out[14..16], minute);
        put(&mut out[17..19], second);
        put(&mut out[20..29], u64::from(self.nanos));
        out
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

/// Writes `value` in decimal, right-aligned over the zeros that stand there.
fn put(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of the n-th day since 1970-01-01: Howard Hinnant's `civil_from_days`, for non-negative days.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (secs, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (951_868_799, 999_999_999, "2000-02-29T23:59:59.999999999Z"),
            (1_709_164_800, 5, "2024-02-29T00:00:00.000000005Z"),
            (4_102_444_800, 0, "2100-01-01T00:00:00.000000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (1_795_344_478, 123_456_789, "2026-11-22T10:47:58.123456789Z"),
        ] {
            assert_eq!(Timestamp { secs, nanos }.to_string(), text);
        }
    }
}
