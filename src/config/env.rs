//! The variables of the container that this program sets: an operator's value for one of them would be overruled.

use crate::paths::STATE_ALIAS;

/// Set for every container, over what the image and the operator say.
pub const PINNED: [(&str, &str); 11] = [
    ("HOME", "/home/node"),
    ("OPENCLAW_HOME", "/home/node"),
    ("OPENCLAW_STATE_DIR", STATE_ALIAS),
    ("OPENCLAW_CONFIG_PATH", "/home/node/.openclaw/openclaw.json"),
    ("XDG_CACHE_HOME", "/home/node/.openclaw/cache"),
    ("GOG_HOME", "/home/node/.openclaw/gogcli"),
    ("GOG_KEYRING_BACKEND", "file"),
    ("NODE_ENV", "production"),
    ("NO_COLOR", "1"),
    ("OPENCLAW_NO_AUTO_UPDATE", "1"),
    ("OPENCLAW_SUPERVISOR_MODE", "external"),
];

/// Set in another way: by `.env`, by the gateway's command line, by the image.
const RESERVED: [&str; 8] = [
    "GOG_KEYRING_PASSWORD",
    "OPENCLAW_CONFIG_DIR",
    "OPENCLAW_GATEWAY_BIND",
    "OPENCLAW_GATEWAY_PASSWORD",
    "OPENCLAW_GATEWAY_PORT",
    "OPENCLAW_GATEWAY_TOKEN",
    "OPENCLAW_INIT_KEPT_TOKEN",
    "PATH",
];

/// Whether the variable is not the operator's to set.
pub(super) fn is_own(name: &str) -> bool {
    RESERVED.contains(&name) || PINNED.iter().any(|(pinned, _)| *pinned == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::{Code, code_of, one_line};

    #[test]
    fn a_variable_of_this_program_is_refused() {
        for name in PINNED.iter().map(|(name, _)| *name).chain(RESERVED) {
            for (prefix, value) in [("openclaw-env-", "x"), ("openclaw-secret-", "projects/p/secrets/s")] {
                let attributes = [(format!("{prefix}{name}"), value.to_owned())].into();
                let Err(error) = Config::from_attributes(&attributes) else { panic!("{name} was accepted") };
                assert_eq!(code_of(&error), Code::ConfigInvalid, "{name}");
                let sentence = one_line(&error);
                assert!(sentence.contains(&format!("openclaw-init sets {name} itself")), "{sentence}");
            }
        }
    }
}
