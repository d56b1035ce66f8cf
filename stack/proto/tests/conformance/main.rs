//! Conformance by standard: one module per RFC, tests named after the requirement. `README.md` beside this file maps
//! requirements to tests.

mod aged;
mod hostile;
mod lab;
mod rfc1122;
mod rfc2018;
mod rfc3168;
mod rfc4821;
mod rfc4987;
mod rfc5681;
mod rfc5961;
mod rfc6191;
mod rfc6298;
mod rfc7323;
mod rfc7413;
mod rfc8985;
mod rfc9293;
mod rfc9293_states;
#[path = "../shelf.rs"]
mod shelf;
mod wrap;
