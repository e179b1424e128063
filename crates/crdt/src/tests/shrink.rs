//! From a history that fails to a small one that still does.

use super::history::{Action, History, Step};

/// Cuts a history down for as long as `fails` holds. Bounded: a few thousand tries at the most.
pub(super) fn shrink(history: &History, fails: impl Fn(&History) -> bool) -> History {
    let mut best = history.clone();
    let mut tries = 3_000;
    loop {
        let before = best.size();
        let mut part = best.steps.len().div_ceil(2).max(1);
        while part > 0 {
            let mut from = 0;
            while from < best.steps.len() {
                let mut smaller = best.clone();
                smaller.steps.drain(from..(from + part).min(best.steps.len()));
                if !attempt(&mut best, smaller, &mut tries, &fails) {
                    from += part;
                }
            }
            part /= 2;
        }
        for n in 0..best.steps.len() {
            for smaller in simpler(&best.steps[n]) {
                let mut next = best.clone();
                next.steps[n] = smaller;
                attempt(&mut best, next, &mut tries, &fails);
            }
        }
        let fewer = History { peers: best.peers - 1, ..best.clone() };
        let used = |step: &Step| match step {
            Step::Edit { peer, .. } | Step::Forge { peer, .. } | Step::Hear { peer, .. } => *peer,
        };
        if fewer.peers >= 2 && best.steps.iter().all(|step| used(step) < fewer.peers) {
            attempt(&mut best, fewer, &mut tries, &fails);
        }
        if best.size() >= before || tries == 0 {
            return best;
        }
    }
}

fn attempt(
    best: &mut History,
    candidate: History,
    tries: &mut usize,
    fails: &impl Fn(&History) -> bool,
) -> bool {
    if *tries == 0 || candidate.size() >= best.size() {
        return false;
    }
    *tries -= 1;
    let better = fails(&candidate);
    if better {
        *best = candidate;
    }
    better
}

/// Forms of a step that say less.
fn simpler(step: &Step) -> Vec<Step> {
    let mut forms = Vec::new();
    match step {
        Step::Hear { peer, count, pick } => {
            for pick in [0, 1, pick / 2] {
                forms.push(Step::Hear { peer: *peer, count: *count, pick });
                forms.push(Step::Hear { peer: *peer, count: 1, pick });
            }
        }
        Step::Forge { peer, container, left, right, letters } => {
            for (left, right) in
                [(*left, *right), (0, *right), (*left, 0), (left / 2, *right), (*left, right / 2)]
            {
                for letters in [letters, &vec![0]] {
                    let (container, letters) = (*container, letters.clone());
                    forms.push(Step::Forge { peer: *peer, container, left, right, letters });
                }
            }
        }
        Step::Edit { peer, actions } => {
            for n in 0..actions.len() {
                let with = |action: Option<Action>| {
                    let mut actions = actions.clone();
                    match action {
                        Some(action) => actions[n] = action,
                        None => drop(actions.remove(n)),
                    }
                    Step::Edit { peer: *peer, actions }
                };
                if actions.len() > 1 {
                    forms.push(with(None));
                }
                forms.extend(actions[n].simpler().into_iter().map(|action| with(Some(action))));
            }
        }
    }
    forms
}

impl Action {
    fn simpler(&self) -> Vec<Action> {
        match self {
            Action::Insert { container, at, letters } => {
                let insert = |at: usize, letters: &[usize]| Action::Insert {
                    container: *container,
                    at,
                    letters: letters.to_vec(),
                };
                let plain: Vec<usize> = vec![0; letters.len()];
                vec![
                    insert(0, &[0]),
                    insert(*at, &[0]),
                    insert(*at, &letters[..letters.len().div_ceil(2)]),
                    insert(*at, &letters[..letters.len() - 1.min(letters.len() - 1)]),
                    insert(*at, &plain),
                    insert(0, letters),
                ]
            }
            Action::Delete { container, at, len } => {
                let delete = |at, len| Action::Delete { container: *container, at, len };
                vec![delete(0, 1), delete(*at, 1), delete(0, *len)]
            }
        }
    }
}
