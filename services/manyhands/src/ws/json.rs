//! The commands over the JSON dialect.

use manyhands_client::json::{self, Init, JsonError, Message, Receiver, Sender};
use manyhands_client::{Hlc, Item};

use super::{Failure, To, Watch, Write, show};

pub(super) async fn get(to: &To, workspace: &str) -> anyhow::Result<Vec<(String, Item)>> {
    let (init, sender, _receiver) = connect(to, workspace).await?;
    sender.close().await;
    // The state tells values only.
    let item = |json: String| Item { json, stamp: Hlc::default(), seq: 0 };
    Ok(init.data.into_iter().map(|(key, json)| (key, item(json))).collect())
}

pub(super) async fn write(to: &To, workspace: &str, write: Write) -> anyhow::Result<()> {
    let Write { key, value, expect, timestamp, .. } = write;
    let message = match &value {
        Some(value) => json::op(&key, value, timestamp, expect),
        None => json::del(&key, timestamp, expect),
    };
    let (_, mut sender, mut receiver) = connect(to, workspace).await?;
    sender.send(&message).await.map_err(|error| gone(&error))?;
    loop {
        match next(&mut receiver).await? {
            Message::Acknowledged { key: of } if of == key => break,
            Message::Error(refusal) if refusal.key.as_ref().is_none_or(|of| *of == key) => {
                return Err(Failure::from(refusal).into());
            }
            _ => {}
        }
    }
    sender.close().await;
    Ok(())
}

pub(super) async fn watch(watch: &Watch) -> anyhow::Result<()> {
    let wanted = |key: &str| watch.key.as_deref().is_none_or(|wanted| wanted == key);
    let (init, sender, mut receiver) =
        super::in_time(watch.to.timeout, connect(&watch.to, &watch.workspace)).await?;
    let show_all = |init: &Init| {
        (init.data.iter())
            .filter(|(key, _)| wanted(key))
            .all(|(key, value)| show::change(key, Some(value), None))
    };
    let mut read = show_all(&init);
    let mut left = watch.count.unwrap_or(u64::MAX);
    while left > 0 && read {
        match next(&mut receiver).await? {
            Message::Init(init) => read = show_all(&init),
            Message::Op { key, value, timestamp, .. } if wanted(&key) => {
                left -= 1;
                read = show::change(&key, Some(&value), Some(timestamp));
            }
            Message::Deleted { key, timestamp, .. } if wanted(&key) => {
                left -= 1;
                read = show::change(&key, None, Some(timestamp));
            }
            Message::Error(refusal) => return Err(Failure::from(refusal).into()),
            _ => {}
        }
    }
    sender.close().await;
    Ok(())
}

async fn connect(to: &To, workspace: &str) -> anyhow::Result<(Init, Sender, Receiver)> {
    to.only_root()?;
    let options = json::Options { strategy: to.strategy, bare: false };
    Ok(json::connect(&to.url, workspace, &to.token()?, &options).await.map_err(Failure::from)?)
}

async fn next(receiver: &mut Receiver) -> anyhow::Result<Message> {
    match receiver.next().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Failure::unavailable("the server ended the connection", "Try again.").into()),
        Err(error) => Err(gone(&error).into()),
    }
}

fn gone(error: &JsonError) -> Failure {
    Failure::unavailable(&error.to_string(), "Try again.")
}
