//! What every bus must do, whatever carries it.
//!
//! [`conformance!`](crate::conformance) makes a test of each scenario here for one implementation. A scenario is
//! given two ends of one bus, which may be the same value or two connections, opened with [`LIMITS`].

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::PartitionId;

use crate::{Limits, MESSAGE_BYTES_MAX, Message, Received, SharedBus, Subscription, Topic};

/// Small, so that a slow subscriber is soon slow.
pub const LIMITS: Limits = Limits { queue_messages_max: 64, queue_bytes_max: 8 << 20 };

/// Two ends of one bus.
#[derive(Clone)]
pub struct Ends {
    /// Where the scenario publishes.
    pub here: SharedBus,
    /// Where it subscribes.
    pub there: SharedBus,
}

/// Makes one `#[tokio::test]` per scenario: `conformance!(open)` with `async fn open() -> (Ends, impl Sized)`;
/// the second value lives as long as the test.
#[macro_export]
macro_rules! conformance {
    ($open:path) => {
        $crate::conformance!($open:
            a_fast_subscriber_sees_everything_in_order,
            topics_are_apart,
            the_trace_context_travels,
            a_subscription_stands_when_it_is_returned,
            a_slow_subscriber_is_told_and_nobody_waits_for_it,
            dropping_a_subscription_ends_it,
            a_message_may_be_large_but_not_larger,
            there_may_be_many_subscribers,
        );
    };
    ($open:path: $($scenario:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                let (ends, _keep) = $open().await;
                $crate::conformance::$scenario(ends).await;
            }
        )*
    };
}

/// How long something that must come may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The next thing, which must come.
pub async fn next(subscription: &mut Box<dyn Subscription>) -> Received {
    let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
    next.expect("nothing came").expect("the bus is not closed")
}

/// The payload of the next thing, which must be a message.
pub async fn next_text(subscription: &mut Box<dyn Subscription>) -> String {
    match next(subscription).await {
        Received::Message(message) => String::from_utf8_lossy(&message.payload).into_owned(),
        Received::Lost => panic!("a message was lost"),
    }
}

/// A message with this payload and no trace context.
pub fn message(payload: impl Into<Bytes>) -> Message {
    Message { payload: payload.into(), traceparent: None }
}

fn deltas(partition: u16) -> Topic {
    Topic::Deltas(PartitionId(partition))
}

async fn subscribe(bus: &SharedBus, topic: Topic) -> Box<dyn Subscription> {
    bus.subscribe(topic).await.expect("the bus is there")
}

/// Nothing is lost or turned around for one who keeps up.
pub async fn a_fast_subscriber_sees_everything_in_order(ends: Ends) {
    let mut subscription = subscribe(&ends.there, deltas(1)).await;
    let batch = LIMITS.queue_messages_max / 2;
    for first in (0..2_000).step_by(batch) {
        for number in first..first + batch {
            ends.here.publish(deltas(1), message(number.to_string()));
        }
        for number in first..first + batch {
            assert_eq!(next_text(&mut subscription).await, number.to_string());
        }
    }
}

/// A subscriber sees its topic and no other.
pub async fn topics_are_apart(ends: Ends) {
    let partition = PartitionId(7);
    let topics =
        [Topic::Deltas(partition), Topic::Presence(partition), Topic::Routes, deltas(70), deltas(17)];
    let mut subscriptions = Vec::new();
    for topic in topics {
        subscriptions.push(subscribe(&ends.there, topic).await);
    }
    for topic in topics {
        ends.here.publish(topic, message(format!("{topic:?}")));
    }
    for round in ["first", "second"] {
        for (topic, subscription) in topics.into_iter().zip(&mut subscriptions) {
            // In the second round too: nothing else came between.
            let expected = if round == "first" { format!("{topic:?}") } else { round.to_owned() };
            assert_eq!(next_text(subscription).await, expected);
            ends.here.publish(topic, message("second"));
        }
    }
}

