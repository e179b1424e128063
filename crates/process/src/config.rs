//! Configuration in layers: defaults in code < presets < one TOML file < environment < flags.
//!
//! A `Config` is a struct with `#[serde(default, deny_unknown_fields)]`, so that its `Default` is the lowest
//! layer and a key that nobody knows is refused, with the nearest one that exists. Nesting in the environment
//! is a double underscore: `MANYHANDS_EDGE__LISTEN` is `listen` in `[edge]`. A [`Secret`](crate::value::Secret)
//! named `key` may be given as `key_file`, in every layer.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::providers::Serialized;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::value::{EXPECTS_SECRET, FILE_KEY};

/// What the names of environment variables start with.
pub const ENV_PREFIX: &str = "MANYHANDS_";

/// Where a configuration comes from; later calls of the same kind win over earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    presets: Vec<Layer>,
    file: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    not_settings: Vec<String>,
    aliases: BTreeMap<String, String>,
    flags: Vec<Layer>,
}

impl Sources {
    /// Defaults alone.
    #[must_use]
    pub fn new() -> Sources {
        Sources::default()
    }

    /// Values that a command sets beneath everything that a user says; `name` is how `config check` calls it.
    #[must_use]
    pub fn preset(mut self, name: &str, values: Table) -> Sources {
        self.presets.push(Layer { origin: Origin::Preset(name.to_owned()), values, text: None });
        self
    }

    /// The TOML file; it must exist.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Sources {
        self.file = Some(path.into());
        self
    }

    /// A variable of another program's name that sets a key too: `alias("OTHER_LISTEN", "edge.listen")`. Our own
    /// variable for the key wins over it. To be called before [`environment`](Sources::environment).
    #[must_use]
    pub fn alias(mut self, variable: &str, key: &str) -> Sources {
        self.aliases.insert(variable.to_owned(), key.to_owned());
        self
    }

    /// Variables that start with [`ENV_PREFIX`], and [aliases](Sources::alias); the rest is ignored, and so is what Kubernetes injects for a
    /// service of that name (`MANYHANDS_PORT_8080_TCP_ADDR` and the like). Usually `std::env::vars()`.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Sources {
        let ours = |name: &str| name.starts_with(ENV_PREFIX) || self.aliases.contains_key(name);
        self.environment.extend(variables.into_iter().filter(|(name, _)| ours(name)));
        self
    }

    /// Variables with our prefix that are not settings, by their full names, such as `MANYHANDS_CONFIG`.
    #[must_use]
    pub fn except(mut self, variables: &[&str]) -> Sources {
        self.not_settings.extend(variables.iter().map(|&name| name.to_owned()));
        self
    }

    /// A value from the command line: `flag("--listen", "edge.listen", "0.0.0.0:80")`.
    #[must_use]
    pub fn flag(mut self, flag: &str, key: &str, value: impl Into<Value>) -> Sources {
        let path: Vec<&str> = key.split('.').collect();
        let values = nested(&path, value.into());
        self.flags.push(Layer { origin: Origin::Flag(flag.to_owned()), values, text: None });
        self
    }

    /// Merges the layers into a `C`.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its key, its layer, and what to do.
    pub fn load<C: Serialize + DeserializeOwned>(mut self) -> Result<Loaded<C>, ConfigError> {
        let mut layers = self.presets;
        if let Some(path) = &self.file {
            layers.push(read_file(path)?);
        }
        for (name, key) in &self.aliases {
            if let Some(text) = self.environment.remove(name) {
                layers.push(variable_for(name, &key.split('.').collect::<Vec<_>>(), &text));
            }
        }
        for (name, text) in &self.environment {
            if !self.not_settings.contains(name) && !is_service_link(name, text) {
                layers.push(variable(name, text)?);
            }
        }
        layers.extend(self.flags);

        // Each round either ends or changes one value for good: a variable's type is only known from the
        // field that it is for.
        let rounds_max = 2 * layers.len() + 64;
        let mut renamed = Vec::new();
        for _ in 0..rounds_max {
            let merged = merge(&layers);
            match Figment::from(Serialized::defaults(&merged)).extract::<C>() {
                Ok(config) => return Loaded::new(config, &layers),
                Err(error) => {
                    let error = error.into_iter().last().expect("an error has at least one part");
                    repair(&mut layers, &mut renamed, error.path, error.kind)?;
                }
            }
        }
        Err(ConfigError::new("the configuration does not settle", "remove `*_file` keys and try again"))
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded<C> {
    /// The merged configuration.
    pub config: C,
    values: Table,
    origins: BTreeMap<String, Origin>,
}

impl<C: Serialize> Loaded<C> {
    fn new(config: C, layers: &[Layer]) -> Result<Loaded<C>, ConfigError> {
        let values = Table::try_from(&config).map_err(|error| {
            ConfigError::new(format!("the configuration cannot be shown: {error}"), "report this")
        })?;
        let mut origins = BTreeMap::new();
        for layer in layers {
            note_origins(&layer.values, "", &layer.origin, &mut origins);
        }
        Ok(Loaded { config, values, origins })
    }

    /// The whole configuration as TOML, secrets hidden, each line with the layer that set it.
    #[must_use]
    pub fn effective(&self) -> String {
        let mut text = String::new();
        self.render(&self.values, "", &mut text);
        text
    }

    /// Which layer set a key, such as `edge.listen`.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        let inside = format!("{key}.");
        self.origins
            .iter()
            .find(|(set, _)| *set == key || set.starts_with(&inside))
            .map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    fn render(&self, table: &Table, prefix: &str, text: &mut String) {
        let (tables, leaves): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
        if !prefix.is_empty() && !leaves.is_empty() {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("[{prefix}]\n"));
        }
        let lines: Vec<(String, Origin)> = leaves
            .into_iter()
            .map(|(key, value)| (format!("{key} = {value}"), self.origin(&join(prefix, key))))
            .collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(60);
        for (line, origin) in lines {
            text.push_str(&format!("{line:width$}  # {origin}\n"));
        }
        for (key, value) in tables {
            if let Value::Table(inner) = value {
                self.render(inner, &join(prefix, key), text);
            }
        }
    }
}

