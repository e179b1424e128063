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
pub(super) struct SendQueue {
    bytes: usize,
    /// When the level last fell, or began to be more than nothing.
    moved_at: Duration,
    full: usize,
    close: usize,
    stall_max: Duration,
}

impl SendQueue {
    pub(super) fn new(config: &EdgeConfig, now: Duration) -> SendQueue {
        SendQueue {
            bytes: 0,
            moved_at: now,
            full: config.send_queue_bytes_max,
            close: config.send_queue_bytes_close,
            stall_max: config.send_stall_max,
        }
    }

    pub(super) fn send(&mut self, now: Duration, frame: Frame, out: &mut Vec<Effect>) {
        self.send_bytes(now, encode_server(frame), out);
    }

    pub(super) fn send_bytes(&mut self, now: Duration, frame: Bytes, out: &mut Vec<Effect>) {
        if self.bytes == 0 {
            self.moved_at = now;
        }
        self.bytes += frame.len();
        out.push(Effect::Send(frame));
    }

    /// The level that the shell sees.
    pub(super) fn report(&mut self, now: Duration, bytes: usize) {
        if bytes < self.bytes {
            self.moved_at = now;
        }
        self.bytes = bytes;
    }

    /// Deltas and presence are left out from here on.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > self.full
    }

    /// What was left out may be fetched. Below full by half, so that it does not flap.
    pub(super) fn has_room(&self) -> bool {
        self.bytes <= self.full / 2
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        (self.bytes > 0).then_some(self.moved_at + self.stall_max)
    }

    pub(super) fn check(&self, now: Duration) -> Result<(), Refusal> {
        if self.bytes > self.close {
            return Err(Refusal::new(Code::SlowConsumer, format!("{} bytes were not read", self.bytes)));
        }
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            return Err(Refusal::new(Code::SlowConsumer, "nothing was read for too long"));
        }
        Ok(())
    }
}