/// A message carries the context of the op that caused it, or none.
pub async fn the_trace_context_travels(ends: Ends) {
    let mut subscription = subscribe(&ends.there, Topic::Routes).await;
    let traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    let traced = Message { payload: Bytes::from_static(b"traced"), traceparent };
    ends.here.publish(Topic::Routes, traced.clone());
    ends.here.publish(Topic::Routes, message("plain"));
    assert_eq!(next(&mut subscription).await, Received::Message(traced));
    assert_eq!(next(&mut subscription).await, Received::Message(message("plain")));
}

/// What is published after `subscribe` has returned comes.
pub async fn a_subscription_stands_when_it_is_returned(ends: Ends) {
    for partition in 0..100 {
        let mut subscription = subscribe(&ends.there, deltas(partition)).await;
        ends.here.publish(deltas(partition), message("soon"));
        assert_eq!(next_text(&mut subscription).await, "soon");
    }
}

/// One who does not read loses messages, is told where, and goes on; the publisher and the others do not notice.
// enforces: I-10
pub async fn a_slow_subscriber_is_told_and_nobody_waits_for_it(ends: Ends) {
    let mut slow = subscribe(&ends.there, deltas(3)).await;
    let mut fast = subscribe(&ends.there, deltas(3)).await;
    let count = LIMITS.queue_messages_max * 10;
    for number in 0..count {
        ends.here.publish(deltas(3), message(number.to_string()));
        assert_eq!(next_text(&mut fast).await, number.to_string());
    }
    ends.here.publish(deltas(3), message(count.to_string()));

    let (mut expected, mut losses, mut told) = (0, 0, false);
    while expected <= count {
        match next(&mut slow).await {
            Received::Lost => {
                losses += 1;
                told = true;
                // It reads again, so what is sent from here on comes.
                ends.here.publish(deltas(3), message(count.to_string()));
            }
            Received::Message(message) => {
                let number: usize = String::from_utf8_lossy(&message.payload).parse().expect("a number");
                assert!(number == expected || (number > expected && told), "{number} instead of {expected}");
                told = false;
                expected = number + 1;
            }
        }
    }
    assert!(losses >= 1, "nothing was lost in a queue of {}", LIMITS.queue_messages_max);
}

/// Nothing reaches a subscription that was dropped, and the others stay.
pub async fn dropping_a_subscription_ends_it(ends: Ends) {
    let mut stays = subscribe(&ends.there, deltas(4)).await;
    let first = subscribe(&ends.there, deltas(4)).await;
    drop(first);
    ends.here.publish(deltas(4), message("between"));
    assert_eq!(next_text(&mut stays).await, "between");
    let mut again = subscribe(&ends.there, deltas(4)).await;
    ends.here.publish(deltas(4), message("after"));
    assert_eq!(next_text(&mut again).await, "after");
    assert_eq!(next_text(&mut stays).await, "after");
}

/// The largest message comes whole; a larger one is dropped and harms nothing.
// enforces: I-10
pub async fn a_message_may_be_large_but_not_larger(ends: Ends) {
    let mut subscription = subscribe(&ends.there, deltas(5)).await;
    let payload: Vec<u8> = (0..MESSAGE_BYTES_MAX).map(|i| (i % 251) as u8).collect();
    let traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    let largest = Message { payload: payload.clone().into(), traceparent };
    ends.here.publish(deltas(5), largest.clone());
    ends.here.publish(deltas(5), message([payload, vec![0]].concat()));
    ends.here.publish(deltas(5), message("small"));
    assert!(next(&mut subscription).await == Received::Message(largest), "it came changed");
    assert_eq!(next_text(&mut subscription).await, "small");
}

/// Every edge subscribes to every partition that it has documents of.
pub async fn there_may_be_many_subscribers(ends: Ends) {
    let mut subscriptions = Vec::new();
    for partition in PartitionId::all() {
        for _edge in 0..3 {
            subscriptions.push((partition, subscribe(&ends.there, Topic::Deltas(partition)).await));
        }
    }
    for partition in PartitionId::all() {
        ends.here.publish(Topic::Deltas(partition), message(partition.to_string()));
    }
    for (partition, mut subscription) in subscriptions {
        assert_eq!(next_text(&mut subscription).await, partition.to_string());
    }
}