/// The layer that set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A command's own values.
    Preset(String),
    /// The file at this path.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
    /// The flag of this name.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Preset(name) => f.write_str(name),
            Origin::File(path) => path.display().fmt(f),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// What is wrong with a configuration, in one line: the problem, then the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {fix}")]
pub struct ConfigError {
    /// What is wrong, with key and layer.
    pub problem: String,
    /// What to do about it.
    pub fix: String,
}

impl ConfigError {
    /// An error of a service's own checks on its values, such as two settings that exclude each other.
    pub fn new(problem: impl Into<String>, fix: impl Into<String>) -> ConfigError {
        ConfigError { problem: problem.into(), fix: fix.into() }
    }
}

#[derive(Clone, Debug)]
struct Layer {
    origin: Origin,
    values: Table,
    /// What an environment variable holds, before it was taken for a number or the like.
    text: Option<String>,
}

fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new(format!("cannot read {shown}: {error}"), "check the path given with --config")
    })?;
    let values: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..before].iter().filter(|&&byte| byte == b'\n').count();
        // The message may quote the line, but never spans several here.
        let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
        ConfigError::new(format!("{shown} is not TOML, line {line}: {message}"), "correct that line")
    })?;
    Ok(Layer { origin: Origin::File(path.to_owned()), values, text: None })
}

fn variable(name: &str, text: &str) -> Result<Layer, ConfigError> {
    let key = name.strip_prefix(ENV_PREFIX).unwrap_or(name).to_ascii_lowercase();
    let path: Vec<&str> = key.split("__").collect();
    if path.iter().any(|part| part.is_empty()) {
        return Err(ConfigError::new(
            format!("environment variable {name} names no setting"),
            format!("write {ENV_PREFIX}SECTION__KEY"),
        ));
    }
    Ok(variable_for(name, &path, text))
}

fn variable_for(name: &str, path: &[&str], text: &str) -> Layer {
    let values = nested(path, guess(text));
    Layer { origin: Origin::Environment(name.to_owned()), values, text: Some(text.to_owned()) }
}

