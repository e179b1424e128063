//! The visible characters, apart from the tree: for each replica one string that only grows at its end,
//! so that typing on is a push. Spans say where theirs lie. What deletions leave behind is counted and,
//! when it is more than the rest, swept out.

use crate::id::Client;

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    strings: Vec<String>,
    /// Bytes that no span has any more, in all strings.
    pub(super) dead: usize,
    /// Bytes that spans have.
    pub(super) live: usize,
}

impl Content {
    #[inline]
    pub(super) fn get(&self, client: Client, at: u32, bytes: u32) -> &str {
        &self.strings[client as usize][at as usize..(at + bytes) as usize]
    }

    /// Where the next text of this replica will lie.
    #[inline]
    pub(super) fn end(&self, client: Client) -> u32 {
        self.strings.get(client as usize).map_or(0, |string| string.len() as u32)
    }

    #[inline]
    pub(super) fn push(&mut self, client: Client, text: &str) {
        let client = client as usize;
        if client >= self.strings.len() {
            self.strings.resize_with(client + 1, String::new);
        }
        let string = &mut self.strings[client];
        if string.capacity() - string.len() < text.len() {
            // Doubling would leave up to half of it unused, in every document that is open.
            string.reserve_exact(text.len().max(string.len() / 8 + 8));
        }
        string.push_str(text);
        self.live += text.len();
    }

    /// Gives up a piece. At the end of the string, as by a backspace, it is gone at once.
    #[inline]
    pub(super) fn release(&mut self, client: Client, at: u32, bytes: u32) {
        let string = &mut self.strings[client as usize];
        self.live -= bytes as usize;
        if (at + bytes) as usize == string.len() {
            string.truncate(at as usize);
        } else {
            self.dead += bytes as usize;
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.strings.capacity() * size_of::<String>()
            + self.strings.iter().map(|string| string.capacity()).sum::<usize>()
    }
}
