//! Lists in pages.

use super::App;
use super::answer::{self, Answer};
use super::objects::{Managed, below, place};
use super::query::Params;
use crate::auth::actor::Actor;
use crate::state::At;
use crate::state::Snapshot;
use crate::store::keys::Key;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use enoki_api::error::Problem;
use enoki_api::list::{List, Undecodable};
use enoki_api::object::Spec;
use std::collections::HashMap;

/// One page, in order of project and name. A page is of one revision; the next may be of a newer one.
pub fn page<K: Managed>(
    app: &App,
    path: &HashMap<String, String>,
    actor: &Actor,
    mut params: Params,
) -> Answer {
    let (project, _) = place::<K>(path);
    let (limit, selector) = (params.page()?, params.selector()?);
    let after = params
        .take("continue")
        .filter(|token| !token.is_empty())
        .map(|token| position(&token))
        .transpose()?;
    params.done()?;
    let snapshot = app.state.snapshot();
    let project = Some(project.as_str()).filter(|_| K::KIND.in_project());
    let mut rows = K::table(&snapshot)
        .after(project, after.as_ref())
        .filter(|row| selector.matches(&row.object.labels) && K::visible(&row.object, actor))
        .filter(|row| below(&row.object.spec, path));
    let mut items = Vec::new();
    let mut last = None;
    for row in rows.by_ref().take(limit) {
        let mut object = row.object.clone();
        K::present(app, &snapshot, &mut object);
        items.push(object);
        last = Some(row.at());
    }
    let more = rows.next().is_some();
    let continue_ = last.filter(|_| more).map(|at| token(&at));
    let undecodable = undecodable::<K>(&snapshot, project);
    Ok(answer::json(StatusCode::OK, &List { items, revision: snapshot.revision, continue_, undecodable }))
}

fn undecodable<K: Spec>(snapshot: &Snapshot, project: Option<&str>) -> Vec<Undecodable> {
    let found = snapshot.undecodable.iter().filter_map(|(key, reason)| match Key::parse(key)? {
        Key::Spec(object) if object.kind == K::KIND.plural() && object.project.as_deref() == project => {
            Some(Undecodable { project: object.project, name: object.name, reason: reason.clone() })
        }
        _ => None,
    });
    found.collect()
}

fn token(at: &At) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}/{}", at.0, at.1))
}

fn position(token: &str) -> Result<At, Problem> {
    let strange = || Problem::invalid_field("continue", "this is not a token that a list gave");
    let text = URL_SAFE_NO_PAD.decode(token).map_err(|_| strange())?;
    let text = String::from_utf8(text).map_err(|_| strange())?;
    let (project, name) = text.split_once('/').ok_or_else(strange)?;
    Ok((project.to_owned(), name.to_owned()))
}
