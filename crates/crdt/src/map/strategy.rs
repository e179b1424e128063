//! How the maps of a document merge.

use std::fmt;
use std::str::FromStr;

/// How concurrent writes to one key of a map merge. Fixed when the document is made; texts merge alike in
/// all three.
///
/// ```
/// use manyhands_crdt::Strategy;
///
/// for strategy in Strategy::ALL {
///     assert_eq!(Strategy::from_code(strategy.code()), Some(strategy));
///     assert_eq!(strategy.name().parse(), Ok(strategy));
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Strategy {
    /// A write replaces exactly the values that its author had seen. Concurrent ones are all kept until
    /// somebody who saw them writes.
    #[default]
    Crdt = 1,
    /// The write with the greatest stamp wins, by whatever way and however late it comes.
    Lww = 2,
    /// The last write in the log wins. A write may say what it expects to replace.
    Server = 3,
}

/// A name that no strategy has.
///
/// ```
/// use manyhands_crdt::Strategy;
///
/// let unknown = "newest".parse::<Strategy>().unwrap_err();
/// assert!(unknown.to_string().contains("newest"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no strategy is called {0:?}; there are \"crdt\", \"lww\" and \"server\"")]
pub struct UnknownStrategy(String);

impl Strategy {
    /// All of them, in order of their codes.
    pub const ALL: [Strategy; 3] = [Strategy::Crdt, Strategy::Lww, Strategy::Server];

    /// The number that stands for it in saved bytes and in records.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The strategy with that number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Strategy> {
        Strategy::ALL.into_iter().find(|strategy| strategy.code() == code)
    }

    /// Its name, as configuration and URLs spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Crdt => "crdt",
            Strategy::Lww => "lww",
            Strategy::Server => "server",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Takes the names, and those that EtherPly has for two of them: `automerge` and `server-auth`.
///
/// ```
/// use manyhands_crdt::Strategy;
///
/// assert_eq!("lww".parse(), Ok(Strategy::Lww));
/// assert_eq!("automerge".parse(), Ok(Strategy::Crdt));
/// assert!("newest".parse::<Strategy>().is_err());
/// ```
impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Strategy, UnknownStrategy> {
        match name {
            "automerge" => Ok(Strategy::Crdt),
            "server-auth" => Ok(Strategy::Server),
            _ => Strategy::ALL
                .into_iter()
                .find(|strategy| strategy.name() == name)
                .ok_or_else(|| UnknownStrategy(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_come_back() {
        for strategy in Strategy::ALL {
            assert_eq!(Strategy::from_code(strategy.code()), Some(strategy));
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        assert_eq!(Strategy::ALL.map(Strategy::code), [1, 2, 3]);
        assert_eq!(Strategy::from_code(0), None);
        assert_eq!(Strategy::from_code(4), None);
        assert_eq!("server-auth".parse(), Ok(Strategy::Server));
        assert!("CRDT".parse::<Strategy>().unwrap_err().to_string().contains("\"CRDT\""));
    }
}
