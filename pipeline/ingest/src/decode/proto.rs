//! The wire format of protocol buffers, walked by hand: slices of the body, no copies, no recursion.

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// The value of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'b> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'b [u8]),
    Fixed32,
}

impl<'b> Value<'b> {
    /// The bytes of a string or message field.
    pub(super) fn bytes(self) -> Result<&'b [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed("a field has the wrong wire type")),
        }
    }

    pub(super) fn varint(self) -> Result<u64, Malformed> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(Malformed("a field has the wrong wire type")),
        }
    }

    pub(super) fn double(self) -> Result<f64, Malformed> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(Malformed("a field has the wrong wire type")),
        }
    }
}

/// Walks the fields of one message.
#[derive(Debug, Clone)]
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Where the next field starts.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Whether the next byte is `tag`; steps over it then.
    pub(super) fn skip_tag(&mut self, tag: u8) -> bool {
        let is = self.bytes.get(self.at) == Some(&tag);
        self.at += usize::from(is);
        is
    }

    /// The next field, `None` at the end.
    pub(super) fn field(&mut self) -> Result<Option<(u64, Value<'b>)>, Malformed> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => Value::Bytes(self.bytes()?),
            5 => {
                self.array::<4>()?;
                Value::Fixed32
            }
            _ => return Err(Malformed("a field has an unknown wire type")),
        };
        if tag >> 3 == 0 {
            return Err(Malformed("a field has number 0"));
        }
        Ok(Some((tag >> 3, value)))
    }

    /// A length and as many bytes.
    pub(super) fn bytes(&mut self) -> Result<&'b [u8], Malformed> {
        let len = usize::try_from(self.varint()?).map_err(|_| Malformed("a length is too large"))?;
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Malformed("a field reaches past the end of its message"))?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// A variable-length integer.
    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let (value, len) = varint(&self.bytes[self.at..])?;
        self.at += len;
        Ok(value)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.bytes.get(self.at..self.at + N).ok_or(Malformed("a number is cut off"))?;
        self.at += N;
        Ok(bytes.try_into().expect("the slice has N bytes"))
    }
}

/// The integer at the start of `bytes`, and its length.
#[inline]
pub(super) fn varint(bytes: &[u8]) -> Result<(u64, usize), Malformed> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * i);
        if byte < 0x80 {
            // The tenth byte has room for one bit.
            let fits = i < 9 || byte < 2;
            return if fits { Ok((value, i + 1)) } else { Err(Malformed("an integer is too long")) };
        }
    }
    Err(Malformed(if bytes.len() < 10 { "an integer is cut off" } else { "an integer is too long" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_one_to_ten_bytes() {
        for (bytes, value) in [
            (&[0][..], 0),
            (&[0x7f], 127),
            (&[0x80, 1], 128),
            (&[0x80, 0], 0),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], u64::MAX),
        ] {
            assert_eq!(varint(bytes), Ok((value, bytes.len())));
        }
        for bad in [&[][..], &[0x80], &[0xff; 9], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]] {
            assert!(varint(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fields_are_walked_and_broken_ones_refused() {
        let mut reader = Reader::new(&[0x08, 5, 0x11, 1, 0, 0, 0, 0, 0, 0, 0, 0x1a, 2, b'h', b'i', 0x25, 0, 0, 0, 0]);
        assert_eq!(reader.field(), Ok(Some((1, Value::Varint(5)))));
        assert_eq!(reader.field(), Ok(Some((2, Value::Fixed64(1)))));
        assert_eq!(reader.field(), Ok(Some((3, Value::Bytes(b"hi")))));
        assert_eq!(reader.field(), Ok(Some((4, Value::Fixed32))));
        assert_eq!(reader.field(), Ok(None));
        for bad in [&[0x0a][..], &[0x0a, 5, 1], &[0x09, 1], &[0x0d, 1], &[0x0b], &[0x0c], &[0x0e], &[0x02, 0], &[0x80]] {
            assert!(Reader::new(bad).field().is_err(), "{bad:?}");
        }
        let huge = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert!(Reader::new(&huge).field().is_err());
    }
}
