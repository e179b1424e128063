use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::Code;
use manyhands_proto::v1::server_frame::Frame;

use super::{EdgeConfig, Effect};
use crate::Refusal;
use crate::frame::encode_server;

/// What waits for the socket, as a level: the shell holds the bytes. Says when there is room for more, when
/// deltas must be left out, and when the other side is too slow to be kept.
#[derive(Debug)]
pub(crate) struct SendQueue {
    bytes: usize,
    /// When the level last fell, or began to be more than nothing.
    moved_at: Duration,
    full: usize,
    close: usize,
    stall_max: Duration,
    /// Of the bytes, those that the levels leave out of account.
    exempt: usize,
}

impl SendQueue {
    pub(crate) fn new(config: &EdgeConfig, now: Duration) -> SendQueue {
        SendQueue {
            bytes: 0,
            moved_at: now,
            full: config.send_queue_bytes_max,
            close: config.send_queue_bytes_close,
            stall_max: config.send_stall_max,
            exempt: 0,
        }
    }

    pub(crate) fn send(&mut self, now: Duration, frame: Frame, out: &mut Vec<Effect>) {
        self.send_bytes(now, encode_server(frame), out);
    }

    pub(crate) fn send_bytes(&mut self, now: Duration, frame: Bytes, out: &mut Vec<Effect>) {
        self.count(now, frame.len());
        out.push(Effect::Send(frame));
    }

    pub(crate) fn send_text(&mut self, now: Duration, frame: Bytes, out: &mut Vec<Effect>) {
        self.count(now, frame.len());
        out.push(Effect::SendText(frame));
    }

    /// A text that goes in one piece however long it is: it may be more than the levels allow, and is counted
    /// with them only in that nothing else goes before it was read.
    pub(crate) fn send_whole(&mut self, now: Duration, frame: Bytes, out: &mut Vec<Effect>) {
        self.exempt += frame.len();
        self.send_text(now, frame, out);
    }

    fn count(&mut self, now: Duration, bytes: usize) {
        if self.bytes == 0 {
            self.moved_at = now;
        }
        self.bytes += bytes;
    }

    /// The level that the shell sees.
    pub(crate) fn report(&mut self, now: Duration, bytes: usize) {
        if bytes < self.bytes {
            self.moved_at = now;
        }
        self.bytes = bytes;
        self.exempt = self.exempt.min(bytes);
    }

    /// Deltas and presence are left out from here on.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > self.full
    }

    /// What was left out may be fetched. Below full by half, so that it does not flap.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes <= self.full / 2
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        (self.bytes > 0).then_some(self.moved_at + self.stall_max)
    }

    pub(crate) fn check(&self, now: Duration) -> Result<(), Refusal> {
        if self.bytes - self.exempt.min(self.bytes) > self.close {
            return Err(Refusal::new(Code::SlowConsumer, format!("{} bytes were not read", self.bytes)));
        }
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            return Err(Refusal::new(Code::SlowConsumer, "nothing was read for too long"));
        }
        Ok(())
    }
}
