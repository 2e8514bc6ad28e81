//! `openclaw-binaries` and `openclaw-apt-packages`: what the image gets beside the gateway.

use std::fmt;

use reqwest::Url;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::check::{self, Checked};

/// What the operator wants in the image beside the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// `openclaw-binaries`, as this machine's architecture has them.
    pub binaries: Vec<Binary>,
    /// `openclaw-apt-packages`, each `NAME` or `NAME=VERSION`.
    pub packages: Vec<String>,
}

impl Extras {
    /// Whether there is nothing to add.
    pub fn is_empty(&self) -> bool {
        self.binaries.is_empty() && self.packages.is_empty()
    }
}

/// One program for `/usr/local/bin` of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Its name there.
    pub name: String,
    /// Where it is downloaded from.
    pub url: String,
    /// The SHA-256 of what is downloaded, 64 lower-case hex digits.
    pub sha256: String,
    /// The file in it, when what is downloaded is a tar.gz; else it is the program itself.
    pub member: Option<String>,
}

/// An architecture as Debian and Go name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// `x86_64`.
    Amd64,
    /// `aarch64`.
    Arm64,
}

impl Arch {
    /// This program's own, and so this machine's.
    pub const OURS: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// `amd64` or `arm64`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// A release that upstream's own Homebrew tap (github.com/openclaw/homebrew-tap) pins for Linux.
struct Known {
    name: &'static str,
    version: &'static str,
    repository: &'static str,
    amd64: &'static str,
    arm64: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        name: "gog",
        version: "0.28.0",
        repository: "gogcli",
        amd64: "5076a41ef1fd09573e20559c1911de3ba7abcb08bff61788867a302d3d2d90d8",
        arm64: "c28871511abc8de7588ea069d8090935221cc9c667956226eabcd1fc51d19dc4",
    },
    Known {
        name: "goplaces",
        version: "0.4.11",
        repository: "goplaces",
        amd64: "a0b6a300769e532102a2f652fa29813a26c45608ea40d836fd97ead8cb25e65a",
        arm64: "45fc24ed00d893eef2187ebff63e1593fcb21cb82a093b7aeecd78db2e21a5a7",
    },
    Known {
        name: "wacli",
        version: "0.18.1",
        repository: "wacli",
        amd64: "36e8c48065f224f58428db9802767e8c6d9e10c0e847bbb5d9072fac72c272cd",
        arm64: "e41465ac95baea79586d43ea102adb501abd0aa84f371138a9a1bda625bfc01d",
    },
];

/// Programs that the image itself has in `/usr/local/bin`.
const TAKEN: &[&str] = &["corepack", "docker-entrypoint.sh", "node", "nodejs", "npm", "npx", "openclaw"];

/// Half of what the kernel takes as one argument: the shell of the build step gets the whole command as one.
const PACKAGES_BYTES: usize = 64 * 1024;

impl Known {
    fn binary(&self, arch: Arch) -> Binary {
        let Self { name, version, repository, .. } = *self;
        let file = format!("{repository}_{version}_linux_{}.tar.gz", arch.name());
        let sha256 = match arch {
            Arch::Amd64 => self.amd64,
            Arch::Arm64 => self.arm64,
        };
        Binary {
            name: name.to_owned(),
            url: format!("https://github.com/openclaw/{repository}/releases/download/v{version}/{file}"),
            sha256: sha256.to_owned(),
            member: Some(name.to_owned()),
        }
    }
}

/// One item of the JSON form.
enum Item {
    Known(String),
    Described(Box<Entry>),
}

