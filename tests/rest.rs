//! Every REST convention, driven by curl alone inside a real cloud.

use enoki_harness::{Cloud, is_root};
use std::path::Path;
use std::time::Duration;

#[test]
fn a_script_with_curl_and_nothing_else() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.import_tiny();
    cloud.place(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rest.sh"), "/tmp/rest.sh");
    let mut script = cloud.command("sh");
    script.arg("/tmp/rest.sh");
    let output = enoki_harness::bounded(&mut script, b"", Duration::from_secs(300)).ok();
    assert!(output.text().ends_with("every convention holds"), "{}", output.text());
}
