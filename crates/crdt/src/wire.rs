//! Numbers and slices in bytes. Varints are LEB128, little end first, and only their shortest form
//! is accepted.

use crate::error::{Flaw, Malformed};

/// Reads from a slice; every failure names its offset.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Starts in the middle, so that offsets count from the start of the whole.
    pub(crate) fn starting_at(bytes: &'a [u8], at: usize) -> Reader<'a> {
        Reader { bytes, at }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn fail<T>(&self, flaw: Flaw) -> Result<T, Malformed> {
        Err(Malformed { offset: self.at, flaw })
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        match self.bytes.get(self.at) {
            Some(&byte) => {
                self.at += 1;
                Ok(byte)
            }
            None => self.fail(Flaw::Truncated),
        }
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        self.varint_rest(first)
    }

    fn varint_rest(&mut self, first: u8) -> Result<u64, Malformed> {
        let start = self.at - 1;
        let mut value = u64::from(first & 0x7f);
        let mut shift = 7;
        loop {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            // The tenth byte holds one bit. A last byte of 0 means that a shorter form exists.
            if (shift == 63 && part > 1) || byte == 0 || shift > 63 {
                return Err(Malformed { offset: start, flaw: Flaw::Varint });
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    /// A varint that is a signed number: 0, -1, 1, -2, …
    pub(crate) fn zigzag(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A varint that must be at most `max`.
    pub(crate) fn bounded(&mut self, max: u64) -> Result<u64, Malformed> {
        let start = self.at;
        let value = self.varint()?;
        if value > max {
            return Err(Malformed { offset: start, flaw: Flaw::Bounds });
        }
        Ok(value)
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        if n > self.rest() {
            return self.fail(Flaw::Truncated);
        }
        let slice = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(slice)
    }

    /// A reader of the next `n` bytes alone, with the same offsets.
    pub(crate) fn part(&mut self, n: usize) -> Result<Reader<'a>, Malformed> {
        let at = self.at;
        self.take(n)?;
        Ok(Reader { bytes: &self.bytes[..self.at], at })
    }

    /// The bytes from the start of the whole on up to this reader's end, and where it is in them.
    pub(crate) fn into_parts(self) -> (&'a [u8], usize) {
        (self.bytes, self.at)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("take returned 8 bytes")))
    }

    pub(crate) fn str(&mut self, n: usize) -> Result<&'a str, Malformed> {
        let start = self.at;
        let bytes = self.take(n)?;
        std::str::from_utf8(bytes)
            .map_err(|error| Malformed { offset: start + error.valid_up_to(), flaw: Flaw::Utf8 })
    }

    /// One scalar value, whose length its first byte tells.
    #[inline]
    pub(crate) fn scalar(&mut self) -> Result<&'a str, Malformed> {
        let n = match self.peek() {
            None => return self.fail(Flaw::Truncated),
            Some(0..=0x7f) => 1,
            Some(0xc2..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf4) => 4,
            Some(_) => return self.fail(Flaw::Utf8),
        };
        self.str(n)
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.rest() == 0 { Ok(()) } else { self.fail(Flaw::TrailingBytes) }
    }
}

#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back() {
        for value in [0, 1, 127, 128, 300, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.rest(), 0);
        }
        for value in [0, -1, 1, -64, 64, i64::MIN, i64::MAX] {
            let mut bytes = Vec::new();
            put_zigzag(&mut bytes, value);
            assert_eq!(Reader::new(&bytes).zigzag(), Ok(value));
        }
    }

    // enforces: I-12
    #[test]
    fn long_forms_and_overflows_are_refused() {
        let overflow = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        let eleven = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x81, 0x01];
        for bytes in [&[0x80, 0x00][..], &[0xff, 0x80, 0x00], &overflow, &eleven] {
            assert_eq!(Reader::new(bytes).varint(), Err(Malformed { offset: 0, flaw: Flaw::Varint }));
        }
        assert_eq!(Reader::new(&[0x80]).varint(), Err(Malformed { offset: 1, flaw: Flaw::Truncated }));
    }
}
