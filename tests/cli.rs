//! The command line as its users see it: the real binary against a small server of its own on a unix socket.
//!
//! The server keeps objects and answers as the contract says; instances whose names begin with `slow` never start,
//! those with `broken` fail. What it was asked is kept, so that a test can look at it.

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use enoki_api::protocol::{Exit, TerminalSize};
use enoki_api::stream::Frame;
use enoki_api::{Code, Problem, merge::merge_patch};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// One request as the server saw it.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    target: String,
    body: Bytes,
    if_match: Option<String>,
}

impl Asked {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Default)]
struct Fake {
    objects: Mutex<BTreeMap<String, Value>>,
    asked: Mutex<Vec<Asked>>,
    watches: Mutex<u32>,
    revision: Mutex<u64>,
}

struct Cloud {
    fake: Arc<Fake>,
    folder: tempfile::TempDir,
}

impl Cloud {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake { revision: Mutex::new(10), ..Default::default() });
        let listener = tokio::net::UnixListener::bind(folder.path().join("api.sock")).unwrap();
        let app = axum::Router::new().fallback(serve).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Cloud { fake, folder }
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enoki"));
        command.args(line).env("ENOKI_SOCKET", self.folder.path().join("api.sock"));
        command.env_remove("ENOKI_PROJECT").current_dir(self.folder.path()).kill_on_drop(true);
        command
    }

    async fn run(&self, line: &[&str]) -> Ran {
        self.run_with(line, b"").await
    }

    async fn run_with(&self, line: &[&str], stdin: &[u8]) -> Ran {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // Beside the reading of what comes back; a program that does not read its input is no fault.
        let stdin = stdin.to_vec();
        tokio::spawn(async move { input.write_all(&stdin).await });
        Ran(tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await.unwrap().unwrap())
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn asked(&self, method: Method, part: &str) -> Vec<Asked> {
        let asked = self.fake.asked.lock().unwrap();
        asked.iter().filter(|a| a.method == method && a.target.contains(part)).cloned().collect()
    }
}

struct Ran(Output);

impl Ran {
    fn code(&self) -> i32 {
        self.0.status.code().unwrap()
    }
    fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }
    fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
    /// The exit code, or all that was said when it is another.
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "stdout: {}\nstderr: {}", self.out(), self.err());
        self
    }
}

fn answer(status: u16, body: Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, [("enoki-revision", "10")], axum::Json(body)).into_response()
}

fn problem(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap();
    (status, [("content-type", "application/problem+json")], serde_json::to_vec(&problem).unwrap())
        .into_response()
}

async fn serve(State(fake): State<Arc<Fake>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &fake).await.ok();
    let asked = Asked {
        method: parts.method.clone(),
        target: parts.uri.to_string(),
        body: axum::body::to_bytes(body, 1 << 30).await.unwrap(),
        if_match: parts.headers.get("if-match").map(|value| value.to_str().unwrap().to_owned()),
    };
    fake.asked.lock().unwrap().push(asked.clone());
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let name = path.rsplit('/').next().unwrap();
    match name {
        "exec" | "console" => return exec(upgrade, &path, &query),
        "logs" => return "one\ntwo\n".into_response(),
        "content" | "pull" => {
            return answer(201, json!({"kind": "image", "name": "x", "size": asked.body.len()}));
        }
        "orphans" => return answer(200, json!({"items": [orphan()], "revision": 1, "continue": null})),
        "adopt" => {
            let taken = json!([{"name": "default/lost1", "uid": orphan()["uid"]}]);
            let refused = json!([{"name": "default/lost2", "uid": "u", "reason": "the name is taken"}]);
            return answer(200, json!({"adopted": taken, "refused": refused}));
        }
        "events" => return answer(200, json!({"items": [], "revision": 1, "continue": null})),
        "explain" => {
            let reasons = json!([{"code": "no_capacity", "message": "2Gi of memory asked, 1Gi free"}]);
            return answer(200, json!({"hosts": [{"host": "node1", "fits": false, "reasons": reasons}]}));
        }
        "stats" => return answer(200, json!({"items": [stats(&fake)]})),
        _ if query.contains("watch=true") => return watch(&fake, &query),
        _ => {}
    }
    store(&fake, &asked, &path, &query)
}

