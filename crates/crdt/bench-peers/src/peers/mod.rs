//! The measured engines, ours first.

pub mod am;
pub mod cola_peer;
pub mod dt;
pub mod loro_peer;
pub mod ours;
pub mod yrs_peer;

pub const ALL: &[&str] = &["manyhands", "diamond-types", "cola", "yrs", "loro", "automerge"];

/// Runs `$f::<P>(args)` for the engine with that name.
#[macro_export]
macro_rules! dispatch {
    ($name:expr, $f:ident $(, $a:expr)*) => {
        match $name {
            "manyhands" => $f::<$crate::peers::ours::Ours>($($a),*),
            "diamond-types" => $f::<$crate::peers::dt::Dt>($($a),*),
            "cola" => $f::<$crate::peers::cola_peer::Cola>($($a),*),
            "yrs" => $f::<$crate::peers::yrs_peer::Yrs>($($a),*),
            "loro" => $f::<$crate::peers::loro_peer::Loro>($($a),*),
            "automerge" => $f::<$crate::peers::am::Am>($($a),*),
            other => panic!("no engine {other}"),
        }
    };
}
