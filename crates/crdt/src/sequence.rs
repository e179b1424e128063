//! What a sequence is made of, for those who read and write it.

use std::ops::{Add, AddAssign, Sub, SubAssign};

use crate::id::Id;

pub(crate) use crate::naive::Sequences;

/// Consecutive elements of one replica that were typed in one go: each has the one before as its left
/// origin, and all have the same right origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run<'a> {
    pub(crate) id: Id,
    pub(crate) len: u32,
    pub(crate) left: Id,
    pub(crate) right: Id,
    pub(crate) deleted: bool,
    /// Empty when deleted.
    pub(crate) text: &'a str,
}

/// What a check needs to know of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) text: u32,
    pub(crate) right: Id,
}

/// How much of a text there is, in the units that people count in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Widths {
    pub(crate) scalars: u32,
    pub(crate) utf16: u32,
    pub(crate) newlines: u32,
}

impl Widths {
    pub(crate) fn of(c: char) -> Widths {
        Widths { scalars: 1, utf16: c.len_utf16() as u32, newlines: u32::from(c == '\n') }
    }
}

impl Add for Widths {
    type Output = Widths;
    #[inline]
    fn add(self, other: Widths) -> Widths {
        Widths {
            scalars: self.scalars + other.scalars,
            utf16: self.utf16 + other.utf16,
            newlines: self.newlines + other.newlines,
        }
    }
}

impl Sub for Widths {
    type Output = Widths;
    #[inline]
    fn sub(self, other: Widths) -> Widths {
        Widths {
            scalars: self.scalars - other.scalars,
            utf16: self.utf16 - other.utf16,
            newlines: self.newlines - other.newlines,
        }
    }
}

impl AddAssign for Widths {
    #[inline]
    fn add_assign(&mut self, other: Widths) {
        *self = *self + other;
    }
}

impl SubAssign for Widths {
    #[inline]
    fn sub_assign(&mut self, other: Widths) {
        *self = *self - other;
    }
}
