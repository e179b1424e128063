//! Which web pages may open sockets here.

use http::HeaderValue;
use url::{Host, Url};

/// The list of origins, closed by default. A request without an `Origin` comes from no page and passes: what
/// protects it is its token, which a foreign page does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins {
    any: bool,
    loopback: bool,
    exact: Vec<String>,
}

/// A text is not an origin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an origin; write it as https://app.example.com, without a path, or \"*\" for every page"
)]
pub struct InvalidOrigin(String);

impl Origins {
    /// Reads a list such as `["https://app.example.com"]`; `"*"` must be written out to allow every page.
    /// `loopback` allows pages that this very machine serves, at any port.
    ///
    /// # Errors
    /// The first entry that is not an origin.
    pub(crate) fn parse(list: &[String], loopback: bool) -> Result<Origins, InvalidOrigin> {
        let mut origins = Origins { loopback, ..Origins::default() };
        for text in list {
            if text == "*" {
                origins.any = true;
                continue;
            }
            let invalid = || InvalidOrigin(text.clone());
            let url = Url::parse(text).map_err(|_| invalid())?;
            let origin = url.origin();
            if !origin.is_tuple() || url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
                return Err(invalid());
            }
            origins.exact.push(origin.ascii_serialization());
        }
        Ok(origins)
    }

    /// Whether a request with this `Origin` header may open a socket.
    #[must_use]
    pub(crate) fn allow(&self, origin: Option<&HeaderValue>) -> bool {
        let Some(origin) = origin else { return true };
        // A page without an origin (a file, a sandboxed frame) says "null": everybody can be that.
        let Ok(text) = origin.to_str() else { return false };
        if self.any {
            return true;
        }
        let Ok(url) = Url::parse(text) else { return false };
        let tuple = url.origin();
        if !tuple.is_tuple() {
            return false;
        }
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        (self.loopback && loopback) || self.exact.contains(&tuple.ascii_serialization())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(list: &[&str], loopback: bool) -> Result<Origins, InvalidOrigin> {
        Origins::parse(&list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), loopback)
    }

    fn allows(origins: &Origins, origin: &str) -> bool {
        origins.allow(Some(&HeaderValue::from_str(origin).unwrap()))
    }

    #[test]
    fn the_list_is_closed_by_default_and_absent_origins_pass() {
        let closed = origins(&[], false).unwrap();
        assert!(closed.allow(None));
        for origin in ["https://app.example.com", "http://localhost:3000", "null", "*"] {
            assert!(!allows(&closed, origin), "{origin}");
        }
    }

    #[test]
    fn an_origin_is_compared_whole() {
        let list = origins(&["https://app.example.com", "http://dev.example.com:8080/"], false).unwrap();
        for (origin, allowed) in [
            ("https://app.example.com", true),
            ("https://app.example.com:443", true),
            ("https://APP.example.com", true),
            ("http://dev.example.com:8080", true),
            ("http://app.example.com", false),
            ("https://app.example.com:8443", false),
            ("https://app.example.com.evil.org", false),
            ("https://evil.org/?https://app.example.com", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(allows(&list, origin), allowed, "{origin}");
        }
    }

    #[test]
    fn loopback_pages_only_where_that_is_wanted() {
        let dev = origins(&[], true).unwrap();
        for (origin, allowed) in [
            ("http://localhost:5173", true),
            ("http://app.localhost", true),
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080", true),
            ("http://localhost.evil.org", false),
            ("http://192.168.1.1", false),
            ("https://app.example.com", false),
            ("null", false),
        ] {
            assert_eq!(allows(&dev, origin), allowed, "{origin}");
        }
    }

    #[test]
    fn everybody_only_when_written_out() {
        assert!(allows(&origins(&["*"], false).unwrap(), "https://anything.example"));
        for bad in ["app.example.com", "https://app.example.com/path", "https://*.example.com:x", "", "null"]
        {
            assert!(origins(&[bad], false).is_err(), "{bad}");
        }
    }
}
