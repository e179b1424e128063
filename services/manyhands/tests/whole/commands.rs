//! The mistakes that a newcomer makes: each is one line that says what, and how to mend it.

use std::net::TcpListener;

use crate::world::{Dev, failure, run};

/// One line that names what is wrong, and says what to do.
fn check(said: &str, what: &[&str]) {
    for part in what {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!said.contains("panicked") && !said.contains("Backtrace"), "{said}");
    assert!(said.lines().filter(|line| line.starts_with("error:")).count() == 1, "{said}");
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = tempfile::tempdir().unwrap();
    let said = failure(&["dev", "--listen", &address, "--data", data.path().to_str().unwrap()]);
    check(&said, &["cannot listen on", &address]);
}

#[test]
fn a_data_directory_in_use() {
    let data = tempfile::tempdir().unwrap();
    let _dev = Dev::start(data.path(), "127.0.0.1:0");
    let said = failure(&["dev", "--listen", "127.0.0.1:0", "--data", data.path().to_str().unwrap()]);
    check(&said, &["is in use by process", "fix:", "--data"]);
}

#[test]
fn the_development_secret_stays_on_this_machine() {
    let data = tempfile::tempdir().unwrap();
    let said = failure(&["dev", "--listen", "0.0.0.0:0", "--data", data.path().to_str().unwrap()]);
    check(&said, &["development secret", "fix:", "--secret-file"]);
}

#[test]
fn a_key_that_does_not_exist() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manyhands.toml");
    std::fs::write(&path, "[edge]\nlisten = \"127.0.0.1:0\"\nallowed_origin = []\n").unwrap();
    let said = failure(&["config", "check", "--config", path.to_str().unwrap()]);
    check(&said, &["allowed_origin", "did you mean", "allowed_origins", "manyhands.toml"]);
    let said = failure(&["config", "check", "--config", "/nowhere/manyhands.toml"]);
    check(&said, &["/nowhere/manyhands.toml"]);
}

#[test]
fn a_database_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manyhands.toml");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(&path, format!("log = \"postgres://someone:hush@127.0.0.1:{closed}/none\"\n")).unwrap();
    for command in ["migrate", "document"] {
        let said = failure(&[command, "--config", path.to_str().unwrap()]);
        check(&said, &["event log"]);
        assert!(!said.contains("hush"), "{said}");
    }
}

#[test]
fn a_log_that_was_never_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manyhands.toml");
    let log = folder.path().join("log.db");
    std::fs::write(&path, format!("log = \"sqlite:{}\"\nbus = \"local:\"\n", log.display())).unwrap();
    let said = failure(&["document", "--config", path.to_str().unwrap()]);
    check(&said, &["migrate"]);
    assert!(run(&["migrate", "--config", path.to_str().unwrap()]).status.success());
    assert!(run(&["migrate", "--config", path.to_str().unwrap()]).status.success(), "twice is fine");
}

#[test]
fn a_secret_that_is_too_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "short\n").unwrap();
    let said = failure(&["token", "create", "--workspace", "demo", "--secret-file", path.to_str().unwrap()]);
    check(&said, &["at least 32", "fix:"]);
}

#[test]
fn the_configuration_says_where_it_comes_from_and_hides_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manyhands.toml");
    std::fs::write(&path, "[edge]\nsecret = \"a secret that nobody may read on a screen\"\n").unwrap();
    let output = run(&["config", "check", "--config", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.contains("manyhands.toml") && shown.contains("# default") && !shown.contains("nobody may read")
    );
}
