//! Headers: each module parses a view of bytes into a small `Copy` value plus the range of its payload, and emits
//! the value into bytes. Malformed input is a named [`WireError`], never a guess.

pub mod addr;
pub mod checksum;

pub use addr::IpAddr;

/// Why bytes are not the header they claim to be. Each is a counter of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer bytes than the header, or than its length field says.
    Truncated,
    /// The version, hardware type or another constant is not what it has to be.
    Unsupported,
    /// A length field contradicts itself.
    BadLength,
    /// The checksum does not match.
    BadChecksum,
    /// An option runs over the end of the header or has an impossible length.
    BadOption,
    /// A field has a value that the standard forbids.
    BadField,
    /// The output buffer is too small for the header.
    NoRoom,
}