/// A variable's value as TOML would read it, or as a string. [`repair`] turns it back when the field wants one.
fn guess(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().filter(|table| table.len() == 1);
    match parsed.and_then(|mut table| table.remove("value")) {
        Some(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Array(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// Whether Kubernetes made this variable because a service is called `manyhands` or `manyhands-…`.
fn is_service_link(name: &str, text: &str) -> bool {
    let port = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
            && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && text.contains("://"))
        || name.match_indices("_PORT_").any(|(at, word)| port(&name[at + word.len()..]))
}

/// Answers an error: by correcting the layers, if the value was only spelled in another way than its field
/// wants it, and otherwise in words.
fn repair(
    layers: &mut [Layer],
    renamed: &mut Vec<Vec<String>>,
    mut path: Vec<String>,
    kind: Kind,
) -> Result<(), ConfigError> {
    if let Kind::UnknownField(name, _) = &kind
        && path.last() != Some(name)
    {
        path.push(name.clone());
    }
    let setter = layers.iter().rposition(|layer| lookup(&layer.values, &path).is_some());
    match &kind {
        Kind::UnknownField(name, known) => {
            let secret = name.strip_suffix("_file").filter(|base| known.contains(base));
            let Some(base) = secret else { return Err(unknown(&path, name, known, layers, setter)) };
            let target: Vec<String> =
                path[..path.len() - 1].iter().cloned().chain([base.to_owned()]).collect();
            for layer in layers.iter_mut() {
                let Some(file) = remove(&mut layer.values, &path) else { continue };
                if lookup(&layer.values, &target).is_some() {
                    return Err(ConfigError::new(
                        format!(
                            "`{}` and `{}` are both set in {}",
                            target.join("."),
                            path.join("."),
                            layer.origin
                        ),
                        "keep one of them",
                    ));
                }
                let parents: Vec<&str> = target.iter().map(String::as_str).collect();
                let file = Value::Table(Table::from_iter([(FILE_KEY.to_owned(), file)]));
                merge_into(&mut layer.values, &nested(&parents, file));
            }
            renamed.push(target);
            Ok(())
        }
        Kind::InvalidType(actual, expected) => {
            if renamed.contains(&path) && matches!(actual, Actual::Map) && expected != EXPECTS_SECRET {
                let key = path.join(".");
                let place = place(layers, setter);
                return Err(ConfigError::new(
                    format!("unknown key `{key}_file` in {place}"),
                    format!("`{key}` is no secret and cannot come from a file"),
                ));
            }
            if let Some(layer) = setter.map(|i| &mut layers[i])
                && let Some(text) = &layer.text
                && let Some(value) = respell(text, actual, expected)
            {
                let parents: Vec<&str> = path.iter().map(String::as_str).collect();
                layer.values = nested(&parents, value);
                return Ok(());
            }
            Err(ConfigError::new(
                format!("`{}` in {} is {}", path.join("."), place(layers, setter), in_words(actual)),
                format!("expected {}", wanted(expected)),
            ))
        }
        _ => Err(explain(&path, &kind, layers, setter)),
    }
}

/// A variable's text in another type than it was taken for, if that is what its field wants.
fn respell(text: &str, actual: &Actual, expected: &str) -> Option<Value> {
    match actual {
        Actual::Str(_) if expected.contains("sequence") => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        Actual::Str(_) => None,
        _ if expected.contains("sequence") || expected.contains("struct") => None,
        Actual::Bool(_) | Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) | Actual::Seq => {
            let takes_text =
                !["u8", "u16", "u32", "u64", "usize", "i8", "i16", "i32", "i64", "f32", "f64", "a boolean"]
                    .contains(&expected);
            takes_text.then(|| Value::String(text.to_owned()))
        }
        _ => None,
    }
}

fn unknown(
    path: &[String],
    name: &str,
    known: &[&str],
    layers: &[Layer],
    setter: Option<usize>,
) -> ConfigError {
    let section = &path[..path.len() - 1];
    let full = |key: &str| section.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".");
    let problem = format!("unknown key `{}` in {}", path.join("."), place(layers, setter));
    let fix = match nearest(name, known) {
        Some(key) => format!("did you mean `{}`?", full(key)),
        None if known.is_empty() => "there is nothing to set here".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    };
    ConfigError { problem, fix }
}

fn explain(path: &[String], kind: &Kind, layers: &[Layer], setter: Option<usize>) -> ConfigError {
    let key = path.join(".");
    let place = place(layers, setter);
    match kind {
        Kind::UnknownVariant(variant, known) => ConfigError {
            problem: format!("`{key}` in {place} is `{variant}`"),
            fix: match nearest(variant, known) {
                Some(near) => format!("did you mean `{near}`? (one of {})", known.join(", ")),
                None => format!("expected one of {}", known.join(", ")),
            },
        },
        Kind::InvalidValue(actual, expected) => ConfigError::new(
            format!("`{key}` in {place} is {}", in_words(actual)),
            format!("expected {}", wanted(expected)),
        ),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => {
            ConfigError::new(format!("`{key}` in {place} is out of range"), "choose a smaller number")
        }
        Kind::MissingField(field) => {
            let key = path.iter().map(String::as_str).chain([field.as_ref()]).collect::<Vec<_>>();
            ConfigError::new(
                format!("`{}` is not set", key.join(".")),
                format!("set it in the file or as {ENV_PREFIX}{}", key.join("__").to_ascii_uppercase()),
            )
        }
        other => {
            let message = other.to_string();
            match message.split_once("; ") {
                Some((problem, fix)) => ConfigError::new(format!("`{key}` in {place}: {problem}"), fix),
                None => ConfigError::new(format!("`{key}` in {place}: {message}"), "correct the value"),
            }
        }
    }
}

fn place(layers: &[Layer], setter: Option<usize>) -> String {
    setter.map_or(Origin::Default, |i| layers[i].origin.clone()).to_string()
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let score = |key: &str| strsim::damerau_levenshtein(name, key);
    let close = known.iter().copied().min_by_key(|key| score(key))?;
    (score(close) <= 1 + name.chars().count() / 4).then_some(close)
}

/// The kind of a value, never the value: it may be a secret in the wrong place.
fn in_words(actual: &Actual) -> String {
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(number) => return format!("the number {number}"),
        Actual::Signed(number) => return format!("the number {number}"),
        Actual::Float(number) => return format!("the number {number}"),
        Actual::Char(_) | Actual::Str(_) => "a string",
        Actual::Seq => "a list",
        Actual::Map | Actual::StructVariant => "a table",
        _ => "something else",
    }
    .to_owned()
}

