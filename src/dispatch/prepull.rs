//! PURE: a snapshot -> the images that one host is to have before an instance needs them.

use crate::state::{At, Snapshot};
use enoki_api::image::ImageSpec;
use enoki_api::object::{Labels, has_label};
use enoki_api::protocol::Prepull;

/// Every one for `host`, in order of name.
pub fn all(snapshot: &Snapshot, host: &str) -> Vec<Prepull> {
    let Some(labels) = snapshot.hosts.get("", host).map(|row| &row.object.labels) else { return Vec::new() };
    let wanted = snapshot.images.of(None).filter(|row| asks_for(&row.object.spec, labels));
    let mut all: Vec<_> = wanted
        .filter_map(|row| {
            Some(Prepull { name: row.object.name.clone(), imported: row.object.spec.imported()? })
        })
        .collect();
    all.sort();
    all
}

/// Whether hosts with these labels are to have the image.
pub fn asks_for(image: &ImageSpec, labels: &Labels) -> bool {
    image.prepull.as_ref().is_some_and(|rules| rules.iter().all(|rule| has_label(labels, rule)))
}

/// Whether some host was to have the image beforehand, or is to have it now.
pub fn touched(before: &Snapshot, after: &Snapshot, image: &At) -> bool {
    let asks =
        |snapshot: &Snapshot| snapshot.images.at(image).is_some_and(|row| row.object.spec.prepull.is_some());
    asks(before) || asks(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::orders;
    use crate::state::Placed;
    use enoki_api::host::{HostSpec, HostStatus};
    use enoki_api::image::Imported;
    use enoki_api::instance::{Assignment, InstanceSpec, Resources};
    use enoki_api::object::Object;
    use enoki_api::quantity::Bytes;
    use jiff::Timestamp;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn imported(word: &str) -> Imported {
        Imported { image_id: format!("id of {word}"), digest: word.to_owned() }
    }

    fn image(world: &mut Snapshot, project: &str, name: &str, digest: &str, prepull: Option<&[&str]>) {
        let Imported { image_id, digest } = imported(digest);
        let prepull = prepull.map(|rules| rules.iter().map(|&rule| rule.to_owned()).collect());
        let spec = ImageSpec { image_id, digest, size: Bytes(1), source: String::new(), prepull };
        world.seed_image(Object::new(Some(project), name, Labels::new(), spec, NOW));
    }

    fn world() -> Snapshot {
        let mut world = Snapshot::default();
        for (name, labels) in [("h1", vec![("zone", "a"), ("disk", "fast")]), ("h2", vec![("zone", "a")])] {
            let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            let host = Object::new(None, name, labels, HostSpec::default(), NOW);
            world.seed_host(host, HostStatus::default());
        }
        world
    }

    fn instance(world: &mut Snapshot, project: &str, name: &str, image: &str, resolved: Option<&str>) {
        let spec = InstanceSpec { resolved: resolved.map(imported), ..InstanceSpec::new(image) };
        let instance = Object::new(Some(project), name, Labels::new(), spec, NOW);
        let assignment = Assignment {
            uid: instance.uid.clone(),
            host: "h1".into(),
            epoch: 1,
            generation: 1,
            granted: Resources::default(),
            nics: Default::default(),
        };
        world.assign((project.into(), name.into()), Placed { assignment, revision: 1 });
        world.seed_instance(instance);
    }

    #[test]
    fn hosts_with_all_of_the_labels_have_it_beforehand() {
        let mut world = world();
        image(&mut world, "default", "everywhere", "1", Some(&[]));
        image(&mut world, "p", "zone", "2", Some(&["zone=a"]));
        image(&mut world, "p", "both", "3", Some(&["zone=a", "disk=fast"]));
        image(&mut world, "p", "none", "4", Some(&["zone=b"]));
        image(&mut world, "p", "never", "5", None);
        // Imported by a version without a registry: nobody can have it.
        image(&mut world, "p", "older", "", Some(&[]));
        let names = |host: &str| all(&world, host).into_iter().map(|image| image.name).collect::<Vec<_>>();
        assert_eq!(names("h1"), ["both", "everywhere", "zone"]);
        assert_eq!(names("h2"), ["everywhere", "zone"]);
        assert_eq!(names("h3"), Vec::<String>::new());
        for (host, digest, needs) in
            [("h1", "3", true), ("h2", "3", false), ("h2", "2", true), ("h2", "5", false)]
        {
            assert_eq!(orders::needs(&world, host, digest), needs, "{host} {digest}");
        }
    }

    #[test]
    fn an_instance_needs_what_its_image_meant() {
        let mut world = world();
        image(&mut world, "default", "a", "new", None);
        image(&mut world, "p", "own", "of p", None);
        image(&mut world, "default", "own", "of all", None);
        instance(&mut world, "p", "made-before", "a", Some("old"));
        instance(&mut world, "p", "unresolved", "own", None);
        for (digest, needs) in [("old", true), ("new", false), ("of p", true), ("of all", false), ("", false)]
        {
            assert_eq!(orders::needs(&world, "h1", digest), needs, "{digest}");
            assert!(!orders::needs(&world, "h2", digest), "another host needs {digest}");
        }
    }
}
