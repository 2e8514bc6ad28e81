//! Names of closed lists in the status file, which another version of this program may have written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One of a closed list, in the file by its name. A name that is not on this version's list is kept as it is: who
/// only displays the status need not understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name<T> {
    /// On the list.
    Known(T),
    /// From another version.
    Unknown(String),
}

impl<T> Name<T> {
    /// What it means to this version.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T> From<T> for Name<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: fmt::Display> fmt::Display for Name<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => value.fmt(out),
            Self::Unknown(name) => out.write_str(name),
        }
    }
}

impl<T: fmt::Display> Serialize for Name<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Name<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(name.parse().map_or(Self::Unknown(name), Self::Known))
    }
}
