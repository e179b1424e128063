//! Negative controls: a history that holds is damaged in one place, and the checker must name it. A checker
//! that finds nothing proves nothing without them.

use std::collections::BTreeMap;

use super::event::{Event, Micros, Row, Token};
use super::violation::Rule;

/// One kind of damage.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// What is done.
    pub name: &'static str,
    /// What must be found.
    pub rule: Rule,
    damage: fn(&mut Vec<Event>) -> Option<()>,
}

impl Control {
    /// A copy of the history with this damage; `None` when the history has no place for it.
    #[must_use]
    pub fn damaged(&self, events: &[Event]) -> Option<Vec<Event>> {
        let mut events = events.to_vec();
        (self.damage)(&mut events)?;
        Some(events)
    }
}

/// Every kind of damage.
#[must_use]
pub fn controls() -> Vec<Control> {
    let control = |name, rule, damage| Control { name, rule, damage };
    vec![
        control("delete an acknowledged row", Rule::AckedIsLogged, |events| {
            let at = acked_row(events)?;
            events.remove(at);
            Some(())
        }),
        control("cut off the end of the log", Rule::AckedIsLogged, |events| {
            let (at, _) = last(events, logged)?;
            events.remove(at);
            Some(())
        }),
        control("acknowledge what was never logged", Rule::AckedIsLogged, |events| {
            let (at, _) = last(events, |event| matches!(event, Event::Acked { .. }).then_some(event))?;
            let Event::Acked { client, document, replica, next_counter, at: time } = events[at] else {
                return None;
            };
            let token = Token { document, writer: u16::MAX, number: u32::MAX };
            let sent = Event::Sent {
                client,
                document,
                replica,
                counter: next_counter + 1_000_000,
                next_counter: next_counter + 1_000_017,
                token,
            };
            let acked =
                Event::Acked { client, document, replica, next_counter: next_counter + 1_000_017, at: time };
            events.splice(at + 1..at + 1, [sent, acked]);
            Some(())
        }),
        control("swap two rows", Rule::Gapless, |events| {
            let at = neighbours(events)?;
            events.swap(at.0, at.1);
            Some(())
        }),
        control("swap what two rows say", Rule::ChainHolds, |events| {
            let (first, second) = neighbours(events)?;
            let (a, b) = (logged(&events[first])?.clone(), logged(&events[second])?.clone());
            let put = |at: &Row, says: &Row| {
                Event::Logged(Row {
                    seq: at.seq,
                    offset: at.offset,
                    chain: at.chain,
                    time_ms: at.time_ms,
                    ..says.clone()
                })
            };
            (events[first], events[second]) = (put(&a, &b), put(&b, &a));
            Some(())
        }),
        control("repeat a row", Rule::LoggedOnce, |events| {
            let at = acked_row(events)?;
            events.insert(at + 1, events[at].clone());
            Some(())
        }),
        control("change a byte of a body", Rule::ChainHolds, |events| {
            row_mut(events)?.body_hash[3] ^= 1;
            Some(())
        }),
        control("change what a row wrote", Rule::NothingFromNowhere, |events| {
            row_mut(events)?.token.as_mut()?.number ^= 1 << 31;
            Some(())
        }),
        control("log what nobody sent", Rule::NothingFromNowhere, |events| {
            let (at, _) = last(events, |event| matches!(event, Event::Sent { .. }).then_some(()))?;
            events.remove(at);
            Some(())
        }),
        control("leave out a counter", Rule::AuthorOrder, |events| {
            row_mut(events)?.counter += 1;
            Some(())
        }),
        control("acknowledge before the commit", Rule::AfterCommit, |events| {
            early(events, |event, time| match event {
                Event::Acked { at, .. } => std::mem::replace(at, time) > time,
                _ => false,
            })
        }),
        control("deliver before the commit", Rule::AfterCommit, |events| {
            early(events, |event, time| match event {
                Event::Delivered { at, .. } => std::mem::replace(at, time) > time,
                _ => false,
            })
        }),
        control("hide a delta", Rule::DeliveredInOrder, |events| {
            let (first, _) = deltas(events)?;
            events.remove(first);
            Some(())
        }),
        control("hide the last delta", Rule::Settles, |events| {
            let (_, of) = last(events, |event| match event {
                Event::Watched { client, document, .. } => Some((*client, *document)),
                _ => None,
            })?;
            let (at, _) = last(events, |event| match event {
                Event::Delivered { client, document, .. } => ((*client, *document) == of).then_some(()),
                _ => None,
            })?;
            events.remove(at);
            Some(())
        }),
        control("swap two deltas", Rule::DeliveredInOrder, |events| {
            let (first, second) = deltas(events)?;
            events.swap(first, second);
            Some(())
        }),
        control("deliver what the log does not have", Rule::DeliveredInOrder, |events| {
            let (first, _) = deltas(events)?;
            let Event::Delivered { chain, .. } = &mut events[first] else { return None };
            chain[0] ^= 1;
            Some(())
        }),
        control("end with a stale state", Rule::StatesEqual, |events| {
            let (at, (of, now)) = last(events, |event| match event {
                Event::Final { document, state, .. } => Some((*document, *state)),
                _ => None,
            })?;
            let old = events.iter().find_map(|event| match event {
                Event::Folded { document, state, .. } if *document == of && *state != now => Some(*state),
                _ => None,
            })?;
            let Event::Final { state, .. } = &mut events[at] else { return None };
            *state = old;
            Some(())
        }),
        control("lose an edit of a final state", Rule::VisibleOnce, |events| {
            final_tokens(events)?.pop().map(drop)
        }),
        control("show an edit twice", Rule::VisibleOnce, |events| {
            let tokens = final_tokens(events)?;
            tokens.push(*tokens.first()?);
            Some(())
        }),
        control("show another document's edit", Rule::Isolated, |events| {
            let tokens = final_tokens(events)?;
            let token = *tokens.first()?;
            tokens.push(Token { document: token.document ^ 1, ..token });
            Some(())
        }),
        control("log a refused change", Rule::RefusedIsAbsent, |events| {
            let at = acked_row(events)?;
            let row = logged(&events[at])?.clone();
            let sent = events.iter().position(|event| {
                matches!(event, Event::Sent { replica, counter, .. }
                if (*replica, *counter) == (row.replica, row.counter))
            })?;
            let Event::Sent { client, document, replica, counter, .. } = events[sent] else { return None };
            events.insert(
                sent + 1,
                Event::Refused { client, document, replica, from: counter, returned: u64::MAX },
            );
            Some(())
        }),
        control("let an old epoch write", Rule::OneWriter, |events| {
            let (at, _) = last(events, |event| match event {
                Event::Appended { first, .. } if *first > 1 => Some(()),
                _ => None,
            })?;
            let Event::Appended { epoch, .. } = &mut events[at] else { return None };
            *epoch = 0;
            Some(())
        }),
        control("answer one client nothing", Rule::Settles, |events| {
            let gone: Vec<u32> = events
                .iter()
                .filter_map(|event| match event {
                    Event::Gone { client } => Some(*client),
                    _ => None,
                })
                .collect();
            let of = events.iter().find_map(|event| match event {
                Event::Acked { client, .. } if !gone.contains(client) => Some(*client),
                _ => None,
            })?;
            events.retain(|event| !matches!(event, Event::Acked { client, .. } if *client == of));
            Some(())
        }),
        control("settle an hour late", Rule::Settles, |events| {
            events.iter_mut().rev().find_map(|event| match event {
                Event::Final { at, .. } => {
                    *at += 3_600_000_000;
                    Some(())
                }
                _ => None,
            })
        }),
    ]
}