fn orphan() -> Value {
    let uid = "6f0c2b0e-5a3f-4c1e-9d0a-2b7c5d8e9f10";
    json!({"project": "default", "name": "lost1", "uid": uid, "phase": "running"})
}

/// A CPU that is half busy, whatever the time.
fn stats(_fake: &Fake) -> Value {
    let at = jiff::Timestamp::now();
    json!({
        "name": "web1", "uid": "u", "at": at, "cpu_usage_ns": at.as_nanosecond() as u64 / 2,
        "memory_bytes": 100 << 20, "pids": 3, "read_bytes": 0, "write_bytes": 0,
    })
}

/// The first watch breaks after one change; the one that resumes there gets another and is told to list again.
fn watch(fake: &Fake, query: &str) -> Response {
    let mut watches = fake.watches.lock().unwrap();
    *watches += 1;
    let event = |kind: &str, id: u64, phase: &str| {
        let data = json!({"kind": "instance", "name": "web1", "status": {"phase": phase}});
        format!("event: {kind}\nid: {id}\ndata: {data}\n\n")
    };
    let text = match *watches {
        1 => event("put", 11, "starting"),
        2 if query.contains("from=11") => format!(": still there\n\n{}", event("delete", 12, "deleting")),
        _ => return problem(Problem::new(Code::Forbidden, "that is enough")),
    };
    ([("content-type", "text/event-stream")], text).into_response()
}

