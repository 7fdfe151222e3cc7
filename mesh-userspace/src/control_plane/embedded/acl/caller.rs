//! Who makes a request, and what that one may do. An error names the permission that is missing, in Consul's words.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    registry::{ANONYMOUS, Grant, Registry},
    rules::{Access, Resource},
};

/// Consul's words for a token that there is not, or is no more.
pub const NOT_FOUND: &str = "ACL not found";

/// Something that a request needs: access to a resource, by name where it has names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right<'n> {
    pub resource: Resource,
    pub access: Access,
    pub name: &'n str,
}

impl<'n> Right<'n> {
    fn new(resource: Resource, access: Access, name: &'n str) -> Self {
        Self { resource, access, name }
    }

    pub fn service_read(name: &'n str) -> Self {
        Self::new(Resource::Service, Access::Read, name)
    }

    pub fn service_write(name: &'n str) -> Self {
        Self::new(Resource::Service, Access::Write, name)
    }

    pub fn node_read(name: &'n str) -> Self {
        Self::new(Resource::Node, Access::Read, name)
    }

    pub fn node_write(name: &'n str) -> Self {
        Self::new(Resource::Node, Access::Write, name)
    }

    pub fn agent_read(name: &'n str) -> Self {
        Self::new(Resource::Agent, Access::Read, name)
    }

    pub fn intention_read(name: &'n str) -> Self {
        Self::new(Resource::Intention, Access::Read, name)
    }

    pub fn intention_write(name: &'n str) -> Self {
        Self::new(Resource::Intention, Access::Write, name)
    }
}

impl Right<'static> {
    pub const OPERATOR_READ: Self = Self { resource: Resource::Operator, access: Access::Read, name: "" };
    pub const OPERATOR_WRITE: Self = Self { resource: Resource::Operator, access: Access::Write, name: "" };
    pub const ACL_READ: Self = Self { resource: Resource::Acl, access: Access::Read, name: "" };
    pub const ACL_WRITE: Self = Self { resource: Resource::Acl, access: Access::Write, name: "" };
}

/// A right that the caller has not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("Permission denied: {who} lacks permission '{}:{access}'{on}{hint}", resource.as_str())]
    Lacks { who: String, resource: Resource, access: &'static str, on: String, hint: &'static str },
    #[error("{NOT_FOUND}")]
    NoToken,
}

/// Who makes a request: somebody who may do everything (ACLs are off and the door let the request in, or it came
/// through root's socket), or the holder of a token.
#[derive(Clone, Debug)]
pub struct Caller(Option<Arc<Grant>>);

impl Caller {
    pub const UNRESTRICTED: Self = Self(None);

    pub fn holder(grant: Arc<Grant>) -> Self {
        Self(Some(grant))
    }

    /// Returns what the caller's token grants; `None` for one who may do everything.
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.0.as_ref()
    }

    pub fn may(&self, right: Right<'_>) -> bool {
        let Right { resource, access, name } = right;
        self.0.as_ref().is_none_or(|grant| grant.authorizer.allows(resource, access, name))
    }

    /// # Errors
    /// When the caller may not, with the name of what is missing.
    pub fn demand(&self, right: Right<'_>) -> Result<(), Denied> {
        let Some(grant) = self.0.as_ref().filter(|_| !self.may(right)) else { return Ok(()) };
        let anonymous = &*grant.accessor == ANONYMOUS;
        Err(Denied::Lacks {
            who: if anonymous {
                "anonymous token".to_owned()
            } else {
                format!("token with AccessorID '{}'", grant.accessor)
            },
            resource: right.resource,
            access: if right.access == Access::Write { "write" } else { "read" },
            on: if right.name.is_empty() { String::new() } else { format!(" on {:?}", right.name) },
            hint: if anonymous {
                ". The anonymous token is used implicitly when a request does not specify a token."
            } else {
                ""
            },
        })
    }

    /// Returns the same caller with what the token grants now.
    ///
    /// # Errors
    /// [`Denied::NoToken`] when the token is no more.
    pub fn renewed(&self, registry: &Registry, now: OffsetDateTime) -> Result<Self, Denied> {
        match &self.0 {
            None => Ok(Self::UNRESTRICTED),
            Some(grant) => match registry.grant(&grant.secret, now) {
                Some(now) => Ok(Self(Some(now.clone()))),
                None => Err(Denied::NoToken),
            },
        }
    }
}
