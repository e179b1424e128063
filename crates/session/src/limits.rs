use manyhands_proto::v1;

/// What one session may use. Announced in `Welcome`, so that a well-made client never meets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one frame. More closes the socket with `TooLarge`.
    pub frame_bytes_max: u32,
    /// Bytes of one change's body.
    pub change_bytes_max: u32,
    /// Changes in one push.
    pub push_changes_max: u32,
    /// Changes on one channel that are neither acknowledged nor rejected. More is `Overloaded`.
    pub in_flight_changes_max: u32,
    /// Their bytes.
    pub in_flight_bytes_max: u32,
    /// Channels on one socket. More is `LimitReached` for that channel.
    pub documents_max: u32,
    /// Encoded bytes of one session's presence in one document.
    pub presence_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            frame_bytes_max: 1024 * 1024,
            change_bytes_max: 64 * 1024,
            push_changes_max: 256,
            in_flight_changes_max: 1024,
            in_flight_bytes_max: 512 * 1024,
            documents_max: 100,
            presence_bytes_max: 4 * 1024,
        }
    }
}

impl Limits {
    /// As `Welcome` says them.
    #[must_use]
    pub fn to_wire(&self) -> v1::Limits {
        v1::Limits {
            frame_bytes_max: self.frame_bytes_max,
            change_bytes_max: self.change_bytes_max,
            push_changes_max: self.push_changes_max,
            in_flight_changes_max: self.in_flight_changes_max,
            in_flight_bytes_max: self.in_flight_bytes_max,
            documents_max: self.documents_max,
            presence_bytes_max: self.presence_bytes_max,
        }
    }

    /// From a `Welcome`; what it leaves out is as by default.
    #[must_use]
    pub fn from_wire(wire: &v1::Limits) -> Limits {
        let default = Limits::default();
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        Limits {
            frame_bytes_max: or(wire.frame_bytes_max, default.frame_bytes_max),
            change_bytes_max: or(wire.change_bytes_max, default.change_bytes_max),
            push_changes_max: or(wire.push_changes_max, default.push_changes_max),
            in_flight_changes_max: or(wire.in_flight_changes_max, default.in_flight_changes_max),
            in_flight_bytes_max: or(wire.in_flight_bytes_max, default.in_flight_bytes_max),
            documents_max: or(wire.documents_max, default.documents_max),
            presence_bytes_max: or(wire.presence_bytes_max, default.presence_bytes_max),
        }
    }
}
