//! What happens in a history, as data: it can be made from a seed, printed, read back and cut down.

use std::fmt;

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
    pub(super) fn random(seed: u64) -> History {
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
            let actions = if random.chance(75) { 1 } else { 2 + random.at(2) };
            Step::Edit { peer, actions: (0..actions).map(|_| Action::random(random, spots)).collect() }
        });
        let steps = steps.collect();
        History { peers, steps }
    }

    /// How large it is, for telling whether a smaller one was found.
    pub(super) fn size(&self) -> usize {
        self.to_string().len()
    }
}

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

/// `3: 0i50:ab,d0:2 1h4.17` is three peers, of whom 0 inserts "ab" in the middle and deletes two characters from the
/// start on, in one change, and 1 then hears up to four changes, picked by 17. Capitals are the second container.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.peers)?;
        for step in &self.steps {
            match step {
                Step::Hear { peer, count, pick } => write!(f, " {peer}h{count}.{pick}")?,
                Step::Edit { peer, actions } => {
                    write!(f, " {peer}")?;
                    for (n, action) in actions.iter().enumerate() {
                        let comma = if n == 0 { "" } else { "," };
                        match action {
                            Action::Insert { container, at, letters } => {
                                let kind = ['i', 'I'][*container];
                                let letters: String = letters.iter().map(|&n| LETTERS[n]).collect();
                                write!(f, "{comma}{kind}{at}:{letters}")?;
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
        'i' => {
            let letter = |c| LETTERS.iter().position(|&letter| letter == c);
            let letters = what.chars().map(letter).collect::<Option<Vec<usize>>>()?;
            Some(Action::Insert { container, at, letters })
        }
        'd' => Some(Action::Delete { container, at, len: what.parse().ok()? }),
        _ => None,
    }
}
