//! What happens to the bytes of one way of one connection: a decision, no more.

use std::time::Duration;

/// A direction, as the one who connected sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the one who connected.
    Up,
    /// To the one who connected.
    Down,
}

/// What a link does to what goes through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Every piece waits so long.
    pub latency: Duration,
    /// Nothing moves, and nothing is lost: later it does.
    pub hold: bool,
    /// What goes this way disappears; the other way works.
    pub swallow: Option<Way>,
    /// What goes either way disappears: both believe in a connection that is none.
    pub half_open: bool,
    /// A connection ends when so many more bytes have gone through one of its ways.
    pub cut_after: Option<u64>,
    /// No new connection is taken.
    pub refuse: bool,
}

impl Mode {
    /// Something that was sent will never arrive.
    #[must_use]
    pub fn loses_bytes(&self) -> bool {
        self.half_open || self.swallow.is_some()
    }
}

/// What to do with the bytes at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the first `count` of them on, `after` a while.
    Pass {
        /// How long to wait first.
        after: Duration,
        /// How many; never none.
        count: usize,
    },
    /// Forget them.
    Swallow,
    /// Keep them until the mode is another.
    Wait,
    /// End the connection.
    Cut,
}

/// One way of one connection.
///
/// ```
/// use loadtest::proxy::{Flow, Mode, Step, Way};
/// use std::time::Duration;
///
/// let mut flow = Flow::new(Way::Up);
/// assert_eq!(flow.step(Mode::default(), 10), Step::Pass { after: Duration::ZERO, count: 10 });
/// let cut = Mode { cut_after: Some(4), ..Mode::default() };
/// assert_eq!(flow.step(cut, 10), Step::Pass { after: Duration::ZERO, count: 4 });
/// assert_eq!(flow.step(cut, 6), Step::Cut);
/// ```
#[derive(Clone, Debug)]
pub struct Flow {
    way: Way,
    /// Bytes that went through since the mode began to count them.
    counted: u64,
    counting: Option<u64>,
    /// Something of this connection is lost: whatever follows makes no sense to the other side.
    broken: bool,
}

impl Flow {
    /// Nothing has happened to it yet.
    #[must_use]
    pub fn new(way: Way) -> Flow {
        Flow { way, counted: 0, counting: None, broken: false }
    }

    /// What to do with `available` bytes, of which there is at least one.
    pub fn step(&mut self, mode: Mode, available: usize) -> Step {
        if mode.half_open || mode.swallow == Some(self.way) {
            self.broken = true;
            return Step::Swallow;
        }
        if self.broken {
            return Step::Cut;
        }
        if mode.hold {
            return Step::Wait;
        }
        if mode.cut_after != self.counting {
            self.counting = mode.cut_after;
            self.counted = 0;
        }
        let mut count = available;
        if let Some(limit) = mode.cut_after {
            let left = limit.saturating_sub(self.counted);
            if left == 0 {
                return Step::Cut;
            }
            count = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.counted += count as u64;
        }
        Step::Pass { after: mode.latency, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Mode = Mode {
        latency: Duration::ZERO,
        hold: false,
        swallow: None,
        half_open: false,
        cut_after: None,
        refuse: false,
    };

    fn pass(count: usize) -> Step {
        Step::Pass { after: Duration::ZERO, count }
    }

    #[test]
    fn one_way_is_cut_and_the_other_works() {
        let mode = Mode { swallow: Some(Way::Down), ..NONE };
        assert_eq!(Flow::new(Way::Up).step(mode, 5), pass(5));
        assert_eq!(Flow::new(Way::Down).step(mode, 5), Step::Swallow);
    }

    #[test]
    fn what_lost_bytes_never_goes_on() {
        let mut flow = Flow::new(Way::Up);
        assert_eq!(flow.step(Mode { half_open: true, ..NONE }, 5), Step::Swallow);
        assert_eq!(flow.step(NONE, 5), Step::Cut);
    }

    #[test]
    fn what_is_held_goes_on_later() {
        let mut flow = Flow::new(Way::Up);
        assert_eq!(flow.step(Mode { hold: true, ..NONE }, 5), Step::Wait);
        assert_eq!(flow.step(NONE, 5), pass(5));
    }

    #[test]
    fn bytes_are_counted_from_when_the_fault_began() {
        let mut flow = Flow::new(Way::Down);
        assert_eq!(flow.step(NONE, 100), pass(100));
        let cut = Mode { cut_after: Some(7), ..NONE };
        assert_eq!(flow.step(cut, 5), pass(5));
        assert_eq!(flow.step(cut, 5), pass(2));
        assert_eq!(flow.step(cut, 3), Step::Cut);
    }

    #[test]
    fn latency_delays_and_loses_nothing() {
        let mode = Mode { latency: Duration::from_millis(20), ..NONE };
        assert_eq!(
            Flow::new(Way::Up).step(mode, 5),
            Step::Pass { after: Duration::from_millis(20), count: 5 }
        );
        assert!(!mode.loses_bytes());
    }
}
