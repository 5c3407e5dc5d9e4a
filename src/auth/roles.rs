//! PURE: may they? One place for every route: by who asks, the method and the route's pattern.
//!
//! | role | may |
//! |---|---|
//! | local, admin | everything |
//! | member | all in its projects, but what [`super::actor::Actor::is_admin`] guards in a spec |
//! | viewer | read in its projects |
//! | host, server | join, and what the agents' routes give a host by its certificate; nothing here |

use super::actor::Actor;
use axum::http::Method;
use enoki_api::error::{Code, Problem};
use enoki_api::token::Role;

/// Routes that need no name: how a load balancer or a new machine finds out whether this is the place.
pub const OPEN: [&str; 3] = ["/healthz", "/readyz", "/openapi.json"];
/// GET, and yet they act.
pub const ENTERING: [&str; 3] = ["/exec", "/console", "/connect"];

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub method: &'a Method,
    /// The route's pattern, as in `/v1/projects/{project}/instances/{name}`.
    pub route: &'a str,
    /// The project in the address, or named by a query where the route has none.
    pub project: Option<&'a str>,
}

impl Asked<'_> {
    fn reads(&self) -> bool {
        matches!(*self.method, Method::GET | Method::HEAD | Method::OPTIONS)
            && !ENTERING.iter().any(|verb| self.route.ends_with(verb))
    }
}

/// Refuses what this actor may not do.
pub fn check(actor: &Actor, asked: Asked<'_>) -> Result<(), Problem> {
    if OPEN.contains(&asked.route) {
        return Ok(());
    }
    let (role, projects) = match actor {
        Actor::Local { .. } => return Ok(()),
        Actor::Anonymous => {
            return Err(Problem::new(Code::Unauthenticated, "this needs a token")
                .hint("`enoki login`, or the header `authorization: Bearer TOKEN`"));
        }
        Actor::Machine(_) => {
            return Err(Problem::new(Code::Forbidden, format!("{actor} is a machine, not a user")));
        }
        Actor::Bearer { role, projects, .. } => (*role, projects),
    };
    match role {
        Role::Admin => return Ok(()),
        Role::Member | Role::Viewer => {}
        Role::Host | Role::Server | Role::Unknown => {
            return Err(Problem::new(Code::Forbidden, format!("a token of role {role} only joins machines")));
        }
    }
    // Listing projects shows each bearer their own.
    if asked.route == "/v1/projects" && asked.reads() {
        return Ok(());
    }
    let in_project = asked.route == "/v1/events" || asked.route.starts_with("/v1/projects/");
    let project = asked.project.filter(|_| in_project).ok_or_else(|| {
        let problem =
            Problem::new(Code::Forbidden, format!("a {role} has nothing to do outside of its projects"));
        match asked.route {
            "/v1/events" => problem.hint("name a project: ?project=NAME"),
            _ => problem.hint("this is for admins"),
        }
    })?;
    if !projects.iter().any(|own| own == project) {
        return Err(Problem::new(Code::Forbidden, format!("this token is not for project {project}"))
            .hint(format!("it is for {}", projects.join(", "))));
    }
    // The project itself is the admins': its quota above all.
    let changes_project = asked.route == "/v1/projects/{name}" && !asked.reads();
    if changes_project || (role == Role::Viewer && !asked.reads()) {
        return Err(Problem::new(Code::Forbidden, format!("a {role} may not do this")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::identity::Identity;
    use enoki_api::object::Uid;

    fn bearer(role: Role) -> Actor {
        Actor::Bearer { token: "t".into(), role, projects: vec!["own".into()] }
    }

    #[test]
    fn roles() {
        use Role::*;
        let one = "/v1/projects/{project}/instances/{name}";
        for (method, route, project, allowed) in [
            (Method::GET, one, Some("own"), &[Admin, Member, Viewer][..]),
            (Method::GET, one, Some("other"), &[Admin]),
            (Method::PATCH, one, Some("own"), &[Admin, Member]),
            (Method::PATCH, one, Some("other"), &[Admin]),
            (Method::GET, "/v1/projects/{project}/instances/{name}/exec", Some("own"), &[Admin, Member]),
            (
                Method::GET,
                "/v1/projects/{project}/instances/{name}/logs",
                Some("own"),
                &[Admin, Member, Viewer],
            ),
            (Method::POST, "/v1/projects/{project}/files", Some("own"), &[Admin, Member]),
            (Method::POST, "/v1/projects/{project}/files", Some("other"), &[Admin]),
            (Method::GET, "/v1/projects", None, &[Admin, Member, Viewer]),
            (Method::POST, "/v1/projects", None, &[Admin]),
            (Method::GET, "/v1/projects/{name}", Some("own"), &[Admin, Member, Viewer]),
            (Method::PATCH, "/v1/projects/{name}", Some("own"), &[Admin]),
            (Method::GET, "/v1/hosts", None, &[Admin]),
            (Method::POST, "/v1/tokens", None, &[Admin]),
            (Method::GET, "/v1/events", None, &[Admin]),
            (Method::GET, "/v1/events", Some("own"), &[Admin, Member, Viewer]),
            (Method::GET, "/metrics", None, &[Admin]),
            (Method::GET, "/healthz", None, &[Admin, Member, Viewer, Host, Server, Unknown]),
        ] {
            for role in [Admin, Member, Viewer, Host, Server, Unknown] {
                let asked = Asked { method: &method, route, project };
                let may = check(&bearer(role), asked).is_ok();
                assert_eq!(may, allowed.contains(&role), "{role} {method} {route} {project:?}");
            }
        }
    }

    #[test]
    fn others() {
        let asked = Asked { method: &Method::GET, route: "/v1/hosts", project: None };
        let code = |actor: &Actor| check(actor, asked).err().map(|problem| problem.code);
        assert_eq!(code(&Actor::Local { uid: Some(0), pid: None }), None);
        assert_eq!(code(&Actor::Anonymous), Some(Code::Unauthenticated));
        let host = Identity::Host { name: "h1".into(), uid: Uid::random() };
        assert_eq!(code(&Actor::Machine(host)), Some(Code::Forbidden));
    }
}
