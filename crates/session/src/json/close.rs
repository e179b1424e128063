use manyhands_proto::Code;

/// The close code that ends a JSON session for `code`.
///
/// Not the table's: a client of this dialect may know no more than the standard's codes, and EtherPly's stops
/// for ever on 4000 to 4099. So those are for a token that is no good, and for nothing else.
#[must_use]
pub fn close_code(code: Code) -> u16 {
    match code {
        Code::Unauthenticated => 4001,
        Code::TokenExpired => 4002,
        Code::Idle => 1001,
        Code::TooLarge => 1009,
        Code::ShuttingDown => 1012,
        Code::Unavailable | Code::Overloaded | Code::SlowConsumer | Code::Timeout | Code::NotOwner => 1013,
        Code::HistoryReset => 1013,
        other => other.close().filter(|close| *close >= 4500).unwrap_or(1011),
    }
}

/// The `code` of an `error` frame: an HTTP status, of which this dialect has seven.
#[must_use]
pub fn status(code: Code) -> u16 {
    match code.http_status() {
        status @ (400 | 401 | 403 | 409 | 413 | 429) => status,
        404 | 426 => 400,
        410 => 409,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use manyhands_proto::{CODES, Retry};

    #[test]
    fn codes_on_which_etherply_gives_up_are_for_tokens_only() {
        for &code in CODES {
            let token = matches!(code, Code::Unauthenticated | Code::TokenExpired);
            assert_eq!((4000..4100).contains(&close_code(code)), token, "{code}");
        }
    }

    #[test]
    fn what_may_be_tried_again_closes_so_that_it_is_tried_again() {
        for &code in CODES.iter().filter(|code| code.close().is_some()) {
            let token = matches!(code, Code::Unauthenticated | Code::TokenExpired);
            let again = code.retry() == Retry::Later || code == Code::Internal || token;
            assert_eq!(Retry::of_close(close_code(code)) == Retry::Later, again, "{code}");
        }
    }

    #[test]
    fn an_error_has_one_of_seven_codes() {
        for &code in CODES {
            assert!([400, 401, 403, 409, 413, 429, 500].contains(&status(code)), "{code}");
        }
        assert_eq!(status(Code::Unavailable), 500);
        assert_eq!(status(Code::HistoryReset), 409);
    }
}
