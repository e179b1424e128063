//! The shell around [`ownership`](crate::ownership): it makes the calls that the machine asks for, starts and
//! ends writers, and listens to what other nodes say.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use manyhands_bus::{Message, Received, Subscription, Topic};
use manyhands_history::{Lease, LogError, Member};
use manyhands_process::health::Check;
use manyhands_proto::{Epoch, NodeId, PartitionId, v1};
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mailbox::{Desk, Mailbox};
use crate::node::{Node, Term, partition_of};
use crate::ownership::{Call, Effect, Input, Ownership, Route, Times};
use crate::writer::Writer;

/// How often routes are repeated on the bus.
const ANNOUNCE: Duration = Duration::from_secs(5);

/// Runs the ownership machine: makes its calls, starts and ends writers, listens to the others.
pub(crate) struct Keeper {
    node: Arc<Node>,
    member: Member,
    /// Where this node says whether it can do its work.
    check: Option<Check>,
    machine: Ownership,
    calls: JoinSet<Came>,
    writers: JoinSet<(PartitionId, Epoch)>,
    /// Won and not yet given to a writer.
    leases: BTreeMap<PartitionId, Lease>,
    terms: BTreeMap<PartitionId, (CancellationToken, Term)>,
}

/// What a call came to.
enum Came {
    Joined(Vec<Member>),
    Looked(Vec<manyhands_history::Ownership>),
    Claimed(Duration, Vec<Lease>),
    Said(Input),
    Left,
    Failed(Call, LogError),
}

