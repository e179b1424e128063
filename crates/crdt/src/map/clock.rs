//! The stamps of map writes: a hybrid logical clock.

/// When a write was made, by its author's clock: microseconds since the Unix epoch, and a number that
/// orders what falls into the same one.
///
/// ```
/// use manyhands_crdt::Hlc;
///
/// assert!(Hlc::at(2_000) > Hlc { micros: 1_000, logical: 9 });
/// assert!(Hlc::MAX.micros < 1 << 53);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc {
    /// Microseconds since the Unix epoch, below 2⁵³: every reader of JSON holds them exactly.
    pub micros: u64,
    /// Orders stamps of one microsecond.
    pub logical: u16,
}

impl Hlc {
    /// The last stamp there is, in the year 2255.
    pub const MAX: Hlc = Hlc { micros: (1 << 53) - 1, logical: u16::MAX };

    /// The first stamp of that microsecond.
    #[must_use]
    pub fn at(micros: u64) -> Hlc {
        Hlc { micros, logical: 0 }
    }

    /// The least stamp after this one. After [`Hlc::MAX`] there is none, and it stays.
    fn next(self) -> Hlc {
        match self.logical.checked_add(1) {
            Some(logical) => Hlc { logical, ..self },
            None if self.micros >= Hlc::MAX.micros => Hlc::MAX,
            None => Hlc::at(self.micros + 1),
        }
    }
}

/// Makes the stamps of one replica. Each is greater than those before and than all that were observed, so a
/// write beats whatever its author had seen, even when the device's clock is slow or is set back.
///
/// ```
/// use manyhands_crdt::{Clock, Hlc};
///
/// let mut clock = Clock::new();
/// assert_eq!(clock.tick(1_000), Hlc { micros: 1_000, logical: 0 });
/// assert_eq!(clock.tick(990), Hlc { micros: 1_000, logical: 1 });
/// clock.observe(Hlc { micros: 5_000, logical: 7 });
/// assert_eq!(clock.tick(1_001), Hlc { micros: 5_000, logical: 8 });
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    last: Option<Hlc>,
}

impl Clock {
    /// A clock that has seen nothing.
    #[must_use]
    pub fn new() -> Clock {
        Clock::default()
    }

    /// The stamp of a write that is made now, in microseconds since the Unix epoch. At the end of the range
    /// stamps stop rising; equal ones are then ordered by replica and counter.
    pub fn tick(&mut self, now_micros: u64) -> Hlc {
        let now = Hlc::at(now_micros.min(Hlc::MAX.micros));
        let stamp = self.last.map_or(now, |last| now.max(last.next()));
        self.last = Some(stamp);
        stamp
    }

    /// Takes in the stamp of a write that came by the log. Only there: the owner has refused what is too far
    /// ahead, and a stamp that it has not seen may be years away. Under [`Strategy::Server`] stamps order
    /// nothing, are not checked, and must not be observed.
    ///
    /// [`Strategy::Server`]: crate::Strategy::Server
    pub fn observe(&mut self, stamp: Hlc) {
        self.last = self.last.max(Some(stamp.min(Hlc::MAX)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_rise_whatever_the_device_says() {
        let mut clock = Clock::new();
        let mut last = None;
        for now in [0, 0, 5, 3, u64::MAX, 7, 1] {
            let stamp = clock.tick(now);
            assert!(Some(stamp) > last, "{stamp:?} after {last:?}");
            assert!(stamp.micros <= Hlc::MAX.micros);
            last = Some(stamp);
        }
    }

    #[test]
    fn an_overflow_of_the_logical_part_bumps_the_microseconds() {
        let mut clock = Clock::new();
        clock.observe(Hlc { micros: 10, logical: u16::MAX });
        assert_eq!(clock.tick(3), Hlc::at(11));
        clock.observe(Hlc::MAX);
        assert_eq!(clock.tick(3), Hlc::MAX);
        assert_eq!(clock.tick(3), Hlc::MAX, "the end of the range");
    }
}
