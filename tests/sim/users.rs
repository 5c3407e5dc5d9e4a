//! Users: they ask the real API for all sorts of things, one of the servers each time, and remember what they were told.

use crate::clock;
use crate::dice::Dice;
use crate::host::IMAGES;
use crate::law::{Law, short};
use crate::server::Server;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use enoki::state::Snapshot;
use enoki_api::instance::Instance;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tower::ServiceExt;

pub const PROJECT: &str = "default";
/// Instances by name.
const NAMES: u64 = 10;
/// A request without an answer by then is given up: nobody knows what became of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is known of the instance that has a name, by the answers that came.
#[derive(Clone, Default)]
struct Known {
    /// Of the newest answer.
    told: Option<Instance>,
    /// Something was asked and not answered, or answered with a shrug: anything may have been done.
    unsure: bool,
    /// Somebody asked for its end.
    deleting: bool,
}

/// A request under way.
struct Asked {
    at: Duration,
    what: String,
    name: Option<String>,
    deletes: bool,
    answer: Arc<Mutex<Option<(StatusCode, Value)>>>,
}

pub struct Users {
    dice: Dice,
    law: Law,
    asked: Vec<Asked>,
    known: BTreeMap<String, Known>,
}

impl Users {
    pub fn new(seed: u64, law: Law) -> Self {
        Users { dice: Dice::new(seed, "users"), law, asked: Vec::new(), known: BTreeMap::new() }
    }

