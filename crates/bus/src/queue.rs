//! What waits for one subscriber: bounded in messages and in bytes, with the place of a loss marked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::{Limits, Message, Received};

/// One subscriber's queue. Pushing never waits: what does not fit is dropped, and the subscriber finds one
/// [`Received::Lost`] in its place.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Received>,
    /// Messages and bytes in `waiting`, marks not counted.
    messages: usize,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Arc<Queue> {
        Arc::new(Queue { limits, state: Mutex::default(), wake: Notify::new() })
    }

    /// Whether the message was taken.
    pub(crate) fn push(&self, message: Message) -> bool {
        let mut state = self.lock();
        let bytes = state.bytes + message.payload.len();
        let fits = state.messages < self.limits.queue_messages_max && bytes <= self.limits.queue_bytes_max;
        if fits && !state.closed {
            state.messages += 1;
            state.bytes = bytes;
            state.waiting.push_back(Received::Message(message));
        } else {
            state.mark();
        }
        drop(state);
        self.wake.notify_one();
        fits
    }

    /// Says that something is missing after what waits now.
    pub(crate) fn lost(&self) {
        self.lock().mark();
        self.wake.notify_one();
    }

    /// Nothing will come any more; what waits can still be read.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// The next thing; `None` when the queue is closed and empty. For one reader.
    pub(crate) async fn next(&self) -> Option<Received> {
        loop {
            let woken = self.wake.notified();
            if let Some(next) = self.take() {
                return next;
            }
            woken.await;
        }
    }

    fn take(&self) -> Option<Option<Received>> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if let Some(Received::Message(message)) = &next {
            state.messages -= 1;
            state.bytes -= message.payload.len();
        }
        if next.is_some() || state.closed { Some(next) } else { None }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// One mark for any number of losses in a row.
    fn mark(&mut self) {
        if !self.closed && self.waiting.back() != Some(&Received::Lost) {
            self.waiting.push_back(Received::Lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(payload: &'static str) -> Message {
        Message { payload: Bytes::from_static(payload.as_bytes()), traceparent: None }
    }

    fn read(queue: &Queue) -> Vec<String> {
        let mut read = Vec::new();
        while let Some(Some(next)) = queue.take() {
            read.push(match next {
                Received::Message(message) => String::from_utf8_lossy(&message.payload).into_owned(),
                Received::Lost => "lost".into(),
            });
        }
        read
    }

    // enforces: I-10
    #[test]
    fn a_full_queue_drops_the_newest_and_marks_the_place_once() {
        let queue = Queue::new(Limits { queue_messages_max: 2, queue_bytes_max: 100 });
        let taken: Vec<bool> =
            ["a", "b", "c", "d"].into_iter().map(|text| queue.push(message(text))).collect();
        assert_eq!(taken, [true, true, false, false]);
        assert_eq!(read(&queue), ["a", "b", "lost"]);
        assert!(queue.push(message("e")));
        assert_eq!(read(&queue), ["e"]);
    }

    #[test]
    fn bytes_count_too() {
        let queue = Queue::new(Limits { queue_messages_max: 100, queue_bytes_max: 4 });
        assert!(queue.push(message("abcd")));
        assert!(!queue.push(message("e")));
        assert_eq!(read(&queue), ["abcd", "lost"]);
        assert!(queue.push(message("fghi")));
    }

    #[test]
    fn every_loss_is_marked_where_it_happened() {
        let queue = Queue::new(Limits { queue_messages_max: 2, queue_bytes_max: 100 });
        queue.lost();
        queue.lost();
        queue.push(message("a"));
        queue.lost();
        queue.push(message("b"));
        assert_eq!(read(&queue), ["lost", "a", "lost", "b"]);
        queue.close();
        queue.lost();
        assert_eq!(queue.take(), Some(None));
    }
}
