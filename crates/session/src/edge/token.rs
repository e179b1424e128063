use std::time::Duration;

use manyhands_proto::Code;

use super::Effect;
use crate::{Grant, Refusal};

/// The token that a session lives on: whose it is, how long it is good for, and the fresh one that is being
/// verified.
#[derive(Debug)]
pub(super) struct Token {
    grant: Grant,
    expires_at: Duration,
    made_at: Duration,
    made_at_wall_ms: u64,
    verifying: bool,
    /// Came while another was being verified; only the newest matters.
    next: Option<String>,
}

impl Token {
    pub(super) fn new(grant: Grant, now: Duration, wall_ms: u64) -> Token {
        let mut token = Token {
            expires_at: now,
            grant,
            made_at: now,
            made_at_wall_ms: wall_ms,
            verifying: false,
            next: None,
        };
        token.expires_at = token.expiry();
        token
    }

    pub(super) fn grant(&self) -> &Grant {
        &self.grant
    }

    pub(super) fn expires_at(&self) -> Duration {
        self.expires_at
    }

    pub(super) fn expires_in_ms(&self, now: Duration) -> u64 {
        u64::try_from(self.expires_at.saturating_sub(now).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn wall_ms(&self, now: Duration) -> u64 {
        let passed = now.saturating_sub(self.made_at).as_millis();
        self.made_at_wall_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// Microseconds since the Unix epoch.
    pub(super) fn wall_micros(&self, now: Duration) -> u64 {
        let passed = now.saturating_sub(self.made_at).as_micros();
        self.made_at_wall_ms.saturating_mul(1000).saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// A fresh token came.
    pub(super) fn offer(&mut self, token: String) -> Option<Effect> {
        if self.verifying {
            self.next = Some(token);
            return None;
        }
        self.verifying = true;
        Some(Effect::VerifyToken(token))
    }

    /// Takes the fresh grant over, if it is the same user's. A token that does not verify ends the session:
    /// its code tells the client what to do, where silence would let it run into the old one's expiry.
    pub(super) fn verified(
        &mut self,
        now: Duration,
        result: Result<Grant, Refusal>,
    ) -> Result<Option<Effect>, Refusal> {
        self.verifying = false;
        let grant = result?;
        if grant.subject != self.grant.subject {
            return Err(Refusal::new(Code::Violation, "the fresh token is another user's"));
        }
        if grant.is_expired(self.wall_ms(now)) {
            return Err(Code::TokenExpired.into());
        }
        self.grant = grant;
        self.expires_at = self.expiry();
        Ok(self.next.take().and_then(|token| self.offer(token)))
    }

    fn expiry(&self) -> Duration {
        let left = self.grant.expires_at_ms.saturating_sub(self.made_at_wall_ms);
        self.made_at.saturating_add(Duration::from_millis(left))
    }
}
