//! Why a test failed, told once more after the logs: what prints a test's end alone would show the logs and not the reason.

use std::panic;
use std::sync::{Mutex, Once};

/// Of each, in characters: some carry the logs with them, which stand above already.
const LONGEST: usize = 2000;

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Remembers every panic of this process from now on, and still tells it as before.
pub fn remember() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if let Ok(mut seen) = SEEN.lock() {
                seen.push(info.to_string().chars().take(LONGEST).collect());
            }
            before(info);
        }));
    });
}

/// Every panic so far, the oldest first.
pub fn told() -> String {
    SEEN.lock().map(|seen| seen.join("\n")).unwrap_or_default()
}