impl<'de> Deserialize<'de> for Item {
    /// By hand, so that a wrong entry is told by its own error, and a key that is there twice is one.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a name or an object")
            }

            fn visit_str<E>(self, word: &str) -> Result<Item, E> {
                Ok(Item::Known(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
                Box::deserialize(MapAccessDeserializer::new(map)).map(Item::Described)
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

/// One entry of the JSON form: a file for any architecture, or one for each.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    url: Option<String>,
    sha256: Option<String>,
    member: Option<String>,
    amd64: Option<File>,
    arm64: Option<File>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    url: String,
    sha256: String,
    member: Option<String>,
}

/// Known names with version, separated by spaces or commas, or a JSON array of such names and of entries.
pub(super) fn binaries(value: &str, arch: Arch) -> Checked<Vec<Binary>> {
    let binaries = if value.starts_with(['[', '{']) {
        let items: Vec<Item> = if value.starts_with('[') { parse(value) } else { parse(value).map(|item| vec![item]) }?;
        items.into_iter().map(|item| item.binary(arch)).collect::<Checked<Vec<_>>>()?
    } else {
        words(value).map(|word| known(word, arch)).collect::<Checked<Vec<_>>>()?
    };
    for (index, binary) in binaries.iter().enumerate() {
        if binaries[..index].iter().any(|other| other.name == binary.name) {
            return Err(format!("{} is there twice", binary.name));
        }
    }
    Ok(binaries)
}

/// Debian package names, each with an exact version if wanted, separated by spaces or commas.
pub(super) fn packages(value: &str) -> Checked<Vec<String>> {
    let mut packages: Vec<_> = words(value).map(package).collect::<Checked<_>>()?;
    packages.sort();
    packages.dedup();
    if packages.join(" ").len() > PACKAGES_BYTES {
        return Err(format!("must have at most {PACKAGES_BYTES} characters, which is what one command can install"));
    }
    Ok(packages)
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

fn package(word: &str) -> Checked<String> {
    let (name, version) = word.split_once('=').unwrap_or((word, "0"));
    let good = |text: &str, more: &[u8], upper: bool| {
        text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase()
                    || byte.is_ascii_digit()
                    || (upper && byte.is_ascii_uppercase())
                    || more.contains(&byte)
            })
    };
    if good(name, b"+-.", false) && good(version, b"+-.:~", true) {
        Ok(word.to_owned())
    } else {
        Err(format!(
            "{} must be the name of a Debian package, such as ffmpeg or ffmpeg=7:5.1.6-0+deb12u1",
            check::display(word)
        ))
    }
}

fn known(word: &str, arch: Arch) -> Checked<Binary> {
    let spelled = |known: &Known| format!("{}@{}", known.name, known.version);
    KNOWN.iter().find(|known| spelled(known) == word).map(|known| known.binary(arch)).ok_or_else(|| {
        let all: Vec<_> = KNOWN.iter().map(spelled).collect();
        format!(
            "names a program of which this version of openclaw-init has no SHA-256; it has those of {}; give any other as JSON: \
             [{{\"name\":\"…\",\"url\":\"https://…\",\"sha256\":\"…\"}}]",
            all.join(", ")
        )
    })
}

/// Reads the JSON form. What the parser says is repeated as far as it does not repeat a value.
fn parse<T: DeserializeOwned>(value: &str) -> Checked<T> {
    serde_json::from_str(value).map_err(|error| match error.to_string() {
        text if !error.is_data() => format!("is not JSON: {text}"),
        text if text.contains(['"', '@', ':', '/', '?', '#']) => {
            format!("has a wrong entry at line {} column {}", error.line(), error.column())
        }
        text => format!("has a wrong entry: {text}"),
    })
}

impl Item {
    fn binary(self, arch: Arch) -> Checked<Binary> {
        let Entry { name, url, sha256, member, amd64, arm64 } = match self {
            Self::Known(word) => return known(&word, arch),
            Self::Described(entry) => *entry,
        };
        check_name(&name)?;
        let own = match arch {
            Arch::Amd64 => amd64,
            Arch::Arm64 => arm64,
        };
        let file = match (own, url, sha256) {
            (Some(file), None, None) => File { member: file.member.or(member), ..file },
            (None, Some(url), Some(sha256)) => File { url, sha256, member },
            (Some(_), ..) => return Err(format!("{name} has a url of its own beside the one for {}", arch.name())),
            (None, ..) => return Err(format!("{name} needs url and sha256, or an object {} with both", arch.name())),
        };
        let sha256 = digest(&file.sha256, 64).ok_or_else(|| format!("the sha256 of {name} must be 64 hex digits"))?;
        let url = check::download_url(&file.url).map_err(|allowed| format!("the url of {name} {allowed}"))?;
        let packed = [".tar.gz", ".tgz"].iter().any(|end| url.path().ends_with(end));
        let member = file.member.or_else(|| packed.then(|| name.clone()));
        if member.as_deref().is_some_and(|member| !is_member(member)) {
            return Err(format!("the member of {name} must be the path of a file in the archive, such as bin/{name}"));
        }
        Ok(Binary { name, url: Url::into(url), sha256, member })
    }
}

/// Whether an archive can have a file of this path.
fn is_member(path: &str) -> bool {
    let path = path.strip_prefix("./").unwrap_or(path);
    !path.contains(char::is_control) && path.split('/').all(|part| !["", ".", ".."].contains(&part))
}

fn check_name(name: &str) -> Checked<()> {
    let good = (1..=64).contains(&name.len())
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte));
    if !good {
        Err(format!("the name {} must be that of a program: letters, digits and ._+-", check::display(name)))
    } else if TAKEN.contains(&name) {
        Err(format!("the image has a {name} of its own"))
    } else {
        Ok(())
    }
}

