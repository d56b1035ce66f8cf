//! TCP/IP as a pure function: no allocation, no clock, no I/O, no unsafe code.
