//! Counting global allocator: exact live heap bytes and number of allocations between two points.
//! Switched off (one predictable branch) while times are taken.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);
static CALLS: AtomicI64 = AtomicI64::new(0);

#[inline]
fn add(n: i64) {
    LIVE.fetch_add(n, Relaxed);
    if n > 0 {
        CALLS.fetch_add(1, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        if ON.load(Relaxed) {
            add(l.size() as i64);
        }
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        if ON.load(Relaxed) {
            add(-(l.size() as i64));
        }
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.dealloc(p, l) }
    }
    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        if ON.load(Relaxed) {
            add(l.size() as i64);
        }
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc_zeroed(l) }
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        if ON.load(Relaxed) {
            add(n as i64 - l.size() as i64);
        }
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.realloc(p, l, n) }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Heap {
    pub live: i64,
    pub calls: i64,
}

pub fn start() {
    LIVE.store(0, Relaxed);
    CALLS.store(0, Relaxed);
    ON.store(true, Relaxed);
}

pub fn now() -> Heap {
    Heap { live: LIVE.load(Relaxed), calls: CALLS.load(Relaxed) }
}

pub fn stop() -> Heap {
    let h = now();
    ON.store(false, Relaxed);
    h
}
