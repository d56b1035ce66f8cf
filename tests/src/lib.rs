//! Harness and suites of utcp.
