//! Values as a configuration spells them: sizes, secrets, URLs with a password in them.
//!
//! Durations need no type of ours: `#[serde(with = "humantime_serde")]` reads and writes `"4s"`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

/// A number of bytes, spelled `"256KiB"`, `"1MiB"`, `"2GB"` or as a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size; write a whole number with a unit, for example \"256KiB\", \"4MiB\" or \"1GB\"")]
pub struct NotASize(String);

impl ByteSize {
    /// That many times 1,024 bytes.
    #[must_use]
    pub const fn kib(count: u64) -> ByteSize {
        ByteSize(count << 10)
    }

    /// That many times 1,024 KiB.
    #[must_use]
    pub const fn mib(count: u64) -> ByteSize {
        ByteSize(count << 20)
    }

    /// The size in bytes; a size beyond the address space counts as the largest that there is.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<ByteSize, NotASize> {
        let refused = || NotASize(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refused())?;
        let unit = unit.trim_start();
        let factor = if unit.is_empty() {
            1
        } else {
            UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or_else(refused)?
        };
        number.checked_mul(factor).map(ByteSize).ok_or_else(refused)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, factor): &&(&str, u64)| self.0 >= factor && self.0.is_multiple_of(factor);
        let (name, factor) = UNITS[..3].iter().find(fits).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"256KiB\"")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom(NotASize(bytes.to_string())))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Size)
    }
}

/// What is printed in place of a secret.
pub const HIDDEN: &str = "***";

/// Longest secret read from a file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A value that is never printed: `Debug`, `Display` and `Serialize` give `***`.
///
/// A field `key: Secret` is configured as `key = "…"` or, better, as `key_file = "/run/secrets/key"`; one
/// line end after the secret in the file does not count.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Secret {
        Secret(secret.into())
    }

    /// The secret itself. Say at the call why it is needed.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { HIDDEN })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        deserializer.deserialize_any(ValueOrFile).map(Secret)
    }
}

/// A URL of a neighbour; prints without its password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServiceUrl(String);

impl ServiceUrl {
    /// Wraps a URL. What its scheme means is for the one who opens it.
    pub fn new(url: impl Into<String>) -> ServiceUrl {
        ServiceUrl(url.into())
    }

    /// The URL with everything in it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What stands before the first colon; empty if nothing does.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.0.split_once(':').map_or("", |(scheme, _)| scheme)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else { return f.write_str(&self.0) };
        let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
        write!(f, "{scheme}://")?;
        // The last `@`: an unescaped one in a password must not let the rest of it through.
        match place.rsplit_once('@') {
            Some((user, host)) => {
                // Without a colon it may be a user or a token (NATS): hide it too.
                let shown = user.split_once(':').map_or("", |(name, _)| name);
                if shown.is_empty() {
                    write!(f, "{HIDDEN}@{host}")?
                } else {
                    write!(f, "{shown}:{HIDDEN}@{host}")?
                }
            }
            None => f.write_str(place)?,
        }
        for (i, pair) in query.iter().flat_map(|query| query.split('&')).enumerate() {
            let key = pair.split_once('=').map_or(pair, |(key, _)| key);
            let lower = key.to_ascii_lowercase();
            let secret = ["password", "token", "secret", "key"].iter().any(|word| lower.contains(word));
            f.write_str(if i == 0 { "?" } else { "&" })?;
            if secret { write!(f, "{key}={HIDDEN}")? } else { f.write_str(pair)? }
        }
        Ok(())
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ServiceUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ServiceUrl, D::Error> {
        deserializer.deserialize_any(ValueOrFile).map(ServiceUrl)
    }
}

/// The key under which [`crate::config`] hands over a `*_file`.
pub(crate) const FILE_KEY: &str = "file";

/// What a secret's visitor says it expects: how the loader tells a secret from other fields.
pub(crate) const EXPECTS_SECRET: &str = "a string, or the path of a file with it";

struct ValueOrFile;

impl<'de> Visitor<'de> for ValueOrFile {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTS_SECRET)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        match map.next_entry::<String, String>()? {
            Some((key, path)) if key == FILE_KEY => read_secret(Path::new(&path)).map_err(de::Error::custom),
            _ => Err(de::Error::custom("expected a string, or a table with `file`")),
        }
    }
}

fn read_secret(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let size =
        std::fs::metadata(path).map_err(|error| format!("cannot read the file {shown}: {error}"))?.len();
    if size > SECRET_BYTES_MAX {
        return Err(format!("the file {shown} has {size} bytes; a secret has at most {SECRET_BYTES_MAX}"));
    }
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read the file {shown}: {error}"))?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    Ok(secret.strip_suffix('\r').unwrap_or(secret).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("256KiB", 262_144, "256KiB"),
            ("1 MiB", 1 << 20, "1MiB"),
            ("2GB", 2_000_000_000, "1953125KiB"),
            ("1000", 1000, "1000B"),
            ("0", 0, "0B"),
            ("4kB", 4000, "4000B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size, ByteSize(bytes), "{text}");
            assert_eq!(size.to_string(), shown);
            assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
        for bad in ["", "KiB", "1.5MiB", "-1", "12 parsecs", "99999999999GiB", "1MIB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_hide_what_is_secret() {
        for (url, shown) in [
            ("postgres://sync:pw@db/sync", "postgres://sync:***@db/sync"),
            ("postgres://sync:p@ss:w@db:5432/sync", "postgres://sync:***@db:5432/sync"),
            ("nats://t0ken@nats:4222", "nats://***@nats:4222"),
            ("redis://:pw@redis:6379/1", "redis://***@redis:6379/1"),
            (
                "postgres://db/x?user=a&password=pw&sslmode=require",
                "postgres://db/x?user=a&password=***&sslmode=require",
            ),
            ("nats://nats:4222?prefix=blue", "nats://nats:4222?prefix=blue"),
            ("sqlite:data/log.db", "sqlite:data/log.db"),
            ("local:", "local:"),
        ] {
            assert_eq!(ServiceUrl::new(url).to_string(), shown);
            assert_eq!(format!("{:?}", ServiceUrl::new(url)), shown);
        }
        assert_eq!(ServiceUrl::new("nats://a").scheme(), "nats");
    }

    #[test]
    fn a_secret_prints_nothing_of_itself() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:#?}", Some(&secret)), "*** *** Some(\n    ***,\n)");
        assert_eq!(secret.expose(), "hunter2");
    }
}
