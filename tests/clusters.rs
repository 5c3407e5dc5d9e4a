//! Compute clusters with the real Apache Spark: from nothing to ready, jobs and their ends, a pool that follows its jobs.

use enoki_harness::{Lab, eventually, is_root};
use serde_json::Value;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(120);

#[test]
fn a_cluster() {
    if !is_root() {
        return;
    }
    let lab = Lab::start(2);
    let cloud = &lab[0];
    let begun = std::time::Instant::now();
    cloud.import_spark("4.0.1");
    println!("import {:?}", begun.elapsed());
    cloud.enoki(&["cluster", "create", "lake", "--workers", "1..3", "--worker-memory", "1Gi", "--idle", "10s"]).ok();
    for _ in 0..10 { println!("{:?} {}", begun.elapsed(), cloud.enoki(&["get", "clusters", "-o", "wide"]).ok()); std::thread::sleep(Duration::from_secs(1)); }
    println!("{}", cloud.enoki(&["get", "instances", "-o", "wide"]).ok());
    println!("{}", cloud.enoki(&["describe", "cluster", "lake"]).ok());
    cloud.write("/run/hello.py", HELLO);
    println!("{}", cloud.enoki(&["cluster", "submit", "lake", "/run/hello.py", "--wait", "--", "40"]));
    println!("{}", cloud.enoki(&["cluster", "jobs", "lake", "-o", "wide"]));
    println!("{}", cloud.enoki(&["get", "events", "-o", "wide"]));
    let cluster = |what: &str, reached: &dyn Fn(&Value) -> bool| {
        eventually(what, WAIT, || {
            let status = cloud.enoki(&["get", "cluster", "lake", "-o", "json"]).ok().json()["status"].clone();
            if reached(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    };
    cluster("back at the least", &|status| status["workers"]["ready"] == 1 && status["workers"]["draining"] == 0);
    println!("{}", cloud.enoki(&["get", "instances", "-o", "wide"]).ok());
    cloud.enoki(&["delete", "cluster", "lake", "--timeout", "120s"]).ok();
    println!("{}", cloud.enoki(&["get", "instances", "-o", "wide"]));
    println!("{}", cloud.enoki(&["get", "networks", "-o", "wide"]));
    panic!("look");
}

const HELLO: &str = r#"
import sys, time
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
count = int(sys.argv[1])
def work(n):
    time.sleep(1)
    return n
print("sum", spark.sparkContext.parallelize(range(count), count).map(work).sum(), flush=True)
spark.stop()
"#;