    /// Sends one request by a server that is up.
    fn ask(
        &mut self,
        servers: &[Server],
        method: Method,
        path: &str,
        body: Value,
        name: Option<&str>,
        deletes: bool,
    ) {
        let up: Vec<&Server> = servers.iter().filter(|server| server.api().is_some()).collect();
        if up.is_empty() {
            return;
        }
        let server = *self.dice.pick(&up);
        let Some(api) = server.api() else { return };
        let what = format!("{method} {path} {body}");
        self.law.note("user", format!("asks {}: {what}", server.node.name));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) })
            .expect("a request");
        let answer = Arc::new(Mutex::new(None));
        let slot = answer.clone();
        server.node.spawn(async move {
            let Ok(response) = api.oneshot(request).await;
            let status = response.status();
            let Ok(bytes) = axum::body::to_bytes(response.into_body(), 1 << 20).await else { return };
            let value = serde_json::from_slice(&bytes).unwrap_or_default();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((status, value));
        });
        self.asked.push(Asked { at: clock::now(), what, name: name.map(str::to_owned), deletes, answer });
    }

    /// Takes in the answers that have come.
    pub fn listen(&mut self) {
        let mut waiting = Vec::new();
        for asked in std::mem::take(&mut self.asked) {
            let answer = asked.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
            match answer {
                None if clock::now() - asked.at < PATIENCE => waiting.push(asked),
                None => self.shrug(&asked, "no answer"),
                Some((status, value)) => self.take(&asked, status, &value),
            }
        }
        self.asked.extend(waiting);
    }

    fn shrug(&mut self, asked: &Asked, why: &str) {
        self.law.note("user", format!("gives up: {} ({why})", asked.what));
        if let Some(name) = &asked.name {
            let known = self.known.entry(name.clone()).or_default();
            known.unsure = true;
            known.deleting |= asked.deletes;
        }
    }

    fn take(&mut self, asked: &Asked, status: StatusCode, value: &Value) {
        if status.is_server_error() {
            return self.shrug(asked, &format!("{status} {}", value["code"]));
        }
        self.law.note("user", format!("is told {status} {}: {}", value["code"], asked.what));
        let Some(name) = asked.name.as_ref().filter(|_| status.is_success()) else { return };
        let Ok(told) = serde_json::from_value::<Instance>(value.clone()) else { return };
        self.law.count("answers");
        let known = self.known.entry(name.clone()).or_default();
        let old = known.told.as_ref().filter(|old| old.uid == told.uid);
        if old.is_none() {
            // Another one has the name now; whoever had it before is gone, or this would not be.
            *known = Known { unsure: known.unsure, ..Known::default() };
        }
        known.deleting |= asked.deletes;
        if old_generation(known) <= told.generation {
            known.told = Some(told);
        }
    }

    /// One of the things that users do.
    pub fn act(&mut self, servers: &[Server], hosts: &[String]) {
        let name = format!("i{}", self.dice.below(NAMES));
        let base = format!("/v1/projects/{PROJECT}/instances");
        let one = format!("{base}/{name}");
        let verb = |verb: &str| format!("{one}/{verb}");
        match self.dice.below(100) {
            0..=34 => {
                let spec = self.spec();
                let body = json!({"name": name, "labels": {"app": name}, "spec": spec});
                self.ask(servers, Method::POST, &base, body, Some(&name), false);
            }
            35..=46 => self.ask(servers, Method::DELETE, &one, Value::Null, Some(&name), true),
            47..=56 => {
                let memory = format!("{}Mi", 64 * (1 + self.dice.below(8)));
                let body = json!({"spec": {"memory": memory, "pids": 10 + self.dice.below(90)}});
                self.ask(servers, Method::PATCH, &one, body, Some(&name), false);
            }
            57..=64 => self.ask(servers, Method::POST, &verb("stop"), Value::Null, Some(&name), false),
            65..=75 => self.ask(servers, Method::POST, &verb("start"), Value::Null, Some(&name), false),
            76..=80 => self.ask(servers, Method::POST, &verb("restart"), Value::Null, Some(&name), false),
            81..=86 => {
                let body = json!({"image": self.dice.pick(&IMAGES)});
                self.ask(servers, Method::POST, &verb("rebuild"), body, Some(&name), false);
            }
            87..=91 => {
                let cordoned = self.dice.chance(500);
                let host = self.dice.pick(hosts).clone();
                self.cordon(servers, &host, cordoned);
            }
            92..=94 => {
                let host = self.dice.pick(hosts).clone();
                let body = json!({"labels": {"zone": if self.dice.chance(500) { "a" } else { "b" }}});
                self.ask(servers, Method::PATCH, &format!("/v1/hosts/{host}"), body, None, false);
            }
            95..=96 => {
                let host = self.dice.pick(hosts).clone();
                self.adopt(servers, &host);
            }
            _ => self.ask(servers, Method::GET, &one, Value::Null, Some(&name), false),
        }
    }

    fn spec(&mut self) -> Value {
        let network = *self.dice.pick(&["default", "blue", "wide"]);
        let mut nic = json!({"network": network});
        if network == "blue" && self.dice.chance(500) {
            nic["address"] = format!("198.18.100.{}", 2 + self.dice.below(8)).into();
        }
        let mut spec = json!({
            "image": self.dice.pick(&IMAGES),
            "memory": format!("{}Mi", 64 * (1 + self.dice.below(8))),
            "cpus": "0.5",
            "pids": 50,
            "nics": {"eth0": nic},
            "stop_grace": "1s",
        });
        if self.dice.chance(200) {
            spec["placement"] = json!({"avoid": ["zone=b"]});
        }
        spec
    }

    /// The networks that instances are put on.
    pub fn make_networks(&mut self, servers: &[Server]) {
        for (name, spec) in [
            ("blue", json!({"cidr": "198.18.100.0/24"})),
            ("wide", json!({"cidr": "198.18.101.0/24", "type": "vxlan"})),
        ] {
            let body = json!({"name": name, "spec": spec});
            self.ask(servers, Method::POST, &format!("/v1/projects/{PROJECT}/networks"), body, None, false);
        }
    }

    pub fn cordon(&mut self, servers: &[Server], host: &str, cordoned: bool) {
        let body = json!({"spec": {"cordoned": cordoned}});
        self.ask(servers, Method::PATCH, &format!("/v1/hosts/{host}"), body, None, false);
    }

    /// Only the leader knows of orphans; the others answer that there are none.
    pub fn adopt(&mut self, servers: &[Server], host: &str) {
        for server in servers.iter().filter(|server| server.leads()) {
            let only = std::slice::from_ref(server);
            self.ask(
                only,
                Method::POST,
                &format!("/v1/hosts/{host}/orphans/adopt"),
                Value::Null,
                None,
                false,
            );
        }
    }

    /// All that there is.
    pub fn delete_all(&mut self, servers: &[Server], world: &Snapshot) {
        for row in world.instances.of(Some(PROJECT)).filter(|row| row.object.deleted_at.is_none()) {
            let name = row.object.name.clone();
            let path = format!("/v1/projects/{PROJECT}/instances/{name}");
            self.ask(servers, Method::DELETE, &path, Value::Null, Some(&name), true);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    /// The store was lost: nothing that was told can be held against it.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// I3: what was acknowledged is there.
    pub fn check(&self, world: &Snapshot) -> Result<(), String> {
        for (name, known) in &self.known {
            let Some(told) = known.told.as_ref().filter(|_| !known.deleting) else { continue };
            let lost = |why: String| Err(format!("{name} ({}): {why}", short(&told.uid)));
            let row = world.instances.get(PROJECT, name).filter(|row| row.object.uid == told.uid);
            let Some(now) = row.map(|row| &row.object) else {
                if known.unsure {
                    continue;
                }
                return lost("it was acknowledged and is not there".to_owned());
            };
            if now.generation < told.generation {
                return lost(format!(
                    "generation {} was acknowledged, it has {}",
                    told.generation, now.generation
                ));
            }
            if now.generation == told.generation && now.spec != told.spec {
                return lost(format!("{:?} was acknowledged, it has {:?}", told.spec, now.spec));
            }
        }
        Ok(())
    }
}

fn old_generation(known: &Known) -> u64 {
    known.told.as_ref().map_or(0, |told| told.generation)
}
