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
        let newlines = count(text, |byte| byte == b'\n');
        // Each scalar outside the basic plane takes two units, and is the only one with four bytes.
        let utf16 =
            if text.len() == scalars as usize { scalars } else { scalars + count(text, |byte| byte >= 0xf0) };
        Widths { scalars, utf16, newlines }
    }
}

/// Bytes of one kind; in small numbers, of which many fit into a register.
#[inline]
fn count(text: &str, is: impl Fn(u8) -> bool) -> u32 {
    let in_chunk = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(u8::from(is(byte))));
    text.as_bytes().chunks(255).map(|bytes| u32::from(in_chunk(bytes))).sum()
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