fn store(fake: &Fake, asked: &Asked, path: &str, query: &str) -> Response {
    let mut objects = fake.objects.lock().unwrap();
    let next_revision = || {
        let mut revision = fake.revision.lock().unwrap();
        *revision += 1;
        *revision
    };
    let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    let is_list = matches!(parts.len(), 1 | 3);
    let name = parts.last().unwrap().to_string();
    let dry_run = query.contains("dry_run=true");
    let missing = || problem(Problem::not_found(format!("{name} here")).hint("look again"));
    match (asked.method.as_str(), is_list) {
        ("GET", true) => {
            let all: Vec<Value> = objects
                .iter()
                .filter(|(key, _)| key.rsplit_once('/').is_some_and(|(folder, _)| folder == path))
                .map(|(_, object)| object.clone())
                .collect();
            // Pages of two.
            let from = query.split('&').find_map(|p| p.strip_prefix("continue=")?.parse().ok()).unwrap_or(0);
            let page: Vec<_> = all.iter().skip(from).take(2).cloned().collect();
            let more = (all.len() > from + 2).then(|| (from + 2).to_string());
            answer(200, json!({"items": page, "revision": 10, "continue": more}))
        }
        ("GET", false) => objects.get(path).map_or_else(missing, |object| answer(200, object.clone())),
        ("POST", true) | ("PUT", false) => {
            let body = asked.json();
            let name = body["name"].as_str().unwrap().to_owned();
            let key = if is_list { format!("{path}/{name}") } else { path.to_owned() };
            let network = body["spec"]["nics"]["eth0"]["network"].as_str().unwrap_or("default");
            if network != "default"
                && !objects.keys().any(|key| key.ends_with(&format!("/networks/{network}")))
            {
                let detail = format!("there is no network {network} in project default");
                return problem(Problem::new(Code::UnknownReference, detail));
            }
            if body["spec"]["cpu"].is_number() {
                return problem(
                    Problem::new(Code::UnknownField, "there is no field `spec.cpu`").field("spec.cpu"),
                );
            }
            let old = objects.get(&key).cloned();
            if old.is_some() && is_list {
                return problem(Problem::new(Code::AlreadyExists, format!("{name} exists already")));
            }
            let status = if old.is_some() { 200 } else { 201 };
            let mut object = old.clone().unwrap_or_else(|| new_object(&parts, &name));
            for field in ["spec", "labels"] {
                if let Some(value) = body.get(field) {
                    object[field] = value.clone();
                }
            }
            if dry_run {
                let hosts = json!([{"host": "node1", "fits": true, "reasons": []}]);
                return answer(200, json!({"plan": object, "hosts": hosts}));
            }
            if old.as_ref() != Some(&object) {
                object["revision"] = next_revision().into();
            }
            objects.insert(key, object.clone());
            let waits = query.contains("wait=");
            let late = waits && object["status"]["phase"] != "running";
            answer(if late { 202 } else { status }, object)
        }
        ("PATCH", false) => {
            let Some(object) = objects.get_mut(path) else { return missing() };
            merge_patch(object, &asked.json());
            object["generation"] = (object["generation"].as_u64().unwrap() + 1).into();
            if object["kind"] == "instance" {
                object["status"]["observed_generation"] = object["generation"].clone();
                let too_much = object["spec"]["memory"] == "1Ti";
                object["status"]["limits"] = match (too_much, name.starts_with("slow")) {
                    (true, _) => json!({"state": "infeasible", "reason": "1Ti asked, 4Gi there"}),
                    (_, true) => json!({"state": "deferred", "reason": "memory is in use"}),
                    _ => json!({"state": "applied"}),
                };
            }
            answer(200, object.clone())
        }
        ("DELETE", false) if name.starts_with("slow") => {
            objects.get(path).map_or_else(missing, |object| answer(202, object.clone()))
        }
        ("DELETE", false) => objects.remove(path).map_or_else(missing, |object| answer(200, object)),
        // A verb on an object.
        ("POST", false) => {
            let key = path.rsplit_once('/').unwrap().0;
            let Some(object) = objects.get_mut(key) else { return missing() };
            object["status"]["phase"] = if name == "stop" { "stopped" } else { "running" }.into();
            answer(200, object.clone())
        }
        _ => problem(Problem::new(Code::MethodNotAllowed, "not that")),
    }
}

fn new_object(parts: &[&str], name: &str) -> Value {
    let plural = if parts.len() > 2 { parts[2] } else { parts[0] };
    let mut object = json!({
        "kind": plural.trim_end_matches('s'), "name": name, "uid": enoki_api::Uid::random(), "labels": {},
        "generation": 1, "revision": 0, "created_at": jiff::Timestamp::now(), "spec": {}, "status": {},
    });
    if parts.len() > 2 {
        object["project"] = parts[1].into();
    }
    if plural == "instances" {
        object["status"] = match name {
            name if name.starts_with("slow") => {
                json!({"phase": "pending", "reason": "no_capacity", "message": "no host has 2Gi", "observed_generation": 1})
            }
            name if name.starts_with("broken") => {
                json!({"phase": "failed", "reason": "wrapper", "message": "it is gone", "observed_generation": 1})
            }
            _ => json!({
                "phase": "running", "host": "node1", "observed_generation": 1,
                "nics": {"eth0": {"network": "default", "address": "198.18.0.2", "mac": "02:00:00:00:00:01"}},
            }),
        };
    }
    object
}

/// Runs nothing; what comes back depends on the first word of the command.
fn exec(upgrade: Option<WebSocketUpgrade>, path: &str, query: &str) -> Response {
    if path.contains("/stopped/") {
        return problem(
            Problem::new(Code::NotRunning, "instance stopped does not run").hint("enoki start stopped"),
        );
    }
    let query = query.to_owned();
    upgrade.unwrap().on_upgrade(move |socket| program(socket, query))
}

