use std::time::Duration;

/// A small generator for jitter (splitmix64). Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from zero up to and with `max`.
    pub(crate) fn up_to(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        let drawn = (u128::from(self.next()) * (u128::from(nanos) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(drawn).unwrap_or(u64::MAX))
    }
}

/// Exponential backoff with full jitter: the n-th wait is drawn evenly from zero up to `first * 2^n`, at
/// most `max`. Drawing from zero spreads a crowd that lost its server at one moment as evenly as can be.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, failures: 0 }
    }

    /// How long to wait now.
    pub(crate) fn next(&mut self, random: &mut Random) -> Duration {
        let ceiling = self.first.saturating_mul(1u32 << self.failures.min(30)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        random.up_to(ceiling)
    }

    /// It worked: begin again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_drawn_from_zero_to_a_ceiling_that_doubles() {
        let (first, max) = (Duration::from_millis(250), Duration::from_secs(30));
        let mut longest = [Duration::ZERO; 12];
        let mut shortest = [Duration::MAX; 12];
        for seed in 0..500 {
            let mut random = Random::new(seed);
            let mut backoff = Backoff::new(first, max);
            for n in 0..12 {
                let wait = backoff.next(&mut random);
                longest[n] = longest[n].max(wait);
                shortest[n] = shortest[n].min(wait);
            }
        }
        for n in 0..12 {
            let ceiling = first.saturating_mul(1 << n).min(max);
            assert!(longest[n] <= ceiling && longest[n] > ceiling.mul_f64(0.95), "{n}: {:?}", longest[n]);
            assert!(shortest[n] < ceiling.mul_f64(0.05), "{n}: {:?}", shortest[n]);
        }
    }

    #[test]
    fn success_begins_again_and_a_seed_repeats() {
        let run = |seed| {
            let mut random = Random::new(seed);
            let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
            let waits: Vec<_> = (0..40).map(|_| backoff.next(&mut random)).collect();
            backoff.reset();
            assert!(backoff.next(&mut random) <= Duration::from_millis(250));
            waits
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
