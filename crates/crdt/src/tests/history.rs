//! What happens in a history, as data: it can be made from a seed, printed, read back and cut down.

use std::fmt;

#[cfg(test)]
use crate::sequence::tests::Random;

/// Characters of one to four bytes; `_` is written for the space and `|` for the line feed.
const LETTERS: [char; 12] = ['a', 'b', 'c', 'd', 'e', 'f', '_', '|', 'ä', 'ß', '語', '🎉'];

/// Some peers and what they do. Every history can be run, whatever its numbers are: places are shares of what is
/// there, and what is not there is not deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    /// 2 to 6.
    pub(super) peers: usize,
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// One change of a peer.
    Edit { peer: usize, actions: Vec<Action> },
    /// An insertion between any two elements, or what stands for none, as no honest editor makes it.
    Forge { peer: usize, container: usize, left: usize, right: usize, letters: Vec<usize> },
    /// A peer takes in up to `count` changes that are ready for it; `pick` says which.
    Hear { peer: usize, count: usize, pick: usize },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// `at` is a share of the text's length, in percent.
    Insert {
        container: usize,
        at: usize,
        letters: Vec<usize>,
    },
    Delete {
        container: usize,
        at: usize,
        len: usize,
    },
}

impl History {
    /// `forged` is how many of a hundred steps forge an insertion.
    #[cfg(test)]
    pub(super) fn random(seed: u64, forged: u64) -> History {
        let random = &mut Random(seed);
        let peers = 2 + random.at(5);
        let hear = 20 + random.below(55);
        // Everybody likes to work at the same spots.
        let spots = [0, random.at(101), 100];
        let steps = 8 + random.at(26);
        let steps = (0..steps).map(|_| {
            let peer = random.at(peers);
            if random.chance(hear) {
                return Step::Hear { peer, count: 1 + random.at(4), pick: random.at(60) };
            }
            if random.chance(forged) {
                let (container, letters) = (0, vec![random.at(LETTERS.len()); 1 + random.at(3)]);
                return Step::Forge { peer, container, left: random.at(60), right: random.at(60), letters };
            }
            let actions = if random.chance(75) { 1 } else { 2 + random.at(2) };
            Step::Edit { peer, actions: (0..actions).map(|_| Action::random(random, spots)).collect() }
        });
        let steps = steps.collect();
        History { peers, steps }
    }

    /// A history out of any bytes, for fuzzing.
    pub(super) fn from_bytes(bytes: &[u8]) -> History {
        let (&peers, bytes) = bytes.split_first().unwrap_or((&0, &[]));
        let peers = 2 + usize::from(peers) % 5;
        let mut steps = Vec::new();
        for step in bytes.chunks_exact(4).take(120) {
            let [head, a, b, c] = [0, 1, 2, 3].map(|n| usize::from(step[n]));
            let peer = (head & 7) % peers;
            let container = head >> 3 & 1;
            let letters = (0..1 + c % 8).map(|n| (c / 8 + n) % LETTERS.len()).collect();
            let action = match head >> 4 & 7 {
                0..3 => Action::Insert { container, at: a % 101, letters },
                3 => Action::Delete { container, at: a % 101, len: 1 + b % 8 },
                4 => {
                    steps.push(Step::Forge { peer, container, left: a, right: b, letters });
                    continue;
                }
                _ => {
                    steps.push(Step::Hear { peer, count: 1 + a % 8, pick: b });
                    continue;
                }
            };
            match steps.last_mut() {
                // One change of several ops.
                Some(Step::Edit { peer: last, actions }) if head >= 128 && *last == peer => {
                    actions.push(action)
                }
                _ => steps.push(Step::Edit { peer, actions: vec![action] }),
            }
        }
        History { peers, steps }
    }

    /// How large it is, for telling whether a smaller one was found.
    pub(super) fn size(&self) -> usize {
        self.to_string().len()
    }
}

