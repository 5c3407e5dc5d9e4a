//! The files that Enoki makes for an instance before each start: its name, its neighbours, its resolvers.

use crate::ledger::file;
use enoki_api::object::Uid;
use enoki_api::protocol::Order;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const FOLDER: &str = "/var/lib/enoki/instances";
/// In `/etc` of the instance.
pub const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// The host's own, then systemd's list of upstream resolvers, for hosts whose own names its local stub.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

pub fn folder(uid: &Uid) -> PathBuf {
    Path::new(FOLDER).join(uid.as_str())
}

/// Where its uploaded files are.
pub fn job(uid: &Uid) -> PathBuf {
    folder(uid).join("job")
}

/// Makes its folder.
pub fn make_folder(uid: &Uid) -> io::Result<()> {
    file::folder(&folder(uid))
}

/// Makes them be there as the order has them; one that is right is left alone.
pub fn write(order: &Order) -> io::Result<()> {
    let folder = folder(order.uid());
    make_folder(order.uid())?;
    let spec = &order.instance.spec;
    let resolvers: Vec<String> = RESOLVERS.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    put(&folder.join("hostname"), &format!("{}\n", spec.hostname))?;
    put(&folder.join("hosts"), &hosts(order))?;
    put(&folder.join("resolv.conf"), &resolv_conf(&resolvers))
}

pub fn remove(uid: &Uid) -> io::Result<()> {
    match fs::remove_dir_all(folder(uid)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Readable for everybody inside, whatever the agent's umask.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    fs::rename(temporary, path)
}

/// PURE: its own name at its own addresses, and what every machine has.
fn hosts(order: &Order) -> String {
    let name = &order.instance.spec.hostname;
    let short = name.split('.').next().unwrap_or(name);
    let names = if short == name { name.clone() } else { format!("{name} {short}") };
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str("ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
    if order.assignment.nics.is_empty() {
        // As Debian has it for a machine without a lasting address.
        let _ = writeln!(text, "127.0.1.1\t{names}");
    }
    for nic in order.assignment.nics.values() {
        let _ = writeln!(text, "{}\t{names}", nic.address);
    }
    text
}

/// PURE: the first of the host's files that names a resolver that an instance can reach: not one on the host's own
/// loopback.
fn resolv_conf(files: &[String]) -> String {
    for file in files {
        let lines: Vec<&str> = file.lines().map(str::trim).filter(|line| wanted(line)).collect();
        if lines.iter().any(|line| line.starts_with("nameserver")) {
            return format!(
                "# Written by Enoki from the host's resolvers at each start.\n{}\n",
                lines.join("\n")
            );
        }
    }
    "# Written by Enoki. The host names no resolver outside its own loopback.\n".to_owned()
}

fn wanted(line: &str) -> bool {
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some("nameserver"), Some(address)) => {
            let bare = address.split('%').next().unwrap_or(address);
            bare.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback() && !address.is_unspecified())
        }
        (Some("search" | "domain"), Some(_)) => true,
        // `edns0` and `trust-ad` are about a local stub.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::samples::order;
    use enoki_api::instance::{Mac, NicStatus};

    #[test]
    fn resolvers_are_never_on_a_loopback() {
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n".to_owned();
        let real = "# systemd\nnameserver 198.18.0.1\nnameserver ::1\nsearch lan\n".to_owned();
        let text = resolv_conf(&[stub.clone(), real]);
        assert!(text.ends_with("nameserver 198.18.0.1\nsearch lan\n"), "{text}");
        let none = resolv_conf(&[stub]);
        assert!(none.starts_with('#') && !none.contains("nameserver 1"), "{none}");
    }

    #[test]
    fn it_knows_its_own_name() {
        let mut order = order("web1");
        assert!(hosts(&order).contains("127.0.1.1\tweb1\n"));
        order.instance.spec.hostname = "web1.example".to_owned();
        let address = "198.18.100.10".parse().unwrap();
        let nic = NicStatus { network: "blue".to_owned(), address, mac: Mac([2, 0, 0, 0, 0, 1]) };
        order.assignment.nics.insert("eth0".to_owned(), nic);
        let text = hosts(&order);
        assert!(text.contains("198.18.100.10\tweb1.example web1\n") && !text.contains("127.0.1.1"), "{text}");
    }
}
