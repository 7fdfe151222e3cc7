//! Container names: Docker and Podman call a container's cgroup by its id; the name is in files of theirs.

use std::{fs, path::Path};

use serde::Deserialize;

/// Returns the name of the container with the full id `id`, from the files of the runtimes below `root` (`/` on a host).
pub fn container_name(root: &Path, id: &str) -> Option<String> {
    docker_name(root, id).or_else(|| podman_name(root, id))
}

/// Docker keeps `Name` (with a `/` before it) in each container's `config.v2.json`.
fn docker_name(root: &Path, id: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Container {
        #[serde(rename = "Name")]
        name: String,
    }
    if !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let path = root.join("var/lib/docker/containers").join(id).join("config.v2.json");
    let container: Container = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(container.name.trim_start_matches('/').to_owned())
}

/// Podman's storage lists all containers with their names.
fn podman_name(root: &Path, id: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Container {
        id: String,
        #[serde(default)]
        names: Vec<String>,
    }
    let path = root.join("var/lib/containers/storage/overlay-containers/containers.json");
    let all: Vec<Container> = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    all.into_iter().find(|container| container.id == id)?.names.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_dockers_and_podmans_files() {
        let root = tempfile::tempdir().unwrap();
        let docker = root.path().join("var/lib/docker/containers/abc1");
        fs::create_dir_all(&docker).unwrap();
        fs::write(docker.join("config.v2.json"), r#"{"ID":"abc1","Name":"/web"}"#).unwrap();
        let podman = root.path().join("var/lib/containers/storage/overlay-containers");
        fs::create_dir_all(&podman).unwrap();
        fs::write(podman.join("containers.json"), r#"[{"id":"abc2","names":["db"]},{"id":"abc3"}]"#).unwrap();

        assert_eq!(container_name(root.path(), "abc1").as_deref(), Some("web"));
        assert_eq!(container_name(root.path(), "abc2").as_deref(), Some("db"));
        assert_eq!(container_name(root.path(), "abc3"), None);
        assert_eq!(container_name(root.path(), "../containers/abc1"), None);
    }
}
