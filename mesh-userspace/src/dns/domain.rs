//! The domains that the mesh's names are in.

use std::{fmt, str::FromStr};

use hickory_proto::rr::Name;

/// A domain of one label or more, such as `mesh`; case does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(Name);

impl Domain {
    pub fn name(&self) -> &Name {
        &self.0
    }

    /// Returns the labels of `name` before the domain, in lower case; `None`: it is not in the domain, or has a label
    /// that is no text.
    pub fn labels_below(&self, name: &Name) -> Option<Vec<String>> {
        if !self.0.zone_of(name) {
            return None;
        }
        let below = name.iter().len().checked_sub(self.0.iter().len())?;
        let label = |label: &[u8]| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase);
        name.iter().take(below).map(label).collect()
    }
}

impl FromStr for Domain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() > 128 || !text.split('.').all(is_label) {
            return Err("not a domain");
        }
        let mut name = Name::from_ascii(text.to_ascii_lowercase()).map_err(|_| "not a domain")?;
        name.set_fqdn(true);
        Ok(Self(name))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_ascii();
        f.write_str(text.trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_below_a_domain_are_those_before_it_whatever_the_case() {
        let domain: Domain = "Mesh".parse().unwrap();
        let below = |name: &str| domain.labels_below(&Name::from_ascii(name).unwrap());
        assert_eq!(below("dB.mESH."), Some(vec!["db".to_owned()]));
        assert_eq!(below("mesh."), Some(vec![]));
        assert_eq!(below("*.mesh."), Some(vec!["*".to_owned()]));
        for outside in ["db.mesh.example.", "amesh.", ".", "db."] {
            assert_eq!(below(outside), None, "{outside}");
        }
        assert_eq!(domain.to_string(), "mesh");
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        for text in ["", ".", "mesh.", "a..b", "-a", "a-", "a b", "ä", &"a".repeat(64)] {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
        assert!("svc.example-1.org".parse::<Domain>().is_ok());
    }
}
