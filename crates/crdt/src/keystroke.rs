//! The short road of a keystroke. Nearly every change is one op that goes on where its author was: a
//! character behind the one before, or a character gone. Those need no list of resolved ops and one look at
//! the text. What does not fit exactly, for whatever reason, takes the ordinary road through `check.rs`,
//! which also says what is wrong.

use crate::body::Keystroke;
use crate::document::{Document, Limits, Observer};
use crate::id::{COUNTER_MAX, Client, Id};

impl Document {
    /// Integrates a keystroke of `client` if the short road is open to it, and returns the client's next
    /// counter. Otherwise nothing has changed.
    #[inline]
    pub(crate) fn keystroke<O: Observer>(
        &mut self,
        client: Client,
        limits: Limits,
        keystroke: &Keystroke<'_>,
        on: &mut O,
    ) -> Option<u32> {
        let state = self.replicas.get_mut(client as usize)?;
        let id = Id::new(client, state.next);
        let next = match *keystroke {
            Keystroke::Typed { text, len } => {
                let next = u64::from(id.counter) + u64::from(len);
                if next > COUNTER_MAX || self.sequences.elements() + len as usize > limits.elements_max {
                    return None;
                }
                let container = self.sequences.type_on(id, len, text)?;
                self.local.caret = None;
                if O::LISTENS {
                    let (_, at, _) = self.sequences.position(id).expect("just typed");
                    on.inserted(&self.names[container as usize], at, text);
                }
                next as u32
            }
            Keystroke::Deleted { distance } => {
                let deleted = u64::from(id.counter).checked_sub(distance)?;
                if u64::from(id.counter) + 1 > COUNTER_MAX {
                    return None;
                }
                let deleted = Id::new(client, deleted as u32);
                let guess = self.sequences.find_all(deleted, 1).ok()?;
                self.sequences.hint(deleted, guess);
                self.delete(deleted, 1, on);
                id.counter + 1
            }
        };
        self.replicas[client as usize].next = next;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body;
    use crate::change::{Change, ChangeRef};
    use crate::check::Checked;
    use crate::document::Origin;
    use crate::id::ReplicaId;
    use crate::wire::Reader;

    fn random(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |n| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        }
    }

    /// As `apply`, without the short road.
    fn apply_ordinarily(document: &mut Document, change: ChangeRef<'_>) {
        let client = document.client_or_next(change.replica, document.limits).expect("room for it");
        let mut reader = Reader::new(change.body);
        let (replica, base, limits) = (change.replica, change.base, document.limits);
        let checked = Checked { client, replica, base, limits, admission: None };
        document.check(checked, &mut reader).expect("a good change");
        if client as usize == document.replicas.len() {
            document.add_replica(change.replica);
        }
        document.seq += 1;
        document.integrate(Origin { client, seq: document.seq, base }, change.body, &mut ());
        if document.replicas[client as usize].log_index.is_none() {
            document.give_index(client);
        }
    }

    fn edit(document: &mut Document, replica: ReplicaId, base: u64, at: usize, key: u64) -> Option<Change> {
        let len = document.text("text").map_or(0, |text| text.len());
        let mut edit = document.edit(replica);
        match key {
            0..5 => {
                edit.insert("text", at.min(len), ["a", "ß", "\n", "🎉", "two words"][key as usize]).ok()?
            }
            5 if at > 0 && at <= len => edit.delete("text", at - 1..at).ok()?,
            6 if at < len => edit.delete("text", at..at + 1).ok()?,
            _ => edit.insert("text", at.min(len), "z").ok()?,
        }
        edit.commit(base)
    }

    // enforces: I-5
    #[test]
    fn the_short_road_ends_where_the_ordinary_one_does() {
        let (mut typed, mut deleted, mut refused) = (0, 0, 0);
        for seed in 0..300 {
            let mut next = random(seed);
            let (mut short, mut ordinary) = (Document::new(), Document::new());
            // Each writes for a while without seeing the other, at a place that it moves away from now and then.
            let mut writers = [(Document::new(), 0usize), (Document::new(), 0usize)];
            for _ in 0..12 {
                let base = short.replica_count() as u64;
                for (n, (document, at)) in writers.iter_mut().enumerate() {
                    let mut changes = Vec::new();
                    for _ in 0..1 + next(6) {
                        if next(6) == 0 {
                            *at = next(30) as usize;
                        }
                        let key = next(8);
                        let len = document.text("text").map_or(0, |text| text.len());
                        changes.extend(edit(document, ReplicaId(n as u64 + 1), base, (*at).min(len), key));
                        let now = document.text("text").map_or(0, |text| text.len());
                        *at = ((*at).min(len) + now).saturating_sub(len);
                    }
                    for change in changes {
                        let mut scratch = crate::body::Scratch::default();
                        let read = body::read_keystroke(&mut Reader::new(&change.body), &mut scratch);
                        if let (Some(read), Some(client)) = (read, short.client(change.replica)) {
                            match (short.clone().keystroke(client, short.limits, &read, &mut ()), read) {
                                (Some(_), Keystroke::Typed { .. }) => typed += 1,
                                (Some(_), Keystroke::Deleted { .. }) => deleted += 1,
                                (None, _) => refused += 1,
                            }
                        }
                        let applied = short.apply(change.as_ref()).expect("a good change");
                        assert_eq!(applied.next_counter, change.next_counter);
                        apply_ordinarily(&mut ordinary, change.as_ref());
                        assert_eq!(short.state_hash(), ordinary.state_hash(), "seed {seed}");
                    }
                }
                // Now and then both hear of everything: they go on from the saved state.
                if next(3) == 0 {
                    for (document, _) in &mut writers {
                        *document = Document::decode(&short.encode()).expect("what was saved");
                    }
                }
            }
        }
        // Typing beside a rival must find the short road closed, and be seen to here.
        assert!(
            typed > 2000 && deleted > 1000 && refused > 300,
            "{typed} typed, {deleted} deleted, {refused} refused"
        );
    }

    #[test]
    fn what_is_no_keystroke_is_left_unread() {
        let mut scratch = crate::body::Scratch::default();
        let long = [0x68, 0x01, b'x'];
        let own_start = [0x12, 0x00];
        for body in [&[][..], &[0xe8], &[0xe9, b'x'], &long, &own_start, &[0x80, 0x01, b't', b'x']] {
            let mut reader = Reader::new(body);
            assert!(body::read_keystroke(&mut reader, &mut scratch).is_none(), "{body:02x?}");
            assert_eq!(reader.at(), 0);
        }
    }
}
