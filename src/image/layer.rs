//! The operator's extras as one thin layer over an image of any source.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use bollard::models::ImageInspect;

use super::recipe::Recipe;
use super::{context, programs};
use crate::config::{Arch, Extras};
use crate::error::RUN_AGAIN;
use crate::host::Host;
use crate::reference::ImageReference;
use crate::version::GatewayVersion;

/// Finds each program as the gateway's user, and runs it: a shell ends with 126 or 127 for a file that cannot be
/// executed, for example for want of a library.
const CHECK: &str = r#"path=$(command -v "$name") && [ "$path" = "/usr/local/bin/$name" ] \
      || { echo "$name is not on the path of the image"; exit 1; }; \
    output=$(timeout 20 "$name" --version < /dev/null 2>&1); code=$?; \
    echo "$path --version ended with $code: $(printf %s "$output" | head -n 1)"; \
    case $code in 126 | 127) exit 1;; esac"#;

/// The layer over the image that `base` determines, without needing that image.
pub(super) fn recipe(version: &GatewayVersion, base: &str, extras: &Extras) -> Recipe {
    let mut parts = vec![base.to_owned(), Arch::OURS.name().to_owned(), dockerfile("", "", extras)];
    for binary in &extras.binaries {
        // Not the URL: the digest identifies the file.
        parts.extend([binary.sha256.clone(), binary.member.clone().unwrap_or_default()]);
    }
    let parts: Vec<_> = parts.iter().map(String::as_str).collect();
    let remedy = format!(
        "Check that containers can reach Debian's package archive and that the programs in the attribute \
         openclaw-binaries run in the image, then run `{RUN_AGAIN}`."
    );
    Recipe::new(version, Vec::new(), &parts, remedy)
}

/// Downloads the programs and packs the build context below `directory`.
pub(super) async fn pack(
    host: &Host,
    extras: &Extras,
    base: &ImageReference,
    inspect: &ImageInspect,
    directory: &Path,
) -> Result<()> {
    let programs = programs::fetch(host, &extras.binaries, directory).await?;
    let user = inspect.config.as_ref().and_then(|config| config.user.as_deref()).unwrap_or_default();
    context::pack(directory, dockerfile(&base.to_string(), user, extras), programs).await
}

fn dockerfile(base: &str, user: &str, extras: &Extras) -> String {
    let mut text = format!("FROM {base}\nUSER root\n");
    // Writing to a String does not fail.
    if !extras.packages.is_empty() {
        let _ = writeln!(
            text,
            "RUN apt-get update \\\n \
             && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {} \\\n \
             && rm -rf /var/lib/apt/lists/*",
            extras.packages.join(" ")
        );
    }
    let names: Vec<_> = extras.binaries.iter().map(|binary| binary.name.as_str()).collect();
    if !names.is_empty() {
        text.push_str("COPY bin/ /usr/local/bin/\n");
    }
    let _ = writeln!(text, "USER {}", if user.is_empty() { "root" } else { user });
    if !names.is_empty() {
        let _ = writeln!(text, "RUN for name in {}; do {CHECK}; done", names.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Binary;

    fn binary(name: &str, sha256: &str, url: &str) -> Binary {
        Binary { name: name.to_owned(), url: url.to_owned(), sha256: sha256.to_owned(), member: None }
    }

    fn extras(binaries: &[&Binary], packages: &[&str]) -> Extras {
        Extras {
            binaries: binaries.iter().copied().cloned().collect(),
            packages: packages.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn what_changes_the_layer_changes_its_name() {
        let gog = binary("gog", "00", "https://a/gog");
        let of = |base: &str, extras: &Extras| recipe(&"1".into(), base, extras).fingerprint;
        let first = of("base", &extras(&[&gog], &["jq"]));
        assert_eq!(first, of("base", &extras(&[&binary("gog", "00", "https://mirror/gog")], &["jq"])));
        let member = Binary { member: Some("gog".to_owned()), ..gog.clone() };
        let others = [
            of("other", &extras(&[&gog], &["jq"])),
            of("base", &extras(&[&gog], &[])),
            of("base", &extras(&[&gog], &["jq=1"])),
            of("base", &extras(&[], &["jq"])),
            of("base", &extras(&[&binary("gog", "01", "https://a/gog")], &["jq"])),
            of("base", &extras(&[&binary("gag", "00", "https://a/gog")], &["jq"])),
            of("base", &extras(&[&member], &["jq"])),
        ];
        for other in others {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn root_adds_and_the_images_user_runs() {
        let text = dockerfile("x/y:1", "node", &extras(&[&binary("gog", "0", "u"), &binary("b", "0", "u")], &["jq"]));
        let steps: Vec<_> = text.lines().filter(|line| line.starts_with(|first: char| first.is_uppercase())).collect();
        assert_eq!(steps[..3], ["FROM x/y:1", "USER root", "RUN apt-get update \\"]);
        assert_eq!(steps[3..5], ["COPY bin/ /usr/local/bin/", "USER node"]);
        assert!(steps[5].starts_with("RUN for name in gog b; do path="), "{text}");
        let packages = dockerfile("x/y:1", "", &extras(&[], &["jq", "ffmpeg"]));
        assert!(
            packages.contains("--no-install-recommends jq ffmpeg ") && packages.ends_with("USER root\n"),
            "{packages}"
        );
    }
}
