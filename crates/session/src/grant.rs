use std::collections::BTreeSet;

use manyhands_proto::{DocumentName, v1};

/// What a verified token allows. The edge asks it at every frame, the owner again at every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who it is. A replica belongs to the subject that first wrote with it.
    pub subject: String,
    /// What may be done.
    pub scopes: Scopes,
    /// Where it may be done.
    pub workspaces: Workspaces,
    /// When it ends, in milliseconds since the Unix epoch. Ends open sockets too.
    pub expires_at_ms: u64,
}

/// One thing that a token can allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// See a document and be present in it.
    Read,
    /// Change a document. Implies [`Scope::Read`].
    Write,
    /// Everything, and the administration. Implies the others.
    Admin,
}

/// A set of [`Scope`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes {
    read: bool,
    write: bool,
    admin: bool,
}

/// The documents that a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workspaces {
    /// All of them: `"*"` in the token.
    Any,
    /// Exactly these.
    Names(BTreeSet<DocumentName>),
}

impl Grant {
    /// Whether `scope` is allowed in `document`. Says nothing about the expiry.
    #[must_use]
    pub fn allows(&self, document: &DocumentName, scope: Scope) -> bool {
        self.scopes.contains(scope) && self.workspaces.contains(document)
    }

    /// Whether it has ended at `wall_ms`, milliseconds since the Unix epoch.
    #[must_use]
    pub fn is_expired(&self, wall_ms: u64) -> bool {
        wall_ms >= self.expires_at_ms
    }

    /// As it travels to the document's owner.
    #[must_use]
    pub fn to_wire(&self) -> v1::Grant {
        let workspaces = match &self.workspaces {
            Workspaces::Any => vec!["*".to_owned()],
            Workspaces::Names(names) => names.iter().map(ToString::to_string).collect(),
        };
        v1::Grant {
            subject: self.subject.clone(),
            scopes: self.scopes.names().map(str::to_owned).collect(),
            workspaces,
            expires_at_ms: self.expires_at_ms,
        }
    }

    /// From an edge. Scopes and names that mean nothing here allow nothing.
    #[must_use]
    pub fn from_wire(wire: &v1::Grant) -> Grant {
        Grant {
            subject: wire.subject.clone(),
            scopes: Scopes::parse(wire.scopes.iter().map(String::as_str)),
            workspaces: Workspaces::parse(wire.workspaces.iter().map(String::as_str)),
            expires_at_ms: wire.expires_at_ms,
        }
    }
}

impl Scopes {
    /// The set of these.
    #[must_use]
    pub fn of(scopes: &[Scope]) -> Scopes {
        let mut set = Scopes::default();
        for scope in scopes {
            match scope {
                Scope::Read => set.read = true,
                Scope::Write => set.write = true,
                Scope::Admin => set.admin = true,
            }
        }
        set
    }

    /// From the words of a token; words that this build does not know allow nothing.
    #[must_use]
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Scopes {
        let known = words.into_iter().filter_map(|word| match word {
            "read" => Some(Scope::Read),
            "write" => Some(Scope::Write),
            "admin" => Some(Scope::Admin),
            _ => None,
        });
        Scopes::of(&known.collect::<Vec<_>>())
    }

    /// Whether `scope` is in it, itself or by a greater one.
    #[must_use]
    pub fn contains(self, scope: Scope) -> bool {
        match scope {
            Scope::Read => self.read || self.write || self.admin,
            Scope::Write => self.write || self.admin,
            Scope::Admin => self.admin,
        }
    }

    /// The words of a token for what was given, without what is implied.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [(self.read, "read"), (self.write, "write"), (self.admin, "admin")]
            .into_iter()
            .filter_map(|(given, name)| given.then_some(name))
    }
}

impl Workspaces {
    /// From the words of a token: `*` is all; what is not a name of a document is none.
    #[must_use]
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Workspaces {
        let mut names = BTreeSet::new();
        for word in words {
            if word == "*" {
                return Workspaces::Any;
            }
            names.extend(word.parse::<DocumentName>().ok());
        }
        Workspaces::Names(names)
    }

    /// Whether `document` is one of them.
    #[must_use]
    pub fn contains(&self, document: &DocumentName) -> bool {
        match self {
            Workspaces::Any => true,
            Workspaces::Names(names) => names.contains(document),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(scopes: &[&str], workspaces: &[&str]) -> Grant {
        Grant {
            subject: "ada".to_owned(),
            scopes: Scopes::parse(scopes.iter().copied()),
            workspaces: Workspaces::parse(workspaces.iter().copied()),
            expires_at_ms: 1_000,
        }
    }

    // enforces: I-15
    #[test]
    fn a_grant_allows_its_scopes_in_its_workspaces_and_nothing_else() {
        let demo: DocumentName = "demo".parse().unwrap();
        let check = |scopes: &[&str], workspaces: &[&str], expected: [bool; 3]| {
            let grant = grant(scopes, workspaces);
            let got = [Scope::Read, Scope::Write, Scope::Admin].map(|scope| grant.allows(&demo, scope));
            assert_eq!(got, expected, "{scopes:?} in {workspaces:?}");
            assert_eq!(Grant::from_wire(&grant.to_wire()), grant);
        };
        check(&["read"], &["demo"], [true, false, false]);
        check(&["write"], &["demo", "other"], [true, true, false]);
        check(&["read", "write"], &["*"], [true, true, false]);
        check(&["admin"], &["demo"], [true, true, true]);
        check(&[], &["*"], [false; 3]);
        check(&["Write", "writes", ""], &["*"], [false; 3]);
        check(&["admin"], &["Demo", "demo2", "dem*", "de", ""], [false; 3]);
        check(&["admin"], &[], [false; 3]);
    }

    #[test]
    fn a_grant_ends_at_its_last_millisecond() {
        let grant = grant(&["read"], &["*"]);
        assert!(!grant.is_expired(999));
        assert!(grant.is_expired(1_000));
    }
}
