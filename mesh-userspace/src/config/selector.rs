//! Which cgroups belong to a workload: by path, by systemd unit, by container.
//!
//! A unit and a container are recognized by cgroup names, and whoever was delegated a cgroup may give names below it.
//! So they count only where nobody but root makes cgroups: a unit below slices, a container below no unit and no other
//! container. A user's own units and rootless containers are selected by path, where the path says whose they are.

use std::{fmt, str::FromStr};

use globset::{GlobBuilder, GlobMatcher};

/// A workload's cgroups: those that any of its parts matches. An empty one matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub cgroups: Vec<CgroupGlob>,
    pub units: Vec<UnitName>,
    pub containers: Vec<ContainerRef>,
}

impl Selector {
    /// Returns whether the cgroup itself (not an ancestor of it) is selected. `cgroup_path` is relative to
    /// `cgroup_root`, and begins with `/`. Containers are known by what their cgroup is called, which for Docker and
    /// Podman is an id; see [`matches_named`](Self::matches_named).
    pub fn matches(&self, cgroup_path: &str) -> bool {
        self.matches_named(cgroup_path, |_| None)
    }

    /// Like [`matches`](Self::matches), and `name_of` tells a container's name from its full id.
    pub fn matches_named(&self, cgroup_path: &str, name_of: impl Fn(&str) -> Option<String>) -> bool {
        let path = if cgroup_path.len() > 1 { cgroup_path.trim_end_matches('/') } else { cgroup_path };
        self.cgroups.iter().any(|glob| glob.matcher.is_match(path))
            || self.units.iter().any(|unit| unit.is_cgroup(path))
            || self.has_container(path, name_of)
    }

    fn has_container(&self, path: &str, name_of: impl Fn(&str) -> Option<String>) -> bool {
        if self.containers.is_empty() {
            return false;
        }
        let Some(found) = container_in(path) else { return false };
        let by_id = |wanted: &ContainerRef| wanted.is(found);
        self.containers.iter().any(by_id)
            || name_of(found).is_some_and(|name| self.containers.iter().any(|wanted| wanted.0 == name))
    }

    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.units.is_empty() && self.containers.is_empty()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroups = self.cgroups.iter().map(|glob| glob.text.clone());
        let units = self.units.iter().map(|unit| format!("unit {unit}"));
        let containers = self.containers.iter().map(|container| format!("container {}", container.0));
        f.write_str(&cgroups.chain(units).chain(containers).collect::<Vec<_>>().join(", "))
    }
}

/// A glob over cgroup paths: `*` and `?` stay within one component, `**` does not. A backslash is itself, as systemd's
/// escapes (`\x2d`) need it.
#[derive(Clone)]
pub struct CgroupGlob {
    text: String,
    matcher: GlobMatcher,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    #[error("a cgroup's path begins with /")]
    Relative,
    #[error("a cgroup's path has no empty, `.` or `..` component and no zero byte")]
    Component,
    #[error("{0}")]
    Glob(String),
    #[error("the suffix is missing, as in {0:?}")]
    UnitSuffix(String),
    #[error("a unit's name has no /, and is not empty")]
    Unit,
    #[error("an id has at least 12 hexadecimal digits; a name has letters, digits, `-`, `_`, `.`")]
    Container,
}

impl FromStr for CgroupGlob {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let Some(rest) = text.strip_prefix('/') else { return Err(SelectorError::Relative) };
        let odd = |part: &str| matches!(part, "" | "." | "..");
        if text.contains('\0') || (!rest.is_empty() && rest.split('/').any(odd)) {
            return Err(SelectorError::Component);
        }
        let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(false).build();
        let glob = glob.map_err(|error| SelectorError::Glob(error.kind().to_string()))?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }
}

