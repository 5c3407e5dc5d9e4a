//! `/openapi.json`: the API described, generated from the same table of kinds and the same types that serve it.

use super::App;
use super::answer;
use super::kinds::job::BELOW;
use super::objects::{Managed, PARENT, base};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use enoki_api::cluster::ClusterSpec;
use enoki_api::file::FileRef;
use enoki_api::host::HostSpec;
use enoki_api::image::ImageSpec;
use enoki_api::instance::InstanceSpec;
use enoki_api::job::JobSpec;
use enoki_api::network::NetworkSpec;
use enoki_api::object::{Kind, Owner, Spec};
use enoki_api::operation::OperationSpec;
use enoki_api::project::ProjectSpec;
use enoki_api::secret::SecretSpec;
use enoki_api::volume::VolumeSpec;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

pub fn routes() -> Router<App> {
    Router::new().route("/openapi.json", get(async || answer::json(StatusCode::OK, &document())))
}

/// The whole description, OpenAPI 3.1.
pub fn document() -> Value {
    let mut document = Document::default();
    document.kind::<HostSpec>("A machine with Docker and an agent.");
    document.kind::<ProjectSpec>("The tenant that owns networks, volumes, secrets, images and instances.");
    document.kind::<NetworkSpec>("One L2 segment that addresses are handed out from.");
    document.kind::<VolumeSpec>("A folder that outlives the instances that mount it.");
    document.kind::<SecretSpec>("Named values, sealed in the store and never shown again.");
    document.kind::<ImageSpec>("Bytes that were imported under a name.");
    document.kind::<InstanceSpec>("One VM-like container with a lasting name, address, disk and limits.");
    document
        .kind::<ClusterSpec>("A master and an elastic pool of workers, all of them instances that it owns.");
    document.kind::<JobSpec>(
        "A program that runs on a compute cluster, with a driver that is an instance of its own.",
    );
    document.kind::<OperationSpec>("A verb that outlives its request, with what it has done so far.");
    document.schema::<enoki_api::Problem>();
    document.schema::<Owner>();
    document.schema::<enoki_api::event::Event>();
    document.schema::<enoki_api::audit::AuditEntry>();
    document.schema::<crate::scheduler::Verdict>();
    document.schema::<super::servers::Server>();
    document.extras();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Enoki",
            "version": "v1",
            "description": "A private cloud of containers that live like machines. Every answer carries `enoki-revision`; `?at_least=REVISION` waits for no less; while the store is away reads carry `enoki-stale: SECONDS`. Errors are RFC 9457 problems.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": document.paths,
        "components": {"schemas": document.schemas},
    })
}

#[derive(Default)]
struct Document {
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Document {
    fn schema<T: ToSchema>(&mut self) -> Value {
        let mut all = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut all);
        for (name, schema) in all {
            self.schemas.insert(name, serde_json::to_value(schema).unwrap_or_default());
        }
        reference(&T::name())
    }

    fn kind<K: Managed + ToSchema>(&mut self, about: &str)
    where
        K::Status: ToSchema,
    {
        let (spec, status) = (self.schema::<K>(), self.schema::<K::Status>());
        let name = title(K::KIND);
        let mut properties = json!({
            "kind": {"const": K::KIND.singular()},
            "name": {"type": "string"},
            "uid": {"type": "string", "format": "uuid", "readOnly": true},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "generation": {"type": "integer", "readOnly": true, "description": "Counts changes of the spec."},
            "revision": {"type": "integer", "readOnly": true, "description": "The store's revision of the spec; also the ETag."},
            "created_at": {"type": "string", "format": "date-time", "readOnly": true},
            "deleted_at": {"type": "string", "format": "date-time", "readOnly": true},
            "owner": {"$ref": "#/components/schemas/Owner", "readOnly": true},
            "spec": spec,
            "status": status,
        });
        if K::KIND.in_project() {
            properties["project"] = json!({"type": "string"});
        }
        let object = json!({"type": "object", "description": about, "required": ["name", "spec"], "properties": properties});
        self.schemas.insert(name.clone(), object);
        let list = json!({
            "type": "object",
            "required": ["items", "revision", "continue"],
            "properties": {
                "items": {"type": "array", "items": reference(&name)},
                "revision": {"type": "integer"},
                "continue": {"type": ["string", "null"], "description": "The token for the next page; null on the last."},
            },
        });
        self.schemas.insert(format!("{name}List"), list);
        self.collection::<K>(&name);
        self.item::<K>(&name);
    }

