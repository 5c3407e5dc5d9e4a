//! Who CMD runs as: `user[:group]` by name or number, looked up in the container's own /etc/passwd and /etc/group, as Docker does.
//! The init itself stays root, so that it can write its log and run user data.

use std::fs::File;
use std::io::Read;

/// A passwd or group file larger than this is not read on: PID 1 stays small.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// None: not told by /etc/passwd.
    pub home: Option<String>,
}

/// Looks `spec` up. A number needs no entry; a name does.
pub fn look_up(spec: &str) -> Result<User, String> {
    resolve(spec, &read("/etc/passwd"), &read("/etc/group"))
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    // A file that is not there is an empty one: an image without users.
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resolve(spec: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, wanted_group) = match spec.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (spec, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = entries(passwd)
        .find(|e| e.first() == Some(&name))
        .or_else(|| entries(passwd).find(|e| e.get(2) == Some(&name)));
    let mut user = match &entry {
        Some(e) => {
            let number = |i: usize| {
                e.get(i)
                    .and_then(|v| v.parse().ok())
                    .ok_or_else(|| format!("/etc/passwd has no number in field {} of {name}", i + 1))
            };
            User {
                uid: number(2)?,
                gid: number(3)?,
                groups: Vec::new(),
                home: e.get(5).filter(|h| !h.is_empty()).map(|h| (*h).to_owned()),
            }
        }
        None => {
            let uid = name.parse().map_err(|_| format!("there is no user {name} in /etc/passwd"))?;
            User { uid, gid: 0, groups: Vec::new(), home: None }
        }
    };
    match wanted_group {
        Some(group_name) => {
            let found =
                entries(group).find(|e| e.first() == Some(&group_name)).and_then(|e| e.get(2)?.parse().ok());
            user.gid = found
                .or_else(|| group_name.parse().ok())
                .ok_or_else(|| format!("there is no group {group_name} in /etc/group"))?;
        }
        None => {
            let login = entry.as_ref().and_then(|e| e.first().copied()).unwrap_or_default();
            let member = entries(group)
                .filter(|e| !login.is_empty() && e.get(3).is_some_and(|m| m.split(',').any(|m| m == login)));
            user.groups = member.filter_map(|e| e.get(2)?.parse().ok()).collect();
        }
    }
    if !user.groups.contains(&user.gid) {
        user.groups.insert(0, user.gid);
    }
    Ok(user)
}

fn entries(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().filter(|l| !l.starts_with('#')).map(|l| l.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a comment\napp:x:1000:1000::/home/app:/bin/sh\nodd:x:none:1::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\napp:x:1000:\nwww:x:33:app\n";

    #[test]
    fn users() {
        let user = |uid, gid, groups: &[u32], home: Option<&str>| User {
            uid,
            gid,
            groups: groups.into(),
            home: home.map(str::to_owned),
        };
        for (spec, want) in [
            ("app", user(1000, 1000, &[1000, 50, 33], Some("/home/app"))),
            ("1000", user(1000, 1000, &[1000, 50, 33], Some("/home/app"))),
            ("app:staff", user(1000, 50, &[50], Some("/home/app"))),
            ("app:77", user(1000, 77, &[77], Some("/home/app"))),
            ("4711", user(4711, 0, &[0], None)),
            ("4711:33", user(4711, 33, &[33], None)),
            ("root", user(0, 0, &[0], Some("/root"))),
            (":staff", user(0, 50, &[50], Some("/root"))),
        ] {
            assert_eq!(resolve(spec, PASSWD, GROUP), Ok(want), "{spec}");
        }
        for spec in ["nobody", "app:nogroup", "odd", "-1"] {
            assert!(resolve(spec, PASSWD, GROUP).is_err(), "{spec}");
        }
    }
}
