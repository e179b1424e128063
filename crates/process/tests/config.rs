//! The layers, and what is said when one of them is wrong.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use manyhands_process::config::{Loaded, Origin, Sources};
use manyhands_process::value::{ByteSize, Secret, ServiceUrl};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    name: String,
    log: ServiceUrl,
    edge: Edge,
    auth: Auth,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "manyhands".into(),
            log: ServiceUrl::new("sqlite:data/log.db"),
            edge: Edge::default(),
            auth: Auth { hs256_secret: Secret::new("dev-secret") },
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Edge {
    listen: String,
    port: u16,
    frame_bytes_max: ByteSize,
    #[serde(with = "humantime_serde")]
    grace: Duration,
    origins: Vec<String>,
    format: Format,
    debug: bool,
    zone: Option<String>,
}

impl Default for Edge {
    fn default() -> Edge {
        Edge {
            listen: "127.0.0.1:8080".into(),
            port: 1,
            frame_bytes_max: ByteSize::mib(1),
            grace: Duration::from_secs(20),
            origins: Vec::new(),
            format: Format::Auto,
            debug: false,
            zone: None,
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Auto,
    Pretty,
    Json,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    hs256_secret: Secret,
}

struct Given {
    directory: tempfile::TempDir,
    file: Option<&'static str>,
    environment: Vec<(&'static str, String)>,
}

fn given(file: &'static str) -> Given {
    Given { directory: tempfile::tempdir().unwrap(), file: Some(file), environment: Vec::new() }
}

fn env(name: &'static str, value: impl Into<String>) -> Given {
    Given { directory: tempfile::tempdir().unwrap(), file: None, environment: vec![(name, value.into())] }
}

impl Given {
    fn and(mut self, name: &'static str, value: impl Into<String>) -> Given {
        self.environment.push((name, value.into()));
        self
    }

    fn sources(&self) -> Sources {
        let mut sources = Sources::new();
        if let Some(text) = self.file {
            let path = self.directory.path().join("manyhands.toml");
            std::fs::write(&path, text).unwrap();
            sources = sources.file(path);
        }
        sources.environment(self.environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())))
    }

    fn load(&self) -> Loaded<Config> {
        self.sources().load().unwrap()
    }

    #[track_caller]
    fn refused(&self, expected: &str) {
        let error = self.sources().load::<Config>().unwrap_err().to_string();
        let directory = format!("{}/", self.directory.path().display());
        let error = error.replace(&directory, "");
        assert_eq!(error, expected);
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn a_later_layer_wins_and_is_named() {
    let given = given("name = 'file'\n[edge]\nlisten = 'file'\nport = 2\nformat = 'json'\n")
        .and("MANYHANDS_EDGE__LISTEN", "env")
        .and("MANYHANDS_EDGE__PORT", "3")
        .and("OTHER_EDGE__PORT", "4");
    let preset = "[edge]\nlisten = 'preset'\ngrace = '1s'".parse().unwrap();
    let loaded: Loaded<Config> =
        given.sources().preset("dev", preset).flag("--listen", "edge.listen", "flag").load().unwrap();
    let edge = &loaded.config.edge;
    assert_eq!((edge.listen.as_str(), edge.port, edge.grace), ("flag", 3, Duration::from_secs(1)));
    assert_eq!((loaded.config.name.as_str(), &edge.format), ("file", &Format::Json));
    assert_eq!(edge.frame_bytes_max, ByteSize(1 << 20));
    assert_eq!(loaded.origin("edge.listen"), Origin::Flag("--listen".into()));
    assert_eq!(loaded.origin("edge.port"), Origin::Environment("MANYHANDS_EDGE__PORT".into()));
    assert_eq!(loaded.origin("edge.grace"), Origin::Preset("dev".into()));
    assert_eq!(loaded.origin("edge.debug"), Origin::Default);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    given("nmae = 'x'").refused("unknown key `nmae` in manyhands.toml; did you mean `name`?");
    given("[edge]\nlistne = 'x'")
        .refused("unknown key `edge.listne` in manyhands.toml; did you mean `edge.listen`?");
    given("[edeg]\nlisten = 'x'").refused("unknown key `edeg` in manyhands.toml; did you mean `edge`?");
    given("colour = 'x'")
        .refused("unknown key `colour` in manyhands.toml; known here: name, log, edge, auth");
    env("MANYHANDS_EDGE__LISTNE", "x").refused(
        "unknown key `edge.listne` in environment variable MANYHANDS_EDGE__LISTNE; did you mean `edge.listen`?",
    );
    env("MANYHANDS_EDGE____LISTEN", "x").refused(
        "environment variable MANYHANDS_EDGE____LISTEN names no setting; write MANYHANDS_SECTION__KEY",
    );
}

#[test]
fn a_wrong_value_says_key_layer_and_what_was_expected() {
    given("[edge]\nlisten = 80")
        .refused("`edge.listen` in manyhands.toml is the number 80; expected a string");
    given("[edge]\nport = '80'")
        .refused("`edge.port` in manyhands.toml is a string; expected a whole number (u16)");
    given("edge = 1").refused("`edge` in manyhands.toml is the number 1; expected a table");
    given("[edge]\nformat = 'jsno'").refused(
        "`edge.format` in manyhands.toml is `jsno`; did you mean `json`? (one of auto, pretty, json)",
    );
    given("[edge]\nframe_bytes_max = '12 parsecs'").refused(
        "`edge.frame_bytes_max` in manyhands.toml: `12 parsecs` is not a size; \
         write a whole number with a unit, for example \"256KiB\", \"4MiB\" or \"1GB\"",
    );
    given("[edge\n")
        .refused("manyhands.toml is not TOML, line 1: unclosed table, expected `]`; correct that line");
    env("MANYHANDS_EDGE__DEBUG", "maybe").refused(
        "`edge.debug` in environment variable MANYHANDS_EDGE__DEBUG is a string; expected true or false",
    );
    env("MANYHANDS_EDGE__PORT", "70000")
        .refused("`edge.port` in environment variable MANYHANDS_EDGE__PORT is the number 70000; expected a whole number (u16)");
    let missing = Sources::new().file("/nowhere/manyhands.toml").load::<Config>().unwrap_err();
    assert_eq!(missing.fix, "check the path given with --config");
}

#[test]
fn a_duration_needs_a_unit() {
    for source in [given("[edge]\ngrace = '4'"), env("MANYHANDS_EDGE__GRACE", "4")] {
        let error = source.sources().load::<Config>().unwrap_err().to_string();
        assert!(error.contains("edge.grace") && error.contains("unit"), "{error}");
    }
    assert_eq!(env("MANYHANDS_EDGE__GRACE", "90s").load().config.edge.grace, Duration::from_secs(90));
}

#[test]
fn a_variable_is_read_as_its_field_wants_it() {
    let loaded = env("MANYHANDS_NAME", "123")
        .and("MANYHANDS_EDGE__LISTEN", "true")
        .and("MANYHANDS_EDGE__ZONE", "7")
        .and("MANYHANDS_EDGE__DEBUG", "true")
        .and("MANYHANDS_EDGE__ORIGINS", "https://a.example, https://b.example")
        .and("MANYHANDS_EDGE__FRAME_BYTES_MAX", "64KiB")
        .and("MANYHANDS_AUTH__HS256_SECRET", "00123")
        .load();
    assert_eq!(loaded.config.name, "123");
    assert_eq!(loaded.config.edge.listen, "true");
    assert_eq!(loaded.config.edge.zone.as_deref(), Some("7"));
    assert!(loaded.config.edge.debug);
    assert_eq!(loaded.config.edge.origins, ["https://a.example", "https://b.example"]);
    assert_eq!(loaded.config.edge.frame_bytes_max, ByteSize::kib(64));
    assert_eq!(loaded.config.auth.hs256_secret.expose(), "00123");
    assert_eq!(env("MANYHANDS_EDGE__ORIGINS", "['a', 'b']").load().config.edge.origins, ["a", "b"]);
    assert_eq!(
        env("MANYHANDS_EDGE__FRAME_BYTES_MAX", "4096").load().config.edge.frame_bytes_max,
        ByteSize(4096)
    );
}

#[test]
fn what_kubernetes_injects_is_no_setting() {
    let loaded = env("MANYHANDS_SERVICE_HOST", "10.0.0.1")
        .and("MANYHANDS_EDGE_SERVICE_PORT_HTTP", "8080")
        .and("MANYHANDS_PORT", "tcp://10.0.0.1:8080")
        .and("MANYHANDS_EDGE_PORT_8080_TCP_ADDR", "10.0.0.1")
        .and("MANYHANDS_EDGE_PORT_8080_TCP", "tcp://10.0.0.1:8080")
        .load();
    assert_eq!(loaded.origin("edge"), Origin::Default);
    let config = env("MANYHANDS_CONFIG", "x");
    config.refused(
        "unknown key `config` in environment variable MANYHANDS_CONFIG; known here: name, log, edge, auth",
    );
    config.sources().except(&["MANYHANDS_CONFIG"]).load::<Config>().unwrap();
}

#[test]
fn a_secret_comes_from_a_file() {
    let given = given("[auth]\nhs256_secret = 'from-the-file'\n");
    let path = given.directory.path().join("secret");
    std::fs::write(&path, "hunter2\n").unwrap();
    let given = given.and("MANYHANDS_AUTH__HS256_SECRET_FILE", path.display().to_string());
    let loaded = given.load();
    assert_eq!(loaded.config.auth.hs256_secret.expose(), "hunter2");
    assert_eq!(
        loaded.origin("auth.hs256_secret"),
        Origin::Environment("MANYHANDS_AUTH__HS256_SECRET_FILE".into())
    );

    let above = given.sources().flag("--secret", "auth.hs256_secret", "above").load::<Config>().unwrap();
    assert_eq!(above.config.auth.hs256_secret.expose(), "above");
}

#[test]
fn a_secret_file_that_is_wrong() {
    given("[auth]\nhs256_secret = 'a'\nhs256_secret_file = 'b'").refused(
        "`auth.hs256_secret` and `auth.hs256_secret_file` are both set in manyhands.toml; keep one of them",
    );
    given("name_file = 'b'").refused(
        "unknown key `name_file` in manyhands.toml; `name` is no secret and cannot come from a file",
    );
    given("[auth]\nhs256_secret_file = '/nowhere/secret'").refused(
        "`auth.hs256_secret` in manyhands.toml: cannot read the file /nowhere/secret: \
         No such file or directory (os error 2); correct the value",
    );
}

#[test]
fn the_effective_configuration_names_layers_and_hides_secrets() {
    let given = given("log = 'postgres://sync:hunter2@db/sync'\n[auth]\nhs256_secret = 'hunter2'\n")
        .and("MANYHANDS_EDGE__PORT", "3");
    let loaded = given.load();
    let effective = loaded.effective();
    assert!(!effective.contains("hunter2"), "{effective}");
    assert!(!format!("{:?}", loaded.config).contains("hunter2"));
    let shown: Vec<String> = effective
        .replace(&format!("{}/", given.directory.path().display()), "")
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for line in [
        "log = \"postgres://sync:***@db/sync\" # manyhands.toml",
        "name = \"manyhands\" # default",
        "[auth]",
        "hs256_secret = \"***\" # manyhands.toml",
        "[edge]",
        "port = 3 # environment variable MANYHANDS_EDGE__PORT",
        "grace = \"20s\" # default",
        "frame_bytes_max = \"1MiB\" # default",
    ] {
        assert!(shown.iter().any(|have| have == line), "{line} not in\n{}", shown.join("\n"));
    }
    effective.parse::<toml::Table>().unwrap();
}

#[test]
fn a_variable_of_another_name_sets_a_key_and_yields_to_ours() {
    let load = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|&(name, text)| (name.to_owned(), text.to_owned()));
        Sources::new().alias("OTHER_LISTEN", "edge.listen").environment(variables).load::<Config>()
    };
    let other = ("OTHER_LISTEN", "1.2.3.4:5");
    let loaded = load(&[other, ("OTHER_PORT", "9")]).unwrap();
    assert_eq!(loaded.config.edge.listen, "1.2.3.4:5");
    assert_eq!(loaded.origin("edge.listen"), Origin::Environment("OTHER_LISTEN".to_owned()));
    let loaded = load(&[("MANYHANDS_EDGE__LISTEN", "5.6.7.8:9"), other]).unwrap();
    assert_eq!(loaded.config.edge.listen, "5.6.7.8:9");
    let wrong = Sources::new().alias("OTHER_PORT", "edge.port");
    let wrong = wrong.environment([("OTHER_PORT".to_owned(), "many".to_owned())]).load::<Config>();
    assert!(wrong.unwrap_err().to_string().contains("OTHER_PORT"));
}

#[test]
fn no_error_prints_a_secret() {
    for file in [
        "[auth]\nhs256_secret = ['hunter2']",
        "auth = 'hunter2'",
        "[edge]\nport = 'hunter2'",
        "[edge]\ndebug = 'hunter2'",
    ] {
        let error = given(file).sources().load::<Config>().unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
