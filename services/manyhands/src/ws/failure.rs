//! What went wrong, for people and for scripts.

use manyhands_client::{Code, ConnectError, Refused, Stop, json::Refusal};

/// Why a command ended without what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{message}\nfix: {fix}")]
pub(crate) struct Failure {
    /// 2 wrong usage, 3 not allowed, 4 no such key, 5 the key has another value, 6 no server or no answer,
    /// 7 refused by the server.
    pub(crate) exit: u8,
    message: String,
    fix: String,
}

impl Failure {
    fn new(exit: u8, message: &str, fix: &str) -> Failure {
        Failure { exit, message: message.to_owned(), fix: fix.to_owned() }
    }

    pub(super) fn usage(message: &str, fix: &str) -> Failure {
        Failure::new(2, message, fix)
    }

    pub(super) fn not_found(message: &str, fix: &str) -> Failure {
        Failure::new(4, message, fix)
    }

    pub(super) fn unavailable(message: &str, fix: &str) -> Failure {
        Failure::new(6, message, fix)
    }

    /// The server answered and said no; `current` is what stands in the way.
    pub(super) fn of(code: Option<Code>, message: &str, fix: &str, current: Option<&str>) -> Failure {
        let exit = match code {
            Some(Code::Unauthenticated | Code::TokenExpired | Code::Forbidden) => 3,
            Some(Code::Conflict) => 5,
            Some(Code::Unavailable | Code::Overloaded | Code::Timeout | Code::ShuttingDown) => 6,
            _ => 7,
        };
        let message = match current {
            Some(current) => format!("{message}: {current}"),
            None => message.to_owned(),
        };
        let slug = code.map_or("unknown", Code::slug);
        Failure::new(exit, &format!("{message} ({slug})"), fix)
    }
}

impl From<&Refused> for Failure {
    fn from(refused: &Refused) -> Failure {
        Failure::of(refused.code, &refused.message, &refused.fix, refused.current.as_deref())
    }
}

impl From<&Stop> for Failure {
    fn from(stop: &Stop) -> Failure {
        Failure::of(stop.code, &stop.message, &stop.fix, None)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let code = manyhands_proto::CODES.iter().copied().find(|code| code.slug() == refusal.reason);
        Failure::of(code, &refusal.message, &refusal.fix, refusal.current.as_deref())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        match &error {
            ConnectError::Refused { code, message, fix, .. } => Failure::of(*code, message, fix, None),
            _ => Failure::unavailable(&error.to_string(), "Check --url and that the server runs."),
        }
    }
}
