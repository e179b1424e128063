//! Drives a running system from outside and tells what it saw: [`replay`] types a recorded session,
//! [`probe`] measures one keystroke, [`crowd`] is many people at once. [`cluster`] runs the whole system on
//! this machine, for people and for tests. [`drill`] makes faults meanwhile, and [`checker`] says whether
//! a recorded run kept what is promised.

pub mod access;
pub mod checker;
pub mod cluster;
pub mod crowd;
pub mod drill;
pub mod measure;
pub mod probe;
pub mod proxy;
pub mod replay;
pub mod trace;