    fn collection<K: Managed>(&mut self, name: &str) {
        let query = [
            parameter("limit", "integer", "Items of a page, 1 to 1000; 500 without it."),
            parameter("continue", "string", "The token of the page before."),
            parameter("selector", "string", "key=value,...: only objects with these labels."),
            parameter("watch", "boolean", "Answer with server-sent events `put`, `delete` and `bookmark`."),
            parameter(
                "from",
                "integer",
                "With watch: changes after this revision; 410 when it is no longer kept.",
            ),
        ];
        let mut path = json!({
            "parameters": place::<K>(false),
            "get": operation(&format!("list_{}", K::KIND.plural()), "List or watch", &query, None, &[("200", Some(reference(&format!("{name}List"))), "A page, or a stream of events")]),
        });
        if K::MADE_BY_USERS {
            path["post"] = operation(
                &format!("create_{}", K::KIND),
                "Create",
                &write(),
                Some(reference(name)),
                &[
                    ("201", Some(reference(name)), "Made"),
                    ("202", Some(reference(name)), "Made; what was waited for has not come in time"),
                ],
            );
        }
        self.paths.insert(base::<K>(), path);
    }

    fn item<K: Managed>(&mut self, name: &str) {
        let kind = K::KIND;
        let good = |text| {
            [
                ("200", Some(reference(name)), text),
                ("202", Some(reference(name)), "Written; what was waited for has not come in time"),
            ]
        };
        let mut path = json!({
            "parameters": place::<K>(true),
            "get": operation(&format!("get_{kind}"), "Read", &[], None, &[("200", Some(reference(name)), "The object")]),
            "delete": operation(&format!("delete_{kind}"), "Delete", &removal::<K>(), None, &[("202", Some(reference(name)), "Being deleted"), ("200", Some(reference(name)), "Gone")]),
        });
        if K::CHANGED_BY_USERS {
            let body = Some(reference(name));
            path["put"] = operation(
                &format!("replace_{kind}"),
                "Replace, or make",
                &edit(),
                body.clone(),
                &[("200", Some(reference(name)), "Replaced"), ("201", Some(reference(name)), "Made")],
            );
            path["patch"] = operation(
                &format!("patch_{kind}"),
                "Change by JSON merge-patch",
                &edit(),
                Some(json!({"type": "object"})),
                &good("Changed"),
            );
        }
        self.paths.insert(format!("{}/{{name}}", base::<K>()), path);
    }

