//! How much of a text there is, in the units that people count in.

use std::ops::{Add, AddAssign, Sub, SubAssign};

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

    /// Of a text of which the number of scalars is known.
    #[inline]
    pub(crate) fn of_str(text: &str, scalars: u32) -> Widths {
        let newlines = text.bytes().filter(|&byte| byte == b'\n').count() as u32;
        // Each scalar outside the basic plane takes two units, and is the only one with four bytes.
        let utf16 = if text.len() == scalars as usize {
            scalars
        } else {
            scalars + text.bytes().filter(|&byte| byte >= 0xf0).count() as u32
        };
        Widths { scalars, utf16, newlines }
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
