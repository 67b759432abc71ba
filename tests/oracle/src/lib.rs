//! The host CPU as the oracle.
