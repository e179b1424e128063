use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use manyhands_proto::Code;

use super::channel::Channel;
use super::{ChannelId, Effect};
use crate::Refusal;

/// What was asked of owners and not answered yet. A channel that is left keeps its place until its answers
/// have come: opening and leaving in a loop asks no more at one time than having all that is allowed open.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    opens: BTreeSet<ChannelId>,
    others: BTreeMap<ChannelId, u32>,
}

impl Unanswered {
    pub(super) fn asked(&mut self, effect: &Effect) {
        match effect {
            Effect::Open { channel, .. } => {
                self.opens.insert(*channel);
            }
            Effect::Submit { channel, .. } | Effect::Fetch { channel, .. } => {
                *self.others.entry(*channel).or_default() += 1;
            }
            _ => {}
        }
    }

    pub(super) fn answered(&mut self, channel: ChannelId, open: bool) {
        if open {
            self.opens.remove(&channel);
        } else if let Some(count) = self.others.get_mut(&channel) {
            *count -= 1;
            if *count == 0 {
                self.others.remove(&channel);
            }
        }
    }

    pub(super) fn opens(&self) -> usize {
        self.opens.len()
    }

    /// Channels that are left and still cost something.
    pub(super) fn left(&self, channels: &BTreeMap<u32, Channel>) -> usize {
        let gone = |id: &&ChannelId| channels.get(&id.number).is_none_or(|channel| channel.id() != **id);
        self.opens.iter().filter(gone).count() + self.others.keys().filter(gone).count()
    }
}

/// How heavily a refusal counts: without a right ten times a mistake.
pub(super) fn strike_weight(code: Code) -> u32 {
    match code {
        Code::Forbidden => 10,
        _ => 1,
    }
}

/// Refusals within a minute. A client that goes on after them is broken or hostile.
#[derive(Debug)]
pub(super) struct Strikes {
    max: u32,
    since: Duration,
    count: u32,
}

impl Strikes {
    pub(super) fn new(max: u32) -> Strikes {
        Strikes { max, since: Duration::ZERO, count: 0 }
    }

    pub(super) fn add(&mut self, now: Duration, weight: u32, code: Code) -> Result<(), Refusal> {
        if now >= self.since + Duration::from_secs(60) {
            self.since = now;
            self.count = 0;
        }
        self.count += weight;
        if self.count < self.max {
            return Ok(());
        }
        let code = if code.close().is_some() { code } else { Code::Violation };
        Err(Refusal::new(code, "too many refused requests in a minute"))
    }
}
