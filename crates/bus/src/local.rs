//! The bus inside one process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;

use crate::queue::Queue;
use crate::{
    DeltaBus, Limits, MESSAGE_BYTES_MAX, Message, Received, Subscription, Topic, Unavailable, count_dropped,
    count_lost, count_published,
};

/// Hands messages from publishers to subscribers in the same process. A subscriber that is slower than its
/// queue loses messages and is told; nobody waits for it.
#[derive(Debug, Default)]
pub struct LocalBus {
    limits: Limits,
    subscribers: Arc<Subscribers>,
}

type Subscribers = Mutex<BTreeMap<Topic, Vec<Arc<Queue>>>>;

impl LocalBus {
    /// A bus without subscribers.
    #[must_use]
    pub fn new(limits: Limits) -> LocalBus {
        LocalBus { limits, subscribers: Arc::default() }
    }
}

#[async_trait]
impl DeltaBus for LocalBus {
    fn publish(&self, topic: Topic, message: Message) {
        if message.payload.len() > MESSAGE_BYTES_MAX {
            count_dropped(topic, "too_large");
            return;
        }
        count_published(topic);
        for queue in lock(&self.subscribers).get(&topic).into_iter().flatten() {
            if !queue.push(message.clone()) {
                count_lost(topic);
            }
        }
    }

    async fn subscribe(&self, topic: Topic) -> Result<Box<dyn Subscription>, Unavailable> {
        let queue = Queue::new(self.limits);
        lock(&self.subscribers).entry(topic).or_default().push(queue.clone());
        Ok(Box::new(LocalSubscription { topic, queue, subscribers: Arc::downgrade(&self.subscribers) }))
    }

    fn is_connected(&self) -> bool {
        true
    }
}

impl Drop for LocalBus {
    fn drop(&mut self) {
        for queue in lock(&self.subscribers).values().flatten() {
            queue.close();
        }
    }
}

struct LocalSubscription {
    topic: Topic,
    queue: Arc<Queue>,
    subscribers: Weak<Subscribers>,
}

#[async_trait]
impl Subscription for LocalSubscription {
    async fn next(&mut self) -> Option<Received> {
        self.queue.next().await
    }
}

impl Drop for LocalSubscription {
    fn drop(&mut self) {
        let Some(subscribers) = self.subscribers.upgrade() else { return };
        let mut subscribers = lock(&subscribers);
        if let Some(queues) = subscribers.get_mut(&self.topic) {
            queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
            if queues.is_empty() {
                subscribers.remove(&self.topic);
            }
        }
    }
}

fn lock(subscribers: &Subscribers) -> MutexGuard<'_, BTreeMap<Topic, Vec<Arc<Queue>>>> {
    subscribers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    // enforces: I-10
    #[tokio::test]
    async fn a_dropped_subscription_leaves_nothing_behind() {
        let bus = LocalBus::new(Limits::default());
        for _ in 0..3 {
            drop(bus.subscribe(Topic::Routes).await.unwrap());
        }
        assert!(lock(&bus.subscribers).is_empty());
    }

    #[tokio::test]
    async fn the_end_of_the_bus_ends_its_subscriptions() {
        let bus = LocalBus::new(Limits::default());
        let mut subscription = bus.subscribe(Topic::Routes).await.unwrap();
        drop(bus);
        assert_eq!(subscription.next().await, None);
    }
}