impl CgroupGlob {
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for CgroupGlob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CgroupGlob {}

impl fmt::Debug for CgroupGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// A systemd unit that has a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitName(String);

impl UnitName {
    fn is_cgroup(&self, path: &str) -> bool {
        let mut parts = path.trim_start_matches('/').rsplit('/');
        parts.next() == Some(&self.0) && parts.all(|parent| parent.ends_with(".slice"))
    }
}

impl FromStr for UnitName {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.is_empty() || text.contains(['/', '\0']) {
            return Err(SelectorError::Unit);
        }
        let suffixed = [".service", ".scope", ".slice"]
            .iter()
            .any(|suffix| text.len() > suffix.len() && text.ends_with(suffix));
        if !suffixed {
            return Err(SelectorError::UnitSuffix(format!("{text}.service")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A container by its name, by its id, or by the first 12 or more digits of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRef(String);

/// The shortest accepted beginning of an id; what `docker ps` prints.
const SHORT_ID: usize = 12;
const FULL_ID: usize = 64;

impl ContainerRef {
    fn is(&self, found: &str) -> bool {
        self.0 == found || (is_hex(&self.0, SHORT_ID) && is_hex(found, FULL_ID) && found.starts_with(&self.0))
    }
}

impl FromStr for ContainerRef {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || !text.chars().all(fits) || text.len() > 253 {
            return Err(SelectorError::Container);
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_hex(text: &str, at_least: usize) -> bool {
    text.len() >= at_least && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Returns the id or name of the container whose own cgroup `path` is, if it is one's.
fn container_in(path: &str) -> Option<&str> {
    let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let last = parts.pop()?;
    let found = container_name(last, parts.last().copied())?;
    let mut above: Option<&str> = None;
    for part in parts {
        if part.ends_with(".service") || part.ends_with(".scope") || container_name(part, above).is_some() {
            return None;
        }
        above = Some(part);
    }
    Some(found)
}

/// Returns the id or name in a cgroup's name, as runtimes compose it, with the name of the cgroup above.
fn container_name<'p>(part: &'p str, above: Option<&str>) -> Option<&'p str> {
    const SCOPES: [&str; 6] = ["docker-", "libpod-", "cri-containerd-", "crio-", "nerdctl-", "machine-"];
    if let Some(stem) = part.strip_suffix(".scope") {
        return SCOPES.iter().find_map(|prefix| stem.strip_prefix(prefix)).filter(|name| !name.is_empty());
    }
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return Some(name).filter(|name| !name.is_empty());
    }
    let part = part.strip_prefix("libpod-").unwrap_or(part);
    match above {
        Some("docker" | "libpod_parent") if is_hex(part, FULL_ID) => Some(part),
        Some(pod) if pod.starts_with("pod") && is_hex(part, FULL_ID) => Some(part),
        // containerd's own name space: an id is what the user called it.
        Some("default" | "k8s.io") if !part.is_empty() => Some(part),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn cgroup(glob: &str) -> Selector {
        Selector { cgroups: vec![glob.parse().unwrap()], ..Selector::default() }
    }

    fn unit(name: &str) -> Selector {
        Selector { units: vec![name.parse().unwrap()], ..Selector::default() }
    }

    fn container(name: &str) -> Selector {
        Selector { containers: vec![name.parse().unwrap()], ..Selector::default() }
    }

    #[test]
    fn star_stays_within_one_component_and_two_do_not() {
        let one = cgroup("/system.slice/postgresql*.service");
        assert!(one.matches("/system.slice/postgresql@15-main.service"));
        assert!(one.matches("/system.slice/postgresql.service/"));
        assert!(!one.matches("/system.slice/postgresql/evil.service"));
        assert!(!one.matches("/x/system.slice/postgresql.service"));
        assert!(cgroup("/a/**/z").matches("/a/b/c/z"));
        assert!(cgroup("/").matches("/"));
        assert!(!cgroup("/").matches("/a"));
    }

    #[test]
    fn systemds_escapes_mean_themselves() {
        assert!(
            cgroup(r"/system.slice/system-my\x2dapp.slice").matches(r"/system.slice/system-my\x2dapp.slice")
        );
        assert!(
            !cgroup(r"/system.slice/system-my\x2dapp.slice").matches("/system.slice/system-myx2dapp.slice")
        );
    }

    #[test]
    fn a_unit_is_found_below_slices() {
        let db = unit("db.service");
        assert!(db.matches("/system.slice/db.service"));
        assert!(db.matches("/a.slice/a-b.slice/db.service"));
        assert!(db.matches("/db.service"));
        assert!(!db.matches("/system.slice/web-db.service"));
        assert!(!db.matches("/system.slice/db.service/child"));
    }

    #[test]
    fn a_user_cannot_name_a_cgroup_into_a_unit() {
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice";
        assert!(!unit("db.service").matches(&format!("{user}/db.service")));
        assert!(!container(ID).matches(&format!("{user}/libpod-{ID}.scope")));
        assert!(!unit("db.service").matches(&format!("/docker/{ID}/db.service")));
        // By its path one may still say so.
        assert!(cgroup(&format!("{user}/db.service")).matches(&format!("{user}/db.service")));
    }

    #[test]
    fn containers_are_found_as_each_runtime_names_them() {
        for path in [
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/machine.slice/libpod-{ID}.scope"),
            format!("/libpod_parent/libpod-{ID}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods/burstable/pod12/{ID}"),
        ] {
            assert!(container(ID).matches(&path), "{path}");
            assert!(container(&ID[..12]).matches(&path), "{path}");
            assert!(!container(&ID[1..13]).matches(&path), "{path}");
            assert!(!container(&ID[..11]).matches(&path), "too short: {path}");
            assert!(
                container("web").matches_named(&path, |id| (id == ID).then(|| "web".to_owned())),
                "{path}"
            );
            assert!(!container("web").matches_named(&path, |_| Some("webs".to_owned())), "{path}");
        }
        assert!(container("web").matches("/default/web"));
        assert!(container("web").matches("/machine.slice/machine-web.scope"));
        assert!(container("web").matches("/lxc.payload.web"));
    }

    #[test]
    fn a_container_cannot_name_a_cgroup_into_another_container() {
        let other = ID.replace('0', "f");
        assert!(!container(&other).matches(&format!("/docker/{ID}/docker/{other}")));
        assert!(!container(&other).matches(&format!("/system.slice/docker-{ID}.scope/docker-{other}.scope")));
        assert!(!container(ID).matches(&format!("/docker/{ID}/init")));
    }

    #[test]
    fn selectors_refuse_what_would_match_nothing() {
        for text in ["", "a", "a/b", "/a//b", "/a/", "/../b", "/./a", "/[", "/a\0"] {
            assert!(text.parse::<CgroupGlob>().is_err(), "{text:?}");
        }
        for text in ["", "db", ".service", "a/b.service"] {
            assert!(text.parse::<UnitName>().is_err(), "{text:?}");
        }
        for text in ["", "/x", "a b", "-a"] {
            assert!(text.parse::<ContainerRef>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn matching_never_panics(glob in "/\\PC{0,30}", path in "\\PC{0,60}|(/[a-z.]{0,9}){0,6}") {
            let mut selector = container("web");
            selector.cgroups.extend(glob.parse::<CgroupGlob>().ok());
            selector.units.extend(glob[1..].parse::<UnitName>().ok());
            let _ = selector.matches(&path);
        }
    }
}
