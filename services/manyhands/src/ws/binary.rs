//! The commands over the binary protocol.

use std::time::Duration;

use manyhands_client::{
    Client, ClientOptions, Code, Item, Map, MapUpdate, SaveError, Storage, StorageError, Workspace,
};

use super::show::{self, Contested};
use super::{Failure, To, Watch, Write};

pub(super) async fn get(to: &To, workspace: &str) -> anyhow::Result<Vec<(String, Item)>> {
    let (client, _workspace, map) = open(to, workspace, None).await?;
    let items = map.iter().collect();
    leave(client).await;
    Ok(items)
}

pub(super) async fn conflicts(to: &To, workspace: &str) -> anyhow::Result<Vec<Contested>> {
    let (client, _workspace, map) = open(to, workspace, None).await?;
    let found = map.iter().map(|(key, item)| (key.clone(), item, map.conflicts(&key))).collect();
    leave(client).await;
    Ok(found)
}

pub(super) async fn write(to: &To, workspace: &str, write: Write) -> anyhow::Result<()> {
    let storage = match &write.profile {
        Some(path) => Some(Storage::open(path).await.map_err(unusable)?),
        None => None,
    };
    let (client, workspace, map) = match storage {
        // With a profile the write is safe before there is a server.
        Some(storage) => connect(to, workspace, Some(storage))?,
        None => open(to, workspace, None).await?,
    };
    if write.expect.is_some() {
        loaded(&workspace).await?;
    }
    let edited = workspace.edit(|edit| match (&write.value, write.expect) {
        (Some(json), None) => edit.set_json(&to.map, &write.key, json),
        (Some(json), Some(seen)) => edit.replace_json(&to.map, &write.key, json, seen),
        (None, None) => edit.remove(&to.map, &write.key),
        (None, Some(seen)) => edit.remove_seen(&to.map, &write.key, seen),
    });
    if let Err(error) = edited {
        return Err(refused_here(&error, &map, &write.key).into());
    }
    if let Some(profile) = &write.profile {
        workspace
            .kept()
            .await
            .map_err(|error| Failure::unavailable(&error.to_string(), "Make room on its disk."))?;
        eprintln!("kept in {}; waiting for the server", profile.display());
    }
    let saved = workspace.saved().await;
    leave(client).await;
    saved.map_err(|error| not_saved(&error, &workspace).into())
}

pub(super) async fn watch(watch: &Watch) -> anyhow::Result<()> {
    let wanted = |key: &str| watch.key.as_deref().is_none_or(|wanted| wanted == key);
    let opening = open(&watch.to, &watch.workspace, None);
    let (_client, workspace, map) = super::in_time(watch.to.timeout, opening).await?;
    let (items, mut updates) = map.watch();
    for (key, item) in items.iter().filter(|(key, _)| wanted(key)) {
        show::change(key, Some(&item.json), Some(item.stamp.micros));
    }
    let mut left = watch.count.unwrap_or(u64::MAX);
    let mut stopped = workspace.stopped();
    let mut changes = workspace.changes();
    while left > 0 {
        let update = tokio::select! {
            update = updates.next() => update,
            stop = &mut stopped => return Err(Failure::from(&*stop).into()),
            _ = changes.changed() => match workspace.status().evicted {
                Some(evicted) => return Err(Failure::from(&*evicted).into()),
                None => continue,
            },
        };
        let read = match update {
            None => return Ok(()),
            Some(MapUpdate::Set { key, json, stamp, .. }) if wanted(&key) => {
                left -= 1;
                show::change(&key, Some(&json), Some(stamp.micros))
            }
            Some(MapUpdate::Removed { key, .. }) if wanted(&key) => {
                left -= 1;
                show::change(&key, None, None)
            }
            Some(MapUpdate::Reset) => map
                .iter()
                .filter(|(key, _)| wanted(key))
                .all(|(key, item)| show::change(&key, Some(&item.json), Some(item.stamp.micros))),
            Some(_) => true,
        };
        if !read {
            return Ok(());
        }
    }
    Ok(())
}

fn connect(to: &To, workspace: &str, storage: Option<Storage>) -> anyhow::Result<(Client, Workspace, Map)> {
    let mut options = ClientOptions::new(to.url.clone(), to.token()?);
    options.storage = storage;
    options.name = concat!("manyhands/", env!("CARGO_PKG_VERSION")).to_owned();
    let client = Client::connect(options);
    let workspace = client
        .open_as(workspace, to.strategy)
        .map_err(|error| Failure::usage(&error.to_string(), "Choose another name."))?;
    let map = workspace.map(&to.map);
    Ok((client, workspace, map))
}

async fn open(
    to: &To,
    workspace: &str,
    storage: Option<Storage>,
) -> anyhow::Result<(Client, Workspace, Map)> {
    let (client, workspace, map) = connect(to, workspace, storage)?;
    loaded(&workspace).await?;
    Ok((client, workspace, map))
}

async fn loaded(workspace: &Workspace) -> anyhow::Result<()> {
    workspace.loaded().await.map_err(|error| not_saved(&error, workspace).into())
}

/// Closes in good order; nothing waits any more.
async fn leave(client: Client) {
    let _ = client.close(Duration::from_secs(1)).await;
}

fn not_saved(error: &SaveError, workspace: &Workspace) -> Failure {
    match error {
        SaveError::Refused(refused) => Failure::from(&**refused),
        SaveError::Stopped(stop) => Failure::from(&**stop),
        SaveError::Closed => match workspace.status().evicted {
            Some(evicted) => Failure::from(&*evicted as &manyhands_client::Refused),
            None => Failure::unavailable("the workspace was closed", "Try again."),
        },
        SaveError::NotKept(_) => Failure::unavailable(&error.to_string(), "Make room on its disk."),
    }
}

fn refused_here(error: &manyhands_client::EditError, map: &Map, key: &str) -> Failure {
    use manyhands_client::EditError;
    match error {
        EditError::ReadOnly => {
            Failure::of(Some(Code::Forbidden), &error.to_string(), "Mint a token with the scope write.", None)
        }
        EditError::Document(manyhands_client::DocumentError::Conflict { .. }) => {
            let now = map.get(key);
            let current = now.map_or_else(
                || "it has none".to_owned(),
                |item| format!("{} at seq {}", item.json, item.seq),
            );
            let fix = "Read the key again, and expect what it has now.";
            Failure::of(Some(Code::Conflict), &format!("the key has another value: {current}"), fix, None)
        }
        EditError::Reloading => Failure::unavailable(
            &error.to_string(),
            "Connect, so that what waits in the profile is sent first.",
        ),
        _ => Failure::usage(&error.to_string(), "See manyhands ws put --help."),
    }
}

fn unusable(error: StorageError) -> Failure {
    let text = error.to_string();
    let (message, fix) = text.split_once("; fix: ").unwrap_or((&text, "Give it another directory."));
    Failure::usage(message, fix)
}