#[cfg(test)]
impl Action {
    fn random(random: &mut Random, spots: [usize; 3]) -> Action {
        let container = usize::from(random.chance(10));
        let at = match random.at(10) {
            n @ 0..7 => spots[n % 3],
            _ => random.at(101),
        };
        if random.chance(25) {
            return Action::Delete { container, at, len: 1 + random.at(6) };
        }
        let len = if random.chance(10) { 4 + random.at(9) } else { 1 + random.at(3) };
        let letters = (0..len).map(|_| random.at(LETTERS.len())).collect();
        Action::Insert { container, at, letters }
    }
}

/// The text of some letters.
pub(super) fn text(letters: &[usize]) -> String {
    let meant = |&n: &usize| match LETTERS[n] {
        '_' => ' ',
        '|' => '\n',
        c => c,
    };
    letters.iter().map(meant).collect()
}

fn written(letters: &[usize]) -> String {
    letters.iter().map(|&n| LETTERS[n]).collect()
}

fn read(letters: &str) -> Option<Vec<usize>> {
    letters.chars().map(|c| LETTERS.iter().position(|&letter| letter == c)).collect()
}

/// `3: 0i50:ab,d0:2 1h4.17` is three peers, of whom 0 inserts "ab" in the middle and deletes two characters from the
/// start on, in one change, and 1 then hears up to four changes, picked by 17. `2x4.0:a` forges
/// an insertion between the fourth element and none. Capitals are the second container.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.peers)?;
        for step in &self.steps {
            match step {
                Step::Hear { peer, count, pick } => write!(f, " {peer}h{count}.{pick}")?,
                Step::Forge { peer, container, left, right, letters } => {
                    let kind = ['x', 'X'][*container];
                    write!(f, " {peer}{kind}{left}.{right}:{}", written(letters))?;
                }
                Step::Edit { peer, actions } => {
                    write!(f, " {peer}")?;
                    for (n, action) in actions.iter().enumerate() {
                        let comma = if n == 0 { "" } else { "," };
                        match action {
                            Action::Insert { container, at, letters } => {
                                let kind = ['i', 'I'][*container];
                                write!(f, "{comma}{kind}{at}:{}", written(letters))?;
                            }
                            Action::Delete { container, at, len } => {
                                write!(f, "{comma}{}{at}:{len}", ['d', 'D'][*container])?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl History {
    /// Reads what `Display` wrote.
    pub(super) fn parse(line: &str) -> Option<History> {
        let (peers, rest) = line.trim().split_once(':')?;
        let steps = rest.split_whitespace().map(parse_step).collect::<Option<Vec<Step>>>()?;
        let peers = peers.parse().ok().filter(|peers| (2..=6).contains(peers))?;
        Some(History { peers, steps })
    }
}

fn parse_step(word: &str) -> Option<Step> {
    let kind = word.find(|c: char| !c.is_ascii_digit())?;
    let (peer, rest) = word.split_at(kind);
    let peer = peer.parse().ok()?;
    if let Some(heard) = rest.strip_prefix('h') {
        let (count, pick) = heard.split_once('.')?;
        return Some(Step::Hear { peer, count: count.parse().ok()?, pick: pick.parse().ok()? });
    }
    if let Some(forged) = rest.strip_prefix(['x', 'X']) {
        let (places, letters) = forged.split_once(':')?;
        let (left, right) = places.split_once('.')?;
        let (left, right, letters) = (left.parse().ok()?, right.parse().ok()?, read(letters)?);
        return Some(Step::Forge {
            peer,
            container: usize::from(rest.starts_with('X')),
            left,
            right,
            letters,
        });
    }
    let actions = rest.split(',').map(parse_action).collect::<Option<Vec<Action>>>()?;
    Some(Step::Edit { peer, actions })
}

fn parse_action(word: &str) -> Option<Action> {
    let mut chars = word.chars();
    let kind = chars.next()?;
    let (at, what) = chars.as_str().split_once(':')?;
    let at = at.parse().ok()?;
    let container = usize::from(kind.is_uppercase());
    match kind.to_ascii_lowercase() {
        'i' => Some(Action::Insert { container, at, letters: read(what)? }),
        'd' => Some(Action::Delete { container, at, len: what.parse().ok()? }),
        _ => None,
    }
}
