//! The bus inside one process, held to the contract of all.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use manyhands_bus::conformance::{Ends, LIMITS};
use manyhands_bus::{LocalBus, OpenError, SharedBus, WhenAway, open};

async fn one_bus() -> (Ends, ()) {
    let bus: SharedBus = Arc::new(LocalBus::new(LIMITS));
    (Ends { here: bus.clone(), there: bus }, ())
}

manyhands_bus::conformance!(one_bus);

#[tokio::test]
async fn the_scheme_chooses() {
    assert!(open("local:", WhenAway::Fail).await.unwrap().is_connected());
    for bad in ["", "local", "local:x", "kafka://user:hunter2@host", "nats://a?prefix=*"] {
        match open(bad, WhenAway::Fail).await {
            Err(OpenError::Url(why)) => assert!(!why.contains("hunter2"), "{why}"),
            _ => panic!("{bad} was opened"),
        }
    }
}
