//! For the fuzz targets in `fuzz/`; no other build has it.

use super::messages::{Cause, cause, output, parse_candidate, parse_status};

/// What apt and dpkg print.
pub fn messages(text: &str) {
    drop((parse_status(text), parse_candidate(text)));
    assert!(text.ends_with(output(text)));
    drop(cause(text));
    assert!(matches!(cause(&format!("Could not get lock {text}")), Cause::Locked(_)));
}
