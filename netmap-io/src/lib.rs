//! Packet I/O for utcp: netmap rings, AF_XDP, TAP and an in-memory pipe behind one Port trait.