fn logged(event: &Event) -> Option<&Row> {
    match event {
        Event::Logged(row) => Some(row),
        _ => None,
    }
}

fn last<'e, T>(events: &'e [Event], of: impl Fn(&'e Event) -> Option<T>) -> Option<(usize, T)> {
    events.iter().enumerate().rev().find_map(|(at, event)| Some((at, of(event)?)))
}

/// A row in the middle of the log whose author was told that it is durable.
fn acked_row(events: &[Event]) -> Option<usize> {
    let (_, (replica, acked)) = last(events, |event| match event {
        Event::Acked { replica, next_counter, .. } => Some((*replica, *next_counter)),
        _ => None,
    })?;
    let rows: Vec<usize> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| {
            logged(event).is_some_and(|row| row.replica == replica && row.next_counter <= acked)
        })
        .map(|(at, _)| at)
        .collect();
    rows.get(rows.len() / 2).copied()
}

fn row_mut(events: &mut [Event]) -> Option<&mut Row> {
    let at = acked_row(events)?;
    match &mut events[at] {
        Event::Logged(row) => Some(row),
        _ => None,
    }
}

/// Two rows that follow on each other in one document.
fn neighbours(events: &[Event]) -> Option<(usize, usize)> {
    (1..events.len()).rev().find_map(|at| {
        let (first, second) = (logged(&events[at - 1])?, logged(&events[at])?);
        (first.document == second.document && first.hash != second.hash).then_some((at - 1, at))
    })
}

/// Two deltas of one client that follow on each other, with nothing told between them and nothing said twice.
fn deltas(events: &[Event]) -> Option<(usize, usize)> {
    let mut found = None;
    let mut before: BTreeMap<(u32, u16), (usize, u64)> = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Delivered { client, document, first_seq, count, .. } => {
                let next = first_seq + u64::from(*count);
                if let Some((first, expected)) = before.insert((*client, *document), (at, next))
                    && expected == *first_seq
                {
                    found = Some((first, at));
                }
            }
            Event::Opened { client, document, .. } => {
                before.remove(&(*client, *document));
            }
            _ => {}
        }
    }
    found
}

/// Moves the last event that `set` takes to a moment before anything was committed.
fn early(events: &mut [Event], set: impl Fn(&mut Event, Micros) -> bool) -> Option<()> {
    let first = events.iter().filter_map(|event| logged(event)?.committed).min()?;
    events.iter_mut().rev().any(|event| set(event, first - 1)).then_some(())
}

fn final_tokens(events: &mut [Event]) -> Option<&mut Vec<Token>> {
    events.iter_mut().rev().find_map(|event| match event {
        Event::Final { tokens, .. } if !tokens.is_empty() => Some(tokens),
        _ => None,
    })
}