fn wanted(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => format!("a whole number ({expected})"),
        "i8" | "i16" | "i32" | "i64" => format!("a whole number ({expected})"),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a duration" => "a duration with a unit, such as \"4s\"".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") || other == "a map" => "a table".to_owned(),
        other => other.to_owned(),
    }
}

fn merge(layers: &[Layer]) -> Table {
    let mut merged = Table::new();
    for layer in layers {
        merge_into(&mut merged, &layer.values);
    }
    merged
}

fn merge_into(below: &mut Table, above: &Table) {
    for (key, value) in above {
        match (below.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge_into(below, above),
            _ => {
                below.insert(key.clone(), value.clone());
            }
        }
    }
}

fn note_origins(table: &Table, prefix: &str, origin: &Origin, origins: &mut BTreeMap<String, Origin>) {
    for (key, value) in table {
        let key = join(prefix, key);
        match value {
            Value::Table(inner) => note_origins(inner, &key, origin, origins),
            _ => {
                // A value replaces what was set inside it below, and a table the value that was in its place.
                let inside = format!("{key}.");
                let above = |set: &str| key.strip_prefix(set).is_some_and(|rest| rest.starts_with('.'));
                origins.retain(|set, _| !set.starts_with(&inside) && !above(set));
                origins.insert(key, origin.clone());
            }
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

fn nested(path: &[&str], value: Value) -> Table {
    let (last, parents) = path.split_last().expect("a key has at least one part");
    let leaf = Table::from_iter([((*last).to_owned(), value)]);
    parents.iter().rev().fold(leaf, |inner, key| Table::from_iter([((*key).to_owned(), Value::Table(inner))]))
}

fn lookup<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (last, parents) = path.split_last()?;
    parents.iter().try_fold(table, |table, key| table.get(key)?.as_table())?.get(last)
}

fn remove(table: &mut Table, path: &[String]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    parents.iter().try_fold(table, |table, key| table.get_mut(key)?.as_table_mut())?.remove(last)
}
