//! Load generators and measurements of utcp.