/// `value` in lower case if it is `digits` hex digits.
pub(super) fn digest(value: &str, digits: usize) -> Option<String> {
    let good = value.len() == digits && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| value.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_known_by_name_or_described() {
        let sha = "ab".repeat(32);
        let upper = sha.to_uppercase();
        let entry = |name: &str, url: &str, member: Option<&str>| Binary {
            name: name.to_owned(),
            url: url.to_owned(),
            sha256: sha.clone(),
            member: member.map(str::to_owned),
        };
        let gog = |arch| KNOWN[0].binary(arch);
        let both = format!(
            r#"[{{"name":"a","amd64":{{"url":"https://h/a64","sha256":"{sha}"}},"arm64":{{"url":"https://h/b.tgz","sha256":"{sha}","member":"x/a"}}}}]"#
        );
        let cases = [
            ("gog@0.28.0".to_owned(), Arch::Amd64, vec![gog(Arch::Amd64)]),
            ("gog@0.28.0, wacli@0.18.1".to_owned(), Arch::Arm64, vec![gog(Arch::Arm64), KNOWN[2].binary(Arch::Arm64)]),
            (
                format!(r#"{{"name":"a","url":"http://h/a?b=c","sha256":"{upper}"}}"#),
                Arch::Amd64,
                vec![entry("a", "http://h/a?b=c", None)],
            ),
            (
                format!(r#"["gog@0.28.0",{{"name":"a","url":"https://h/a.tar.gz","sha256":"{sha}"}}]"#),
                Arch::Amd64,
                vec![gog(Arch::Amd64), entry("a", "https://h/a.tar.gz", Some("a"))],
            ),
            (both.clone(), Arch::Amd64, vec![entry("a", "https://h/a64", None)]),
            (both, Arch::Arm64, vec![entry("a", "https://h/b.tgz", Some("x/a"))]),
        ];
        for (value, arch, expected) in cases {
            assert_eq!(binaries(&value, arch), Ok(expected), "{value}");
        }
        assert!(gog(Arch::Arm64).url.ends_with("/v0.28.0/gogcli_0.28.0_linux_arm64.tar.gz"));
    }

    #[test]
    fn a_binary_that_cannot_be_pinned_is_refused() {
        let sha = "ab".repeat(32);
        let item = |rest: &str| format!(r#"[{{"name":"a",{rest}}}]"#);
        let named = |name: &str| format!(r#"[{{"name":"{name}","url":"https://h/a","sha256":"{}"}}]"#, "ab".repeat(32));
        let cases = [
            ("gog".to_owned(), "gog@0.28.0"),
            ("gog@9.9.9".to_owned(), "no SHA-256"),
            ("[".to_owned(), "not JSON"),
            ("[1]".to_owned(), "wrong entry"),
            (item(r#""url":"https://h/a""#), "needs url and sha256"),
            (item(r#""url":"https://h/a","sha256":"abc""#), "64 hex digits"),
            (item(&format!(r#""url":"ftp://h/a","sha256":"{sha}""#)), "http:// or https://"),
            (item(&format!(r#""url":"https://u:p@h/a","sha256":"{sha}""#)), "http:// or https://"),
            (item(&format!(r#""uri":"https://h/a","sha256":"{sha}""#)), "unknown field"),
            (item(&format!(r#""arm64":{{"url":"https://h/a","sha256":"{sha}"}}"#)), "an object amd64"),
            (named("../a"), "that of a program"),
            (named("a\\u0000"), "that of a program"),
            (item(&format!(r#""name":"b","url":"https://h/a","sha256":"{sha}""#)), "duplicate field `name`"),
            (item(&format!(r#""url":"http:///a","sha256":"{sha}""#)), "http:// or https://"),
            (item(&format!(r#""url":"https://h/a","sha256":"{sha}","member":"""#)), "path of a file"),
            (item(&format!(r#""url":"https://h/a","sha256":"{sha}","member":"/a""#)), "path of a file"),
            (item(&format!(r#""url":"https://h/a","sha256":"{sha}","member":"x/../a""#)), "path of a file"),
            (item(&format!(r#""url":"https://h/a","sha256":"{sha}","member":"a\u0000""#)), "path of a file"),
            (named("node"), "of its own"),
            ("gog@0.28.0 gog@0.28.0".to_owned(), "twice"),
        ];
        for (value, word) in cases {
            let Err(complaint) = binaries(&value, Arch::Amd64) else { panic!("{value} was accepted") };
            assert!(complaint.contains(word), "{value}: {complaint}");
        }
    }

    #[test]
    fn packages_are_names_of_debian() {
        let sorted = ["ffmpeg=7:5.1.6-0+deb12u1", "g++", "jq"].map(str::to_owned).to_vec();
        assert_eq!(packages("jq, g++ ffmpeg=7:5.1.6-0+deb12u1\njq"), Ok(sorted));
        let long = (0..10_000).map(|number| format!("package-{number}")).collect::<Vec<_>>().join(" ");
        for wrong in [&long, "-y", "jq;id", "jq=$(id)", "JQ", "jq=", "jq/sid", "jq\\"] {
            assert!(packages(wrong).is_err(), "{wrong} was accepted");
        }
    }
}