    /// What is not create, read, replace, patch and delete.
    fn extras(&mut self) {
        let instance = reference("Instance");
        let at = |verb: &str| format!("/v1/projects/{{project}}/instances/{{name}}/{verb}");
        for (verb, about) in [("start", "Start"), ("stop", "Stop"), ("restart", "Stop and start")] {
            let answers = [
                ("202", Some(instance.clone()), "Under way"),
                ("200", Some(instance.clone()), "Done, when it was waited for"),
            ];
            let post = operation(&format!("{verb}_instance"), about, &edit(), None, &answers);
            self.paths.insert(at(verb), json!({"parameters": place::<InstanceSpec>(true), "post": post}));
        }
        let body =
            json!({"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}});
        let answers = [
            ("202", Some(instance.clone()), "Under way"),
            ("200", Some(instance), "Done, when it was waited for"),
        ];
        let post = operation(
            "rebuild_instance",
            "Discard the disk and start from an image",
            &edit(),
            Some(body),
            &answers,
        );
        self.paths.insert(at("rebuild"), json!({"parameters": place::<InstanceSpec>(true), "post": post}));
        self.operations();
        self.jobs();
        let verdicts = json!({"type": "object", "properties": {"hosts": {"type": "array", "items": reference("Verdict")}}});
        self.get(
            &at("explain"),
            "explain_instance",
            "Where it could go, and why not elsewhere",
            place::<InstanceSpec>(true),
            &[],
            Some(verdicts),
        );
        let stream = "WebSocket; binary messages, the first byte is the channel: 0 stdin, 1 stdout, 2 stderr, 3 resize, 4 exit, 5 end of stdin";
        let terminal = [
            parameter("columns", "integer", "Of the terminal."),
            parameter("rows", "integer", "Of the terminal."),
        ];
        let mut exec = vec![
            parameter("command", "string", "A word; once for each."),
            parameter("tty", "boolean", ""),
            parameter("stdin", "boolean", ""),
        ];
        exec.extend(terminal.clone());
        self.get(&at("exec"), "exec_instance", stream, place::<InstanceSpec>(true), &exec, None);
        self.get(&at("console"), "console_instance", stream, place::<InstanceSpec>(true), &terminal, None);
        let port = [parameter("port", "integer", "1 to 65535.")];
        self.get(&at("connect"), "connect_instance", stream, place::<InstanceSpec>(true), &port, None);
        let logs = log_parameters();
        self.get(
            &at("logs"),
            "logs_instance",
            "What it printed, as text",
            place::<InstanceSpec>(true),
            &logs,
            None,
        );
        self.get(
            "/v1/projects/{project}/stats",
            "stats",
            "What running instances use now",
            place::<InstanceSpec>(false),
            &[],
            Some(json!({"type": "object"})),
        );
        let events = json!({"type": "object", "properties": {"items": {"type": "array", "items": reference("Event")}}});
        let filter = [
            parameter("kind", "string", ""),
            parameter("project", "string", ""),
            parameter("name", "string", ""),
        ];
        self.get(
            "/v1/events",
            "list_events",
            "What happened, oldest first",
            Vec::new(),
            &filter,
            Some(events),
        );
        let entries = json!({"type": "object", "properties": {"items": {"type": "array", "items": reference("AuditEntry")}}});
        let filter = [
            parameter("since", "string", "A time, or how long ago (10m)."),
            parameter("actor", "string", "Who, as it is written: `token ci`."),
            parameter("path", "string", "How the path begins."),
            parameter("status", "integer", ""),
            parameter("limit", "integer", "The newest so many, 1 to 1000; 500 without it."),
        ];
        self.get(
            "/v1/audit",
            "list_audit",
            "Who changed what, as far as this server was asked; oldest first",
            Vec::new(),
            &filter,
            Some(entries),
        );
        let content = operation(
            "import_image",
            "Import a root file system or a `docker save` archive",
            &[],
            None,
            &[
                ("201", Some(reference("Image")), "Imported"),
                ("200", Some(reference("Image")), "The name has these bytes now"),
            ],
        );
        self.paths.insert(
            "/v1/projects/{project}/images/{name}/content".into(),
            json!({"parameters": place::<ImageSpec>(true), "post": content}),
        );
        let rules = json!({"type": ["array", "null"], "items": {"type": "string"}});
        let body = json!({"type": "object", "properties": {"require": rules}});
        let pull = operation(
            "pull_image",
            "Have the hosts with these labels (`[]`: all, null: none) get it before an instance needs it",
            &edit(),
            Some(body),
            &[("200", Some(reference("Image")), "Wanted so")],
        );
        self.paths.insert(
            "/v1/projects/{project}/images/{name}/pull".into(),
            json!({"parameters": place::<ImageSpec>(true), "post": pull}),
        );
        self.files();
        self.get(
            "/v1/hosts/{name}/orphans",
            "list_orphans",
            "What runs there and nothing names",
            place::<HostSpec>(true),
            &[],
            Some(json!({"type": "object"})),
        );
        let body =
            json!({"type": "object", "properties": {"uids": {"type": "array", "items": {"type": "string"}}}});
        let adopt = operation(
            "adopt_orphans",
            "Take orphans back",
            &[],
            Some(body),
            &[("200", Some(json!({"type": "object"})), "What was taken back and what not")],
        );
        self.paths.insert(
            "/v1/hosts/{name}/orphans/adopt".into(),
            json!({"parameters": place::<HostSpec>(true), "post": adopt}),
        );
        let servers = json!({"type": "object", "properties": {"items": {"type": "array", "items": reference("Server")}}});
        self.get("/v1/servers", "list_servers", "The servers of the cloud", Vec::new(), &[], Some(servers));
        let remove = operation(
            "remove_server",
            "Forget a server whose machine is gone",
            &[parameter("dry_run", "boolean", "Change nothing.")],
            None,
            &[("200", None, "Forgotten")],
        );
        self.paths.insert(
            "/v1/servers/{name}".into(),
            json!({"parameters": place::<HostSpec>(true), "delete": remove}),
        );
        for (path, about) in [
            ("/healthz", "Is the process alive"),
            ("/readyz", "Can it serve"),
            ("/metrics", "Metrics, OpenMetrics text"),
            ("/openapi.json", "This document"),
        ] {
            self.get(
                path,
                path.trim_start_matches('/').trim_end_matches(".json"),
                about,
                Vec::new(),
                &[],
                None,
            );
        }
    }

    /// What users upload for a job to name.
    fn files(&mut self) {
        let file = self.schema::<FileRef>();
        let mut receive = operation(
            "upload_file",
            "Bring a file into the project; what nobody names is removed after an hour",
            &[],
            None,
            &[("201", Some(file.clone()), "Kept")],
        );
        receive["requestBody"] = json!({"required": true, "content": {"application/octet-stream": {}}});
        let project = place::<InstanceSpec>(false);
        self.paths
            .insert("/v1/projects/{project}/files".into(), json!({"parameters": &project, "post": receive}));
        let digest = json!({"name": "digest", "in": "path", "required": true, "description": "`sha256:...`", "schema": {"type": "string"}});
        self.get(
            "/v1/projects/{project}/files/{digest}",
            "find_file",
            "Whether the project has it; it then stays for another hour",
            project.into_iter().chain([digest]).collect(),
            &[],
            Some(file),
        );
    }

    /// The verbs that outlive their request, and how one is ended.
    fn operations(&mut self) {
        let operation_schema = reference("Operation");
        let answers = [
            ("202", Some(operation_schema.clone()), "Under way: the operation"),
            ("200", Some(operation_schema), "It has the phase that was waited for"),
        ];
        let body = json!({"type": "object", "properties": {"stop": {"type": "boolean", "description": "Stop in place what cannot move."}}});
        let about = "Cordon the host and empty it; one that runs is answered again";
        let post = operation("drain_host", about, &edit(), Some(body), &answers);
        self.paths.insert(
            "/v1/hosts/{name}/drain".into(),
            json!({"parameters": place::<HostSpec>(true), "post": post}),
        );
        let post = operation("cancel_operation", "Begin nothing more", &edit(), None, &answers);
        self.paths.insert(
            "/v1/operations/{name}/cancel".into(),
            json!({"parameters": place::<OperationSpec>(true), "post": post}),
        );
    }

    /// The verbs of a job.
    fn jobs(&mut self) {
        let at = |verb: &str| format!("{}/{{name}}/{verb}", base::<JobSpec>());
        let answers = [
            ("202", Some(reference("Job")), "Under way"),
            ("200", Some(reference("Job")), "Done, when it was waited for"),
        ];
        let post = operation("kill_job", "End a job; it does not come back", &edit(), None, &answers);
        self.paths.insert(at("kill"), json!({"parameters": place::<JobSpec>(true), "post": post}));
        let about = "What its driver printed, as text";
        self.get(&at("logs"), "logs_job", about, place::<JobSpec>(true), &log_parameters(), None);
        // All of it once more below the cluster.
        let own: Vec<(String, Value)> = self
            .paths
            .iter()
            .filter_map(|(path, value)| {
                Some((format!("{BELOW}{}", path.strip_prefix(&base::<JobSpec>())?), value.clone()))
            })
            .collect();
        for (path, mut value) in own {
            if let Some(parameters) = value["parameters"].as_array_mut() {
                let part =
                    json!({"name": PARENT, "in": "path", "required": true, "schema": {"type": "string"}});
                parameters.insert(1, part);
            }
            for (_, operation) in value.as_object_mut().into_iter().flatten() {
                if let Some(id) = operation["operationId"].as_str() {
                    operation["operationId"] = json!(format!("{id}_of_cluster"));
                }
            }
            self.paths.insert(path, value);
        }
    }

    fn get(
        &mut self,
        path: &str,
        id: &str,
        about: &str,
        parameters: Vec<Value>,
        query: &[Value],
        answer: Option<Value>,
    ) {
        let get = operation(id, about, query, None, &[("200", answer, "The answer")]);
        self.paths.insert(path.to_owned(), json!({"parameters": parameters, "get": get}));
    }
}

fn title(kind: Kind) -> String {
    let name = kind.singular();
    name[..1].to_uppercase() + &name[1..]
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn parameter(name: &str, kind: &str, about: &str) -> Value {
    json!({"name": name, "in": "query", "required": false, "description": about, "schema": {"type": kind}})
}

fn place<K: Spec>(named: bool) -> Vec<Value> {
    let part =
        |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
    let project = K::KIND.in_project().then(|| part("project"));
    project.into_iter().chain(named.then(|| part("name"))).collect()
}

fn write() -> Vec<Value> {
    vec![
        parameter(
            "dry_run",
            "boolean",
            "Change nothing; answer with the plan and what each host says to it.",
        ),
        parameter(
            "wait",
            "string",
            "A phase, or `deleted`: answer when it has come, or 202 when not in time.",
        ),
        parameter("timeout", "string", "How long to wait, as in 30s."),
        json!({"name": "Idempotency-Key", "in": "header", "required": false, "schema": {"type": "string"}}),
    ]
}

fn edit() -> Vec<Value> {
    let mut parameters = write();
    parameters.pop();
    parameters.push(json!({"name": "If-Match", "in": "header", "required": false, "description": "The revision it must still have.", "schema": {"type": "string"}}));
    parameters
}

fn log_parameters() -> [Value; 4] {
    [
        parameter("follow", "boolean", ""),
        parameter("tail", "integer", "The last so many lines."),
        parameter("since", "string", "A time, or how long ago (10m)."),
        parameter("timestamps", "boolean", ""),
    ]
}

/// Of a deletion: what is on a host can go without it.
fn removal<K: Spec>() -> Vec<Value> {
    let mut parameters = edit();
    if matches!(K::KIND, Kind::Instance | Kind::Volume) {
        parameters.push(parameter(
            "force",
            "boolean",
            "Do not wait for its host, which does not answer; 409 `host_reachable` when it does.",
        ));
    }
    parameters
}

fn operation(
    id: &str,
    about: &str,
    parameters: &[Value],
    body: Option<Value>,
    answers: &[(&str, Option<Value>, &str)],
) -> Value {
    let mut responses = Map::new();
    for (status, schema, about) in answers {
        let mut response = json!({"description": about});
        if let Some(schema) = schema {
            response["content"] = json!({"application/json": {"schema": schema}});
        }
        responses.insert((*status).to_owned(), response);
    }
    let problem = json!({"application/problem+json": {"schema": reference("Problem")}});
    responses.insert("default".into(), json!({"description": "A problem", "content": problem}));
    let mut operation =
        json!({"operationId": id, "summary": about, "parameters": parameters, "responses": responses});
    if let Some(schema) = body {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The golden copy is the contract: a difference is a decision.
    #[test]
    fn golden() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap_or_default();
        assert!(golden == text, "docs/openapi.json differs; UPDATE_GOLDEN=1 writes it anew");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| walk(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = BTreeSet::new();
        walk(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
