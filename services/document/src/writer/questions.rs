//! What a partition is asked: is the document in memory, and if so, what of its durable state is wanted.

use manyhands_history::Strategy;
use manyhands_proto::{Code, DocumentName, Position, v1};

use super::Writer;
use crate::aside::new_record;
use crate::grpc::PART_BYTES;
use crate::mailbox::{Asked, Ticket, overloaded};
use crate::node::Clock;
use crate::partition::Admitted;
use crate::request::{Open, Opened, Read, Refused, Scope, Submitted};
use crate::residency::Arrival;
use crate::resident::{Fit, Have, Opening, Resident};

/// Tasks that one partition has at the same time; who needs another is told to come back.
const TASKS_MAX: usize = 256;

impl Writer {
    /// Gives back a request whose document is in memory; has the document loaded for the others.
    pub(super) fn arrive(&mut self, asked: Asked) -> Option<Asked> {
        let document = asked.document().clone();
        match self.residency.arrive(self.shared.clock.now(), &document, asked) {
            Arrival::Resident(asked) => return Some(asked),
            Arrival::Waits => {}
            Arrival::Full(asked) => asked.refuse(overloaded()),
            Arrival::Load if self.is_busy() => {
                for asked in self.residency.forget(&document) {
                    asked.refuse(overloaded());
                }
            }
            Arrival::Load => {
                let (aside, drawn) = (self.aside.clone(), self.drawn.remove(&document));
                self.mailbox.tasks.spawn(async move { aside.load(document, drawn).await });
            }
        }
        None
    }

    fn is_busy(&self) -> bool {
        self.mailbox.tasks.len() >= TASKS_MAX
    }

    /// Asks the log about changes that are older than memory remembers.
    pub(super) fn look_up(&mut self, admitted: &mut Admitted<Ticket<Submitted>>) {
        for (submit, counters) in admitted.take_lookups() {
            if self.is_busy() {
                submit.ticket.answer(Err(overloaded()));
                continue;
            }
            let aside = self.aside.clone();
            self.mailbox.tasks.spawn(async move { aside.look_up(submit, counters).await });
        }
    }

    /// Answers what asks for durable state, of which memory now holds nothing else.
    pub(super) fn answer(&mut self, questions: Vec<Asked>) {
        for asked in questions {
            match self.arrive(asked) {
                Some(Asked::Open(open, ticket)) => self.answer_open(open, ticket),
                Some(Asked::Read(read, ticket)) => self.answer_read(&read, ticket),
                Some(Asked::Submit(_)) | None => {}
            }
        }
    }

    fn answer_open(&mut self, open: Open, ticket: Ticket<Opened>) {
        let Open { document: name, replica, have, heads, strategy, grant } = open;
        let now_ms = Clock::unix_ms();
        if let Err(refused) = grant.check(now_ms, &name, Scope::Read) {
            return ticket.answer(Err(refused));
        }
        if let Some(strategy) = strategy {
            let writes = grant.check(now_ms, &name, Scope::Write).is_ok();
            if let Err(refused) = self.agree(&name, strategy, writes) {
                return ticket.answer(Err(refused));
            }
        }
        let Some(document) = self.partition.document_mut(&name) else {
            return ticket.answer(Err(Refused::later(Code::Unavailable, 100)));
        };
        let owner = replica.and_then(|replica| document.subject(replica));
        if owner.is_some_and(|subject| subject != grant.subject) {
            return ticket.answer(Err(Refused::from(Code::ReplicaTaken)));
        }
        let have = have
            .map(Have::Position)
            .or_else(|| (!heads.is_empty()).then(|| Have::Heads(heads.into_iter().collect())));
        let opening = document.open(self.lease.epoch(), replica, have, PART_BYTES);
        self.resize(&name);
        match opening {
            Opening::Ready(opened) => ticket.answer(Ok(opened)),
            Opening::FromLog(_) if self.is_busy() => ticket.answer(Err(overloaded())),
            Opening::FromLog(tail) => {
                let aside = self.aside.clone();
                self.mailbox.tasks.spawn(async move { aside.open(tail, ticket).await });
            }
        }
    }

    /// Whether a document merges as somebody asks who opens it. One without entries that merges otherwise only
    /// by default is made anew, in another history, so that nobody who opened it before writes to it unawares.
    fn agree(&mut self, name: &DocumentName, asked: Strategy, writes: bool) -> Result<(), Refused> {
        let Some(document) = self.partition.document_mut(name) else { return Ok(()) };
        match document.fit(asked) {
            Fit::Fits => {}
            Fit::MayBeMadeAnew => {
                *document = Resident::new(new_record(name, asked), self.shared.config.limits.of_document());
            }
            Fit::Differs => {
                let has = document.record().strategy;
                let message = format!("workspace {name} merges by the strategy {has}, not {asked}");
                return Err(Refused::new(Code::StrategyMismatch, message));
            }
        }
        // Who only reads does not decide.
        if writes {
            document.settle();
        }
        Ok(())
    }

    fn answer_read(&mut self, read: &Read, ticket: Ticket<(v1::EntryRun, Position)>) {
        if let Err(refused) = read.grant.check(Clock::unix_ms(), &read.document, Scope::Read) {
            return ticket.answer(Err(refused));
        }
        let Some(document) = self.partition.document(&read.document) else {
            return ticket.answer(Err(Refused::later(Code::Unavailable, 100)));
        };
        let tip = document.position();
        if read.incarnation != tip.incarnation || read.after > tip.seq {
            return ticket.answer(Err(Refused::from(Code::HistoryReset)));
        }
        match document.recent_after(read.after, read.bytes_max, true) {
            Some(runs) => ticket.answer(Ok((runs.into_iter().next().unwrap_or_default(), tip))),
            None if self.is_busy() => ticket.answer(Err(overloaded())),
            None => {
                let (aside, indices) = (self.aside.clone(), document.indices());
                let (after, bytes_max) = (read.after, read.bytes_max);
                self.mailbox
                    .tasks
                    .spawn(async move { aside.read(after, bytes_max, tip, indices, ticket).await });
            }
        }
    }
}