impl Keeper {
    pub(crate) fn new(node: Arc<Node>, member: Member, check: Option<Check>) -> Keeper {
        let lease = &node.shared.config.lease;
        let times =
            Times { lease: lease.duration, renew: lease.renew, margin: lease.margin, announce: ANNOUNCE };
        Keeper {
            machine: Ownership::new(node.id.clone(), times),
            node,
            member,
            check,
            calls: JoinSet::new(),
            writers: JoinSet::new(),
            leases: BTreeMap::new(),
            terms: BTreeMap::new(),
        }
    }

    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let shared = self.node.shared.clone();
        let mut ticks = tokio::time::interval(shared.config.lease.renew / 4);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut others: Option<Box<dyn Subscription>> = None;
        let mut leave_by: Option<Instant> = None;
        let mut effects = Vec::new();
        loop {
            let input = tokio::select! {
                biased;
                () = &mut shutdown, if leave_by.is_none() => {
                    leave_by = Some(Instant::now() + shared.config.drain_timeout);
                    self.report(Err("shutting down"));
                    Some(Input::Drain)
                }
                _ = ticks.tick() => {
                    if others.is_none() {
                        others = shared.bus.subscribe(Topic::Routes).await.ok();
                    }
                    self.measure();
                    Some(Input::Tick)
                }
                Some(Ok(ended)) = self.writers.join_next() => Some(self.ended(ended)),
                Some(Ok(came)) = self.calls.join_next() => self.came(came),
                received = next(&mut others) => match received {
                    Some(Received::Message(message)) => self.heard(&message),
                    // What was lost, the next look at the log shows.
                    Some(Received::Lost) => None,
                    None => {
                        others = None;
                        None
                    }
                },
            };
            if let Some(input) = input {
                self.machine.handle(shared.clock.now(), input, &mut effects);
                for effect in effects.drain(..) {
                    self.perform(effect);
                }
            }
            if let Some(leave_by) = leave_by {
                let done = self.machine.is_empty() && self.calls.is_empty() && self.writers.is_empty();
                if done || Instant::now() >= leave_by {
                    return;
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        let log = self.node.shared.log.clone();
        let started = self.node.shared.clock.now();
        let ttl = self.node.shared.config.lease.duration;
        let member = self.member.clone();
        match effect {
            Effect::Join => {
                self.call(async move { log.join(&member, ttl).await.map(Came::Joined) }, Call::Join);
            }
            Effect::Leave => {
                self.calls.spawn(async move {
                    if let Err(error) = log.leave(&member.node).await {
                        tracing::warn!(%error, "leaving is not noted in the log; the membership runs out");
                    }
                    Came::Left
                });
            }
            Effect::Look => self.call(async move { log.ownership().await.map(Came::Looked) }, Call::Look),
            Effect::Claim(partitions) => {
                let claim = async move {
                    let leases = log.claim(&member, &partitions, ttl).await?;
                    Ok(Came::Claimed(started, leases))
                };
                self.call(claim, Call::Claim);
            }
            Effect::Renew(asked) => {
                let renew = async move {
                    let lost = log.renew(&member.node, &asked, ttl).await?;
                    Ok(Came::Said(Input::Renewed { started, asked, lost }))
                };
                self.call(renew, Call::Renew);
            }
            Effect::Release(released) => {
                let release = async move {
                    log.release(&released).await?;
                    Ok(Came::Said(Input::Released { released }))
                };
                self.call(release, Call::Release);
            }
            Effect::Serve { partition, epoch, until } => self.serve(partition, epoch, until),
            Effect::Extend { partition, until } => {
                if let Some((_, term)) = self.terms.get(&partition) {
                    term.extend(until);
                }
            }
            Effect::Stop(partition) => {
                self.close(partition);
                if let Some((stop, _)) = self.terms.get(&partition) {
                    stop.cancel();
                }
            }
            Effect::Announce(routes) => self.announce(routes),
        }
    }

    fn call(&mut self, call: impl Future<Output = Result<Came, LogError>> + Send + 'static, kind: Call) {
        // A panic must not leave the machine waiting for an answer for ever.
        let call = AssertUnwindSafe(call).catch_unwind();
        self.calls.spawn(async move {
            match call.await {
                Ok(Ok(came)) => came,
                Ok(Err(error)) => Came::Failed(kind, error),
                Err(_) => Came::Failed(kind, LogError::Unavailable("the call panicked".to_owned())),
            }
        });
    }

    fn serve(&mut self, partition: PartitionId, epoch: Epoch, until: Duration) {
        let Some(lease) = self.leases.remove(&partition).filter(|lease| lease.epoch() == epoch) else {
            // The machine serves only what was just won; should that ever fail, the lease goes back.
            self.writers.spawn(async move { (partition, epoch) });
            return;
        };
        let shared = self.node.shared.clone();
        let stop = CancellationToken::new();
        let term = Term::new(shared.clock, until);
        let (desk, mailbox) = Mailbox::new(&shared.config.mailbox, shared.config.batch.clone(), stop.clone());
        let writer = Writer::new(shared, lease, term.clone(), mailbox);
        self.terms.insert(partition, (stop, term));
        self.node.desks.write().unwrap_or_else(PoisonError::into_inner).insert(partition, desk);
        self.writers.spawn(async move {
            if AssertUnwindSafe(writer.run()).catch_unwind().await.is_err() {
                tracing::error!(%partition, "the partition's loop panicked; it is claimed anew");
            }
            (partition, epoch)
        });
    }

    fn close(&self, partition: PartitionId) {
        self.node.desks.write().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }

    fn ended(&mut self, (partition, epoch): (PartitionId, Epoch)) -> Input {
        self.close(partition);
        self.terms.remove(&partition);
        Input::Ended { partition, epoch }
    }

    fn came(&mut self, came: Came) -> Option<Input> {
        Some(match came {
            Came::Joined(members) => {
                self.report(Ok(()));
                Input::Joined { members: members.into_iter().map(|member| member.node).collect() }
            }
            Came::Looked(rows) => {
                self.node.note_routes(rows.iter().map(|row| v1::Route {
                    partition: u32::from(row.partition.0),
                    epoch: row.epoch.0,
                    node: row.owner.as_ref().map_or(String::new(), |owner| owner.node.0.clone()),
                    address: row.owner.as_ref().map_or(String::new(), |owner| owner.address.clone()),
                }));
                let route = |row: manyhands_history::Ownership| Route {
                    partition: row.partition,
                    epoch: row.epoch,
                    owner: row.owner.map(|owner| owner.node),
                };
                Input::Looked { routes: rows.into_iter().map(route).collect() }
            }
            Came::Claimed(started, leases) => {
                let won = leases.iter().map(|lease| (lease.partition(), lease.epoch())).collect();
                self.leases = leases.into_iter().map(|lease| (lease.partition(), lease)).collect();
                Input::Claimed { started, won }
            }
            Came::Said(input) => input,
            Came::Left => return None,
            Came::Failed(call, error) => {
                tracing::warn!(?call, %error, "the event log did not answer");
                if call == Call::Join {
                    self.report(Err("the event log is not reachable"));
                }
                Input::Failed(call)
            }
        })
    }

    fn heard(&self, message: &Message) -> Option<Input> {
        let message = v1::BusMessage::decode(message.payload.clone()).ok()?.message?;
        let v1::bus_message::Message::Routes(v1::BusRoutes { routes }) = message else { return None };
        let routes: Vec<v1::Route> =
            routes.into_iter().filter(|route| route.node != self.member.node.0).collect();
        let said = routes.iter().filter_map(|route| {
            let owner = (!route.node.is_empty()).then(|| NodeId(route.node.clone()));
            Some(Route { partition: partition_of(route)?, epoch: Epoch(route.epoch), owner })
        });
        let input = Input::Heard { routes: said.collect() };
        self.node.note_routes(routes);
        Some(input)
    }

    /// Tells the others; without a node, a route says that nobody has the partition.
    fn announce(&self, routes: Vec<Route>) {
        let routes: Vec<v1::Route> = routes
            .into_iter()
            .map(|Route { partition, epoch, owner }| v1::Route {
                partition: u32::from(partition.0),
                epoch: epoch.0,
                address: owner.as_ref().map_or(String::new(), |_| self.member.address.clone()),
                node: owner.map_or(String::new(), |owner| owner.0),
            })
            .collect();
        self.node.note_routes(routes.clone());
        let message = v1::bus_message::Message::Routes(v1::BusRoutes { routes });
        let payload = Bytes::from(v1::BusMessage { message: Some(message) }.encode_to_vec());
        self.node.shared.bus.publish(Topic::Routes, Message { payload, traceparent: None });
    }

    fn report(&self, health: Result<(), &str>) {
        match (&self.check, health) {
            (Some(check), Ok(())) => check.pass(),
            (Some(check), Err(why)) => check.fail(why),
            (None, _) => {}
        }
    }

    fn measure(&self) {
        let shared = &self.node.shared;
        let depth: usize = {
            let desks = self.node.desks.read().unwrap_or_else(PoisonError::into_inner);
            desks.values().map(Desk::depth).sum()
        };
        let resident_bytes = shared.resident_bytes.load(Ordering::Relaxed);
        let resident_documents = shared.resident_documents.load(Ordering::Relaxed);
        metrics::gauge!("manyhands_document_partitions_owned").set(self.machine.serving() as f64);
        metrics::gauge!("manyhands_document_mailbox_requests").set(depth as f64);
        metrics::gauge!("manyhands_document_resident_bytes").set(resident_bytes as f64);
        metrics::gauge!("manyhands_document_resident_documents").set(resident_documents as f64);
    }
}

/// The next thing of a subscription; nothing ever of one that is not there.
async fn next(subscription: &mut Option<Box<dyn Subscription>>) -> Option<Received> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}
