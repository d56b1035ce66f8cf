//! Strings in a fixed buffer: paths and the one line that a user may get to read.

use core::ffi::CStr;

/// A string of at most `N` − 1 bytes, always NUL-terminated. What does not fit is cut off, and
/// remembered.
#[derive(Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
    cut: bool,
}

impl<const N: usize> Text<N> {
    /// An empty one.
    pub fn new() -> Self {
        Self { bytes: [0; N], len: 0, cut: false }
    }

    /// Appends `bytes`.
    pub fn push(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            let room = self.len.wrapping_add(1) < N;
            match self.bytes.get_mut(self.len) {
                Some(to) if room => *to = *byte,
                _ => {
                    self.cut = true;
                    return self;
                }
            }
            self.len = self.len.wrapping_add(1);
        }
        self
    }

    /// Appends a decimal number.
    pub fn push_number(&mut self, number: u64) -> &mut Self {
        let mut divisor = 1u64;
        while number.wrapping_div(divisor) >= 10 {
            divisor = divisor.wrapping_mul(10);
        }
        while divisor > 0 {
            self.push(&[b'0'.wrapping_add((number / divisor % 10) as u8)]);
            divisor /= 10;
        }
        self
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// As a C string, if everything fitted and nothing in it ends it early.
    pub fn as_c_str(&self) -> Option<&CStr> {
        let whole = self.bytes.get(..self.len.wrapping_add(1))?;
        if self.cut { None } else { CStr::from_bytes_with_nul(whole).ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_cuts() {
        let mut text = Text::<16>::new();
        text.push(b"n=").push_number(0).push(b",").push_number(12_345);
        assert_eq!(text.as_c_str(), Some(c"n=0,12345"));
        text.push(b"too long for it");
        assert_eq!((text.as_c_str(), text.bytes().len()), (None, 15));
        assert_eq!(
            Text::<21>::new().push_number(u64::MAX).bytes(),
            b"18446744073709551615".get(..20).unwrap_or_default()
        );
    }
}
