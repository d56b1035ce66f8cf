//! The utcp engine: shards, flows, listeners, timers and ports around the pure TCP core.
