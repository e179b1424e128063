//! Named maps: keys with JSON values, which merge by the workspace's strategy.

use std::sync::Arc;

use manyhands_crdt::{Hlc, MapValue, MapView, Patch};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::document::EditError;
use crate::edit::to_json;
use crate::workspace::{Observer, Update, Workspace};

/// A named map of a workspace. It need not exist yet: an empty map and none are the same.
///
/// ```no_run
/// # fn example(workspace: manyhands_client::Workspace) -> Result<(), Box<dyn std::error::Error>> {
/// let todos = workspace.map("todos");
/// todos.set("t1", &serde_json::json!({ "title": "Ship it", "done": false }))?; // at once, offline too
/// for (key, item) in todos.iter() {
///     println!("{key} is {}", item.json);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Map {
    workspace: Workspace,
    name: Arc<str>,
}

/// What a key has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The value as JSON; numbers are spelled as their author spelled them.
    pub json: String,
    /// When its author wrote it, by their clock.
    pub stamp: Hlc,
    /// The entry of the log that wrote it; 0 as long as it waits for the server.
    pub seq: u64,
}

/// What happened to a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapUpdate {
    /// A key has another value.
    Set {
        /// The key.
        key: Arc<str>,
        /// The value as JSON.
        json: Arc<str>,
        /// When its author wrote it, by their clock.
        stamp: Hlc,
        /// It was written through this very handle.
        local: bool,
    },
    /// A key is gone.
    Removed {
        /// The key.
        key: Arc<str>,
        /// It was removed through this very handle.
        local: bool,
    },
    /// The workspace was replaced by the server's, or too much happened at once: read the map.
    Reset,
}

impl Item {
    /// The value as something of the application's.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.json)
    }
}

impl From<MapValue<'_>> for Item {
    fn from(value: MapValue<'_>) -> Item {
        Item { json: value.value.to_owned(), stamp: value.stamp, seq: value.seq }
    }
}

impl Map {
    pub(crate) fn new(workspace: Workspace, name: &str) -> Map {
        Map { workspace, name: name.into() }
    }

    /// What a key has: of concurrent values the one that everybody agrees on.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Item> {
        self.look(|map| map.get(key).map(Item::from))?
    }

    /// The values that were written concurrently with the one that [`get`](Map::get) gives and that nobody has
    /// replaced yet, the newest first. There are some under the strategy `crdt` only; the next write to the
    /// key replaces all of them.
    #[must_use]
    pub fn conflicts(&self, key: &str) -> Vec<Item> {
        self.look(|map| map.conflicts(key).map(Item::from).collect()).unwrap_or_default()
    }

    /// All keys with their values, in order of key, as they are now.
    pub fn iter(&self) -> impl Iterator<Item = (String, Item)> + use<> {
        self.all().into_iter()
    }

    /// How many keys it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.look(|map| map.len()).unwrap_or_default()
    }

    /// It has no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets a key.
    ///
    /// # Errors
    /// When the value is no JSON that can be stored, the key is empty or longer than 512 bytes, or the
    /// workspace takes no edits.
    pub fn set(&self, key: &str, value: &impl Serialize) -> Result<(), EditError> {
        self.set_json(key, &to_json(value)?)
    }

    /// Sets a key to a value in JSON, whose numbers are kept as they are spelled.
    ///
    /// # Errors
    /// As [`set`](Map::set).
    pub fn set_json(&self, key: &str, json: &str) -> Result<(), EditError> {
        self.workspace.edit(|edit| edit.set_json(&self.name, key, json))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// When the key is empty or longer than 512 bytes, or the workspace takes no edits.
    pub fn remove(&self, key: &str) -> Result<(), EditError> {
        self.workspace.edit(|edit| edit.remove(&self.name, key))
    }

    /// Sets a key under the strategy `server` if it still has the value with this [`Item::seq`], 0 for none.
    /// When the server finds another one, the write is undone here and comes back as
    /// [`Refused`](crate::Refused), with what the key has now.
    ///
    /// # Errors
    /// As [`set`](Map::set); also when it is plain already that the key has another value.
    pub fn replace(&self, key: &str, value: &impl Serialize, seen: u64) -> Result<(), EditError> {
        let json = to_json(value)?;
        self.workspace.edit(|edit| edit.replace_json(&self.name, key, &json, seen))
    }

    /// Removes a key under the strategy `server` if it still has the value with this [`Item::seq`]; see
    /// [`replace`](Map::replace).
    ///
    /// # Errors
    /// As [`replace`](Map::replace).
    pub fn remove_seen(&self, key: &str, seen: u64) -> Result<(), EditError> {
        self.workspace.edit(|edit| edit.remove_seen(&self.name, key, seen))
    }

    /// The map as it is now, and everything that changes it from exactly then on.
    #[must_use]
    pub fn watch(&self) -> (Vec<(String, Item)>, MapObserver) {
        let (all, updates) = self.workspace.read_and_observe(|document| all(document.map(&self.name)));
        (all, MapObserver { name: self.name.clone(), updates, queue: Vec::new().into_iter() })
    }

    fn all(&self) -> Vec<(String, Item)> {
        self.workspace.read(|document| all(document.map(&self.name)))
    }

    fn look<T>(&self, look: impl FnOnce(MapView<'_>) -> T) -> Option<T> {
        self.workspace.read(|document| document.map(&self.name).map(look))
    }
}

fn all(map: Option<MapView<'_>>) -> Vec<(String, Item)> {
    map.into_iter().flat_map(|map| map.iter()).map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// A stream of what happens to one map.
pub struct MapObserver {
    name: Arc<str>,
    updates: Observer,
    queue: std::vec::IntoIter<MapUpdate>,
}

impl MapObserver {
    /// The next thing that happens; `None` when the workspace is gone.
    pub async fn next(&mut self) -> Option<MapUpdate> {
        loop {
            if let Some(update) = self.queue.next() {
                return Some(update);
            }
            match self.updates.next().await? {
                Update::Patches { local, patches } => {
                    let own = patches.iter().filter_map(|patch| self.update(patch, local));
                    self.queue = own.collect::<Vec<_>>().into_iter();
                }
                Update::Reset | Update::Lagged(_) => return Some(MapUpdate::Reset),
            }
        }
    }

    fn update(&self, patch: &Patch, local: bool) -> Option<MapUpdate> {
        let Patch::Map { container, key, value, stamp, .. } = patch else { return None };
        let key = key.clone();
        (*container == self.name).then(|| match value.clone() {
            Some(json) => MapUpdate::Set { key, json, stamp: *stamp, local },
            None => MapUpdate::Removed { key, local },
        })
    }
}