async fn program(mut socket: WebSocket, query: String) {
    let mut say = async |frame: Frame| socket.send(Message::Binary(frame.encode())).await.unwrap();
    let exit = |code, error: Option<&str>| Frame::Exit(Exit { code, error: error.map(str::to_owned) });
    if query.contains("command=fail") {
        say(Frame::Stdout(Bytes::from_static(b"out\0\xff\n"))).await;
        say(Frame::Stderr(Bytes::from_static(b"err\n"))).await;
        return say(exit(7, None)).await;
    }
    if query.contains("command=killed") {
        return say(exit(137, None)).await;
    }
    if query.contains("command=nosuch") {
        return say(exit(125, Some("nosuch: not found"))).await;
    }
    if query.contains("command=drop") {
        return;
    }
    // `cat` echoes input until its end; a terminal's sizes are told too.
    while let Some(Ok(Message::Binary(bytes))) = socket.recv().await {
        let reply = match Frame::decode(bytes).unwrap() {
            Frame::Stdin(bytes) if &bytes[..] == b"\x04" => exit(0, None),
            Frame::Stdin(bytes) => Frame::Stdout(bytes),
            Frame::CloseStdin => exit(0, None),
            Frame::Resize(TerminalSize { columns, rows }) => {
                Frame::Stdout(format!("size {columns}x{rows}\n").into())
            }
            other => panic!("{other:?} is not a client's"),
        };
        let last = matches!(reply, Frame::Exit(_));
        socket.send(Message::Binary(reply.encode())).await.unwrap();
        if last {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_what_happened() {
    let cloud = Cloud::start().await;
    let ran = cloud.run(&["run", "web1", "--image", "a", "--memory", "1Gi", "--wait"]).await.expect(0);
    assert_eq!(ran.out(), "instance/web1 running\n");
    let sent = cloud.asked(Method::POST, "/v1/projects/default/instances?wait=running&timeout=5000ms");
    assert_eq!(
        sent[0].json(),
        json!({"kind": "instance", "name": "web1", "spec": {"image": "a", "memory": "1Gi"}})
    );

    let ran = cloud.run(&["run", "web1", "--image", "a"]).await.expect(1);
    assert_eq!(ran.err(), "error: web1 exists already (already_exists)\n");
    let ran = cloud.run(&["run", "slow1", "--image", "a", "--wait", "--timeout", "1s"]).await.expect(3);
    assert_eq!(
        ran.err(),
        "error: not done after 1s: instance/slow1 is pending (no_capacity): no host has 2Gi\n"
    );
    let ran = cloud.run(&["run", "broken1", "--image", "a", "--wait"]).await.expect(1);
    assert_eq!(ran.err(), "error: instance/broken1 is failed (wrapper): it is gone\n");
    let ran = cloud.run(&["get", "instance", "none"]).await.expect(1);
    assert_eq!(ran.err(), "error: there is no none here (not_found)\nhint: look again\n");
    assert_eq!(ran.out(), "");
    for wrong in [
        &["run", "x"][..],
        &["run", "x", "--image", "a", "--memory", "1Gx"],
        &["get", "cats"],
        &["resize", "web1"],
        &["watch", "events"],
        &["run", "x", "--image", "a", "--env", "SECRET"],
    ] {
        let ran = cloud.run(wrong).await.expect(2);
        assert!(ran.out().is_empty() && ran.err().starts_with("error: "), "{wrong:?}: {}", ran.err());
    }
    let absent = ["--socket", "/nonexistent/api.sock", "get", "hosts"];
    assert!(cloud.run(&absent).await.expect(1).err().ends_with("hint: is the cloud up? try `enoki up`\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_every_format_and_whole() {
    let cloud = Cloud::start().await;
    for name in ["a", "b", "c"] {
        cloud.run(&["run", name, "--image", "enoki/debian:12", "--cpus", "0.5"]).await.expect(0);
    }
    let table = cloud.run(&["get", "instances"]).await.expect(0).out();
    let lines: Vec<&str> = table.lines().collect();
    let head: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(head, ["NAME", "PHASE", "REASON", "HOST", "ADDRESS", "CPUS", "MEMORY", "IMAGE", "AGE"]);
    let row: Vec<&str> = lines[3].split_whitespace().collect();
    assert_eq!(row[..8], ["c", "running", "-", "node1", "198.18.0.2", "0.5", "-", "enoki/debian:12"]);
    assert!(!table.contains('\x1b'), "no colour where nobody looks");

    let list: Value =
        serde_json::from_str(&cloud.run(&["get", "instance", "-o", "json"]).await.out()).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 3, "all pages");
    assert_eq!((&list["revision"], &list["continue"]), (&json!(10), &Value::Null));
    let one: Value =
        serde_json::from_str(&cloud.run(&["get", "instance/b", "-o", "json"]).await.out()).unwrap();
    assert_eq!((&one["name"], &one["spec"]["cpus"]), (&json!("b"), &json!("0.5")));
    let names = cloud.run(&["get", "instances", "-o", "name"]).await.expect(0).out();
    assert_eq!(names, "instance/a\ninstance/b\ninstance/c\n");
    assert!(
        cloud.run(&["get", "instance", "a", "-o", "yaml"]).await.out().contains("image: enoki/debian:12\n")
    );
    let ran = cloud.run(&["-p", "other", "get", "volumes"]).await.expect(0);
    assert_eq!((ran.out().as_str(), ran.err().as_str()), ("", "no volumes in project other\n"));
    let sheet = cloud.run(&["describe", "instance", "a"]).await.expect(0).out();
    assert!(
        sheet.contains("Phase:") && sheet.contains("198.18.0.2 (02:00:00:00:00:01) on default"),
        "{sheet}"
    );
    cloud.run(&["run", "slow1", "--image", "a"]).await.expect(0);
    let sheet = cloud.run(&["describe", "instance", "slow1"]).await.expect(0).out();
    assert!(sheet.contains("node1: does not fit (no_capacity: 2Gi of memory asked, 1Gi free)"), "{sheet}");
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_makes_what_the_file_says() {
    let cloud = Cloud::start().await;
    let file =
        "kind: instance\nname: web1\nspec: {image: a, cpus: 1.5}\n---\nkind: volume\nname: data\nspec: {}\n";
    cloud.file("web.yaml", file);
    let plan = cloud.run(&["apply", "-f", "web.yaml", "--dry-run"]).await.expect(0);
    assert!(plan.out().contains("volume/data would be created\n"), "{}", plan.out());
    assert!(plan.out().ends_with("instance/web1 would be created\n  node1: fits\n"), "{}", plan.out());
    assert!(cloud.fake.objects.lock().unwrap().is_empty());
    // What others refer to goes first, whatever the file's order.
    let ran = cloud.run(&["apply", "-f", "web.yaml"]).await.expect(0);
    assert_eq!(ran.out(), "volume/data created\ninstance/web1 created\n");
    let ran = cloud.run_with(&["apply", "-f", "-"], file.as_bytes()).await.expect(0);
    assert_eq!(ran.out(), "volume/data unchanged\ninstance/web1 unchanged\n");

    let key = "/v1/projects/default/instances/web1";
    cloud.fake.objects.lock().unwrap().get_mut(key).unwrap()["spec"]["restart_count"] = json!(4);
    let ran = cloud.run_with(&["apply", "-f", "-"], file.replace("1.5", "2").as_bytes()).await.expect(0);
    assert_eq!(ran.out(), "volume/data unchanged\ninstance/web1 configured\n");
    let put = cloud.asked(Method::PUT, key).pop().unwrap();
    assert_eq!(put.json()["spec"], json!({"image": "a", "cpus": 2, "restart_count": 4}));
    assert!(put.if_match.is_some());

    // In a dry run an object may refer to another new one of the same file.
    let file = "kind: instance\nname: b1\nspec: {image: a, nics: {eth0: {network: blue}}}\n---\n\
                kind: network\nname: blue\nspec: {cidr: 198.18.100.0/24}\n";
    let ran = cloud.run_with(&["apply", "--dry-run", "-f", "-"], file.as_bytes()).await.expect(0);
    assert!(ran.out().ends_with("instance/b1 would be created with the others\n"), "{}", ran.out());
    // One that is refused does not keep the others back, and its field is told.
    let file = "kind: instance\nname: bad\nspec: {image: a, cpu: 1}\n---\nkind: instance\nname: good\nspec: {image: a}\n";
    let ran = cloud.run_with(&["apply", "-f", "-"], file.as_bytes()).await.expect(1);
    assert_eq!(ran.out(), "instance/good created\n");
    assert!(ran.err().contains("error: there is no field `spec.cpu` (unknown_field)\nfield: spec.cpu\n"));
    for (text, told) in [
        (
            "kind: volume\nname: a\nspec:\n  type: local\n  type: x\n",
            "error: bad.yaml:5:3: spec: the key `type` stands twice\n",
        ),
        ("kind: volume\nname: \"a\nspec: {}\n", "error: bad.yaml:"),
        ("name: a\n", "error: bad.yaml:1:1: an object needs a `kind`"),
    ] {
        cloud.file("bad.yaml", text);
        let ran = cloud.run(&["apply", "-f", "bad.yaml"]).await.expect(1);
        assert!(ran.err().starts_with(told), "{}", ran.err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_passes_bytes_and_the_exit_code() {
    let cloud = Cloud::start().await;
    let ran = cloud.run(&["exec", "web1", "--", "fail", "a b", "--flag"]).await.expect(7);
    assert_eq!(ran.0.stdout, b"out\0\xff\n");
    assert_eq!(ran.err(), "err\n");
    let asked = &cloud.asked(Method::GET, "/exec")[0];
    assert!(asked.target.ends_with("exec?command=fail&command=a%20b&command=--flag&tty=false&stdin=false"));
    cloud.run(&["exec", "web1", "--", "killed"]).await.expect(137);
    assert_eq!(cloud.run(&["exec", "web1", "nosuch"]).await.expect(125).err(), "error: nosuch: not found\n");
    let ran = cloud.run(&["exec", "stopped", "--", "true"]).await.expect(125);
    assert!(ran.err().ends_with("(not_running)\nhint: enoki start stopped\n"), "{}", ran.err());
    cloud.run(&["exec", "web1", "--", "drop"]).await.expect(125);
    // More than the frames and the channels hold, and every byte there is.
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let ran = cloud.run_with(&["exec", "-i", "web1", "--", "cat"], &input).await.expect(0);
    assert!(ran.0.stdout == input);
}

/// Whether a terminal hands over lines (as a shell leaves it) or keys.
fn takes_lines(terminal: &impl AsFd) -> bool {
    let mode = nix::sys::termios::tcgetattr(terminal).unwrap();
    mode.local_flags.contains(nix::sys::termios::LocalFlags::ICANON)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_raw_while_it_lasts_and_as_before_after() {
    let cloud = Cloud::start().await;
    for by_signal in [false, true] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = cloud.command(&["exec", "-it", "web1", "--", "cat"]);
        for stream in [Command::stdin, Command::stdout, Command::stderr] {
            stream(&mut command, Stdio::from(pty.slave.try_clone().unwrap()));
        }
        // SAFETY: both calls are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // The kernel tells a session about its controlling terminal's new size.
                if nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let mut master = tokio::fs::File::from_std(pty.master.try_clone().unwrap().into());
        master.write_all(b"hello\n").await.unwrap();
        read_until(&mut master, "hello").await;
        // Raw from the first echo on; the first may have come from the terminal itself.
        while takes_lines(&pty.slave) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let size = nix::libc::winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel reads one winsize, which `size` is.
        assert_eq!(unsafe { nix::libc::ioctl(pty.master.as_raw_fd(), nix::libc::TIOCSWINSZ, &size) }, 0);
        read_until(&mut master, "size 99x33").await;
        if by_signal {
            let pid = nix::unistd::Pid::from_raw(child.id().unwrap() as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        } else {
            master.write_all(b"\x04").await.unwrap();
        }
        let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(if by_signal { 143 } else { 0 }));
        assert!(takes_lines(&pty.slave), "by signal: {by_signal}");
    }
}

async fn read_until(from: &mut tokio::fs::File, text: &str) {
    let mut seen = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut buffer = [0; 256];
            let count = from.read(&mut buffer).await.unwrap();
            seen.extend_from_slice(&buffer[..count]);
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(10), read).await;
    assert!(done.is_ok(), "no `{text}` in {:?}", String::from_utf8_lossy(&seen));
}

#[tokio::test(flavor = "multi_thread")]
async fn life_goes_its_way() {
    let cloud = Cloud::start().await;
    for name in ["web1", "slow1"] {
        cloud.run(&["run", name, "--image", "a"]).await.expect(0);
    }
    assert_eq!(cloud.run(&["stop", "web1"]).await.expect(0).out(), "instance/web1 stopped\n");
    assert_eq!(cloud.run(&["start", "web1"]).await.expect(0).out(), "instance/web1 started\n");
    cloud.run(&["restart", "web1", "--no-wait"]).await.expect(0);
    assert_eq!(
        cloud.asked(Method::POST, "/restart")[0].target,
        "/v1/projects/default/instances/web1/restart"
    );
    let ran = cloud.run(&["rebuild", "web1", "--image", "b"]).await.expect(0);
    assert!(ran.err().contains("will be lost"));
    assert_eq!(cloud.asked(Method::POST, "/rebuild")[0].json(), json!({"image": "b"}));

    let ran = cloud.run(&["resize", "web1", "--memory", "512Mi", "--cpus", "none"]).await.expect(0);
    assert_eq!(ran.out(), "instance/web1 resized\n");
    assert_eq!(
        cloud.asked(Method::PATCH, "web1")[0].json(),
        json!({"spec": {"memory": "512Mi", "cpus": null}})
    );
    let ran = cloud.run(&["resize", "web1", "--memory", "1Ti"]).await.expect(1);
    assert!(ran.err().contains("keeps its old limits: 1Ti asked, 4Gi there"), "{}", ran.err());
    let ran = cloud.run(&["resize", "slow1", "--memory", "1Mi", "--timeout", "1s"]).await.expect(3);
    assert!(ran.err().contains("limits deferred (memory is in use)"), "{}", ran.err());

    cloud.run(&["label", "instance", "web1", "tier=web", "zone-"]).await.expect(0);
    assert_eq!(
        cloud.asked(Method::PATCH, "web1").pop().unwrap().json(),
        json!({"labels": {"tier": "web", "zone": null}})
    );
    assert_eq!(cloud.run(&["delete", "instance", "web1"]).await.expect(0).out(), "instance/web1 deleted\n");
    let ran = cloud.run(&["delete", "instance/slow1", "--timeout", "1s"]).await.expect(3);
    assert!(ran.err().contains("instance/slow1 is pending (no_capacity)"), "{}", ran.err());
    cloud.run(&["delete", "instance", "web1"]).await.expect(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_things_are_made_and_read() {
    let cloud = Cloud::start().await;
    let line = ["network", "create", "blue", "--type", "local", "--cidr", "198.18.100.0/24"];
    assert_eq!(cloud.run(&line).await.expect(0).out(), "network/blue created\n");
    let made = cloud.asked(Method::POST, "/networks")[0].json();
    assert_eq!(made["spec"], json!({"type": "local", "cidr": "198.18.100.0/24"}));
    cloud.run(&["network", "create", "x", "--cidr", "198.18.100.0"]).await.expect(2);
    let line = ["secret", "create", "db", "--from-file", "password=-"];
    let ran = cloud.run_with(&line, b"hunter2\n").await.expect(0);
    assert!(!ran.out().contains("hunter2") && !ran.err().contains("hunter2"));
    assert_eq!(cloud.asked(Method::POST, "/secrets")[0].json()["spec"]["data"]["password"], "hunter2\n");
    cloud.run(&["host", "cordon", "node1"]).await.expect(1);
    assert_eq!(cloud.asked(Method::PATCH, "/v1/hosts/node1")[0].json(), json!({"spec": {"cordoned": true}}));

    let archive = vec![7u8; 1_000_000];
    std::fs::write(cloud.folder.path().join("image.tar"), &archive).unwrap();
    cloud.run(&["image", "import", "enoki/debian:12", "image.tar"]).await.expect(0);
    let asked = &cloud.asked(Method::POST, "/images/")[0];
    assert_eq!(asked.target, "/v1/projects/default/images/enoki%2Fdebian%3A12/content");
    assert!(asked.body == archive);
    cloud.run(&["image", "import", "x", "nosuch.tar"]).await.expect(1);
    for (words, require) in [
        (&["--require", "zone=a", "--require", "disk=fast"][..], json!(["zone=a", "disk=fast"])),
        (&[], json!([])),
        (&["--none"], json!(null)),
    ] {
        cloud.run(&[&["image", "pull", "enoki/debian:12"], words].concat()).await.expect(0);
        let asked = cloud.asked(Method::POST, "/pull").pop().expect("a request");
        assert_eq!(asked.target, "/v1/projects/default/images/enoki%2Fdebian%3A12/pull");
        assert_eq!(asked.json(), json!({"require": require}));
    }

    assert_eq!(cloud.run(&["logs", "web1", "--tail", "2"]).await.expect(0).out(), "one\ntwo\n");
    assert!(cloud.asked(Method::GET, "/logs")[0].target.ends_with("/logs?tail=2"));
    let top = cloud.run(&["top", "--interval", "200ms"]).await.expect(0).out();
    assert!(top.contains("50.0%") && top.contains("100Mi"), "{top}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(cloud.run(&["completion", shell]).await.expect(0).out().contains("enoki"));
    }
    assert_eq!(cloud.run(&["get", "orphans"]).await.expect(0).err(), "no orphans\n");
    cloud.fake.objects.lock().unwrap().insert("/v1/hosts/node1".into(), new_object(&["hosts"], "node1"));
    let ran = cloud.run(&["get", "orphans"]).await.expect(0);
    assert!(ran.out().contains("default   lost1   running   node1"), "{}", ran.out());
    let ran = cloud.run(&["adopt", "--orphans"]).await.expect(1);
    assert_eq!(ran.out(), "instance default/lost1 adopted\n");
    assert_eq!(ran.err(), "error: instance default/lost2 stays an orphan: the name is taken\n");
    assert_eq!(cloud.asked(Method::POST, "/v1/hosts/node1/orphans/adopt")[0].json(), json!({}));
    cloud.run(&["host", "cordon", "node1"]).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_where_it_was() {
    let cloud = Cloud::start().await;
    let ran = cloud.run(&["watch", "instances", "-o", "json"]).await.expect(1);
    let lines: Vec<Value> = ran.out().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines.iter().map(|line| (line["type"].as_str().unwrap(), &line["revision"])).collect();
    assert_eq!(told, [("put", &json!(11)), ("delete", &json!(12))]);
    assert!(ran.err().contains("that is enough (forbidden)"));
    let asked = cloud.asked(Method::GET, "watch=true");
    let from: Vec<_> = asked.iter().map(|a| a.target.rsplit_once("from=").unwrap().1).collect();
    assert_eq!(from, ["10", "11", "12"]);
}
