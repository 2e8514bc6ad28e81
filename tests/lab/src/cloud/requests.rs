//! What the pretend cloud was asked for.

use serde::{Deserialize, Serialize};

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweredRequest {
    /// The host that the client named.
    pub host: String,
    /// The HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The HTTP status of the answer.
    pub status: u16,
}
