//! The Rust client of Manyhands: connect, open, edit, observe.
//!
//! A [`Client`] keeps one connection and brings it back when it is lost. A [`Workspace`] is merged
//! locally: edits apply at once, with or without a connection, and are kept until the server has stored
//! them. What the server refuses is handed back, never dropped in silence.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use manyhands_client::{Bias, Client, ClientOptions, Cursor, Token, Update};
//!
//! let token = Token::from_fn(|| async { Ok("a token of my own service".to_owned()) });
//! let client = Client::connect(ClientOptions::new("ws://127.0.0.1:8080".parse()?, token));
//! let workspace = client.open("workspace-123")?;
//! workspace.loaded().await?;
//!
//! let text = workspace.text("main");
//! text.insert(0, "Hello")?;                       // applied at once
//! let todos = workspace.map("todos");
//! todos.set("t1", &serde_json::json!({ "title": "Ship it", "done": false }))?;
//! workspace.saved().await?;                       // durable on the server
//!
//! let caret = text.anchor(5, Bias::Left);         // stays behind the "o", whatever others type
//! workspace.set_presence(&serde_json::json!({ "name": "Ada" }), &[Cursor::caret("main", caret)]);
//! for peer in workspace.peers() {
//!     println!("{} is at {:?}", peer.user, peer.cursors);
//! }
//!
//! let (mut shown, mut updates) = workspace.observe_text("main");
//! while let Some(update) = updates.next().await {
//!     match update {
//!         Update::Patches { patches, .. } => println!("{patches:?} on top of {shown}"),
//!         Update::Reset | Update::Lagged(_) => shown = text.to_string(),
//!     }
//! }
//! client.close(Duration::from_secs(5)).await?;    // sends what is pending first
//! # Ok(())
//! # }
//! ```

mod client;
mod document;
mod driver;
mod edit;
pub mod json;
mod map;
mod options;
mod presence;
mod socket;
mod storage;
mod text;
mod workspace;

pub use client::{Client, Connection, Moved, Stop, Unsaved};
pub use document::{EditError, Refused};
pub use edit::{Edit, LocalEdit};
pub use manyhands_crdt::{
    Anchor, Bias, Document, EditError as DocumentError, Hlc, JsonFlaw, Patch, ReplicaId, Strategy,
};
pub use manyhands_proto::Code;
pub use map::{Item, Map, MapObserver, MapUpdate};
pub use options::{ClientOptions, Token, TokenError};
pub use presence::{Cursor, LineColumn, PeerCursor, Present};
pub use socket::ConnectError;
pub use storage::{Storage, StorageError};
pub use text::Text;
pub use workspace::{Observer, SaveError, Status, Update, Workspace};

/// Whether a text is JSON that a map can hold.
///
/// # Errors
/// When it is no JSON, nested deeper than 32 levels, or has a key twice or half a character.
pub fn check_json(text: &str) -> Result<(), JsonFlaw> {
    manyhands_crdt::canonical_json(text).map(|_| ())
}
