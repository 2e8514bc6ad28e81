//! Which `OpenPGP` key a file for apt's `Signed-By` holds: exactly one, known by its fingerprint.
//!
//! apt trusts every primary key in such a file, so a second one beside the expected key would be a way in.
//! Signatures in the file are not verified here: the fingerprint covers the primary key itself, and what
//! that key vouches for (user ids, subkeys) is verified by apt.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest as _, Sha1};

/// The key that signs Docker's apt repositories (docs.docker.com/engine/install/debian).
pub const DOCKER_FINGERPRINT: &str = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88";

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// Packet types (RFC 9580, 5) that belong to a transferable public key.
mod tag {
    pub(super) const SIGNATURE: u8 = 2;
    pub(super) const PUBLIC_KEY: u8 = 6;
    pub(super) const USER_ID: u8 = 13;
    pub(super) const PUBLIC_SUBKEY: u8 = 14;
    pub(super) const USER_ATTRIBUTE: u8 = 17;
}

/// The fingerprint of a version 4 `OpenPGP` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 20]);

impl FromStr for Fingerprint {
    type Err = Error;

    /// Reads 40 hexadecimal digits, in either case, with or without white space between them.
    fn from_str(text: &str) -> Result<Self> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|character| !character.is_whitespace())
            .map(|character| character.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| anyhow!("a fingerprint has hexadecimal digits only"))?;
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        match <[u8; 20]>::try_from(bytes) {
            Ok(bytes) if digits.len() == 40 => Ok(Self(bytes)),
            _ => bail!("a fingerprint has 40 hexadecimal digits, this has {}", digits.len()),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02X}"))
    }
}

/// The fingerprint of the one primary key in `file`.
///
/// An error when the file is not one armored public key block, holds another primary key, any packet that
/// does not belong to a public key, or a key that is not version 4.
pub fn only_key(file: &[u8]) -> Result<Fingerprint> {
    let bytes = dearmor(file)?;
    let mut rest = bytes.as_slice();
    let mut found = None;
    while !rest.is_empty() {
        let (tag, body, after) = packet(rest).with_context(|| format!("at byte {}", bytes.len() - rest.len()))?;
        match (tag, found) {
            (tag::PUBLIC_KEY, None) => found = Some(fingerprint(body)?),
            (tag::PUBLIC_KEY, Some(first)) => {
                bail!("it holds more than one key: {first} and {}", fingerprint(body)?)
            }
            (tag::SIGNATURE | tag::USER_ID | tag::PUBLIC_SUBKEY | tag::USER_ATTRIBUTE, Some(_)) => {}
            _ => bail!("it holds a packet of type {tag}, which does not belong there"),
        }
        rest = after;
    }
    found.context("it holds no key")
}

/// The bytes inside the one armored block of `file`, with nothing but white space around it.
fn dearmor(file: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(file).map_err(|_| anyhow!("it is not an armored key file"))?.trim();
    let block = text
        .strip_prefix(BEGIN)
        .and_then(|text| text.strip_suffix(END))
        .ok_or_else(|| anyhow!("it is not one armored public key block"))?;
    ensure!(!block.contains("-----"), "it holds more than one armored block");
    // Header lines (`Version: …`) end at the first empty line; the checksum line starts with `=`.
    let lines = block.lines().skip(1).map(str::trim).skip_while(|line| !line.is_empty());
    let encoded: String = lines.filter(|line| !line.starts_with('=')).collect();
    BASE64.decode(encoded).context("decoding its armor")
}

/// The first packet of `bytes`: its type, its body, and what follows.
fn packet(bytes: &[u8]) -> Result<(u8, &[u8], &[u8])> {
    let (&first, rest) = bytes.split_first().context("reading a packet from nothing")?;
    ensure!(first & 0x80 != 0, "it is not an OpenPGP packet");
    let (tag, octets, subtract) = if first & 0x40 == 0 {
        let octets = match first & 3 {
            0 => 1,
            1 => 2,
            2 => 4,
            _ => bail!("it has a packet of indeterminate length"),
        };
        ((first >> 2) & 0x0f, octets, 0)
    } else {
        let (octets, subtract) = match rest.first() {
            Some(0..=191) => (1, 0),
            Some(192..=223) => (2, (192 << 8) - 192),
            Some(255) => return split(first & 0x3f, &rest[1..], 4, 0),
            _ => bail!("it has a packet of partial length"),
        };
        (first & 0x3f, octets, subtract)
    };
    split(tag, rest, octets, subtract)
}

/// Cuts a body whose length stands in the first `octets` of `bytes`, big-endian, `subtract` too high.
fn split(tag: u8, bytes: &[u8], octets: usize, subtract: usize) -> Result<(u8, &[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(octets).context("it ends within a packet")?;
    let length = length.iter().fold(0, |length, &octet| length << 8 | usize::from(octet));
    let (body, rest) = rest.split_at_checked(length - subtract).context("it ends within a packet")?;
    Ok((tag, body, rest))
}

/// The fingerprint of a version 4 public key packet (RFC 9580, 5.5.4.2).
fn fingerprint(body: &[u8]) -> Result<Fingerprint> {
    ensure!(body.first() == Some(&4), "it holds a key that is not version 4");
    let length = u16::try_from(body.len()).context("it holds an oversized key")?;
    let hash = Sha1::new().chain_update([0x99]).chain_update(length.to_be_bytes()).chain_update(body).finalize();
    Ok(Fingerprint(hash.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = include_str!("../../tests/fixtures/keys/one-key.asc");
    const TWO: &str = include_str!("../../tests/fixtures/keys/two-keys.asc");
    const SUBKEY: &str = include_str!("../../tests/fixtures/keys/with-subkey.asc");
    const MESSAGE: &str = include_str!("../../tests/fixtures/keys/not-a-key.asc");
    /// As `gpg --list-keys` prints them.
    const ONE_FINGERPRINT: &str = "45E5705DC647C9D6C6FB174F1846DF8A096B2903";
    const SUBKEY_FINGERPRINT: &str = "B2A36D58F8DE8D0A4B507E9939816DBD2DD4E1B0";

    fn armored(bytes: &[u8]) -> Vec<u8> {
        format!("{BEGIN}\n\n{}\n{END}\n", BASE64.encode(bytes)).into_bytes()
    }

    #[test]
    fn one_key_has_the_fingerprint_that_gnupg_prints() {
        let with_header = ONE.replace(BEGIN, &format!("{BEGIN}\r\nVersion: 1")).replace('\n', "\r\n");
        for (file, expected) in [(ONE, ONE_FINGERPRINT), (SUBKEY, SUBKEY_FINGERPRINT), (&with_header, ONE_FINGERPRINT)]
        {
            assert_eq!(only_key(file.as_bytes()).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn new_packet_headers_are_understood() {
        // Each length in every kind of header that can carry it.
        for length in [9_usize, 200, 9000] {
            let mut body = vec![7; length];
            body[0] = 4;
            let short = u8::try_from(length).ok().filter(|length| *length < 192).map(|length| vec![0xc6, length]);
            let two = (192..8384).contains(&length).then(|| {
                let [high, low] = u16::try_from(length - 192).unwrap().to_be_bytes();
                vec![0xc6, high + 192, low]
            });
            let four = [&[0xc6, 0xff][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
            let old = [&[0x9a][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
            for header in [short, two, Some(four), Some(old)].into_iter().flatten() {
                let file = armored(&[header, body.clone()].concat());
                assert_eq!(only_key(&file).unwrap(), fingerprint(&body).unwrap());
            }
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let one = dearmor(ONE.as_bytes()).unwrap();
        let after_key = packet(&one).unwrap().2;
        let cases: [(&str, Vec<u8>, &str); 12] = [
            ("empty", Vec::new(), "not one armored"),
            ("a page", b"<html>Sign in</html>".to_vec(), "not one armored"),
            ("binary", one.clone(), "not an armored"),
            ("two keys in a block", TWO.into(), "more than one key"),
            ("two blocks", format!("{ONE}{ONE}").into(), "more than one armored block"),
            ("a secret key", armored(&[0xc5, 2, 4, 0]), "does not belong there"),
            ("a message", MESSAGE.into(), "not one armored"),
            ("text before it", format!("hello\n{ONE}").into(), "not one armored"),
            ("no key first", armored(after_key), "does not belong there"),
            ("cut short", armored(&one[..one.len() - 5]), "ends within a packet"),
            ("partial length", armored(&[0xc6, 0xe1, 4, 4]), "partial length"),
            ("version 6", armored(&[0xc6, 2, 6, 0]), "not version 4"),
        ];
        for (name, file, expected) in cases {
            let error = format!("{:#}", only_key(&file).unwrap_err());
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_people_write_it() {
        let spaced = "9dc8 5822 9fc7 dd38 854a  e2d8 8d81 803c 0ebf cd88\n";
        assert_eq!(spaced.parse::<Fingerprint>().unwrap().to_string(), DOCKER_FINGERPRINT);
        for wrong in ["", "9DC8", &DOCKER_FINGERPRINT[1..], &format!("{DOCKER_FINGERPRINT}0"), "not hexadecimal"] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }

    /// Keys of every kind, generated now. Needs `gpg` (Debian: `gnupg`), as the lab does.
    #[tokio::test]
    async fn generated_keys_have_the_fingerprints_that_gnupg_prints() {
        let home = tempfile::tempdir().unwrap();
        let host = crate::host::Host::new("/");
        let gpg = |args: &[&str]| {
            let gpg = host.command("gpg").args(["--batch", "--homedir"]).arg(home.path()).args(["--passphrase", ""]);
            gpg.args(args).run()
        };
        for algorithm in
            ["rsa2048", "rsa3072", "dsa2048", "ed25519", "nistp256", "nistp521", "brainpoolP256r1", "secp256k1"]
        {
            gpg(&["--quick-gen-key", &format!("{algorithm} <a@example.org>"), algorithm, "sign", "never"])
                .await
                .unwrap();
            let file = gpg(&["--armor", "--export", algorithm]).await.unwrap().stdout;
            let path = home.path().join("key.asc");
            std::fs::write(&path, &file).unwrap();
            let listed = gpg(&["--with-colons", "--show-keys", path.to_str().unwrap()]).await.unwrap().stdout;
            let printed = listed.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap().replace(':', "");
            assert_eq!(only_key(file.as_bytes()).unwrap().to_string(), printed, "{algorithm}");
        }
        let all = gpg(&["--armor", "--export"]).await.unwrap().stdout;
        assert!(only_key(all.as_bytes()).unwrap_err().to_string().contains("more than one key"));
        host.command("gpgconf").arg("--homedir").arg(home.path()).args(["--kill", "all"]).run().await.unwrap();
    }

    proptest! {
        #[test]
        fn any_file_is_one_key_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), tag in any::<u8>()) {
            drop(only_key(&bytes));
            drop(packet(&bytes));
            let armored = |bytes: &[u8]| format!("{BEGIN}\n\n{}\n{END}\n", BASE64.encode(bytes));
            drop(only_key(armored(&bytes).as_bytes()));
            drop(only_key(armored(&[&[tag], &bytes[..]].concat()).as_bytes()));
        }

        /// A packet of any length, in the old format and in the new one, is found with what follows it.
        #[test]
        fn a_packet_is_as_long_as_it_says(
            body in proptest::collection::vec(any::<u8>(), 0..9000),
            rest in proptest::collection::vec(any::<u8>(), 0..9),
            tag in 0..16_u8,
        ) {
            let length = u32::try_from(body.len()).unwrap_or_default();
            let short = match length {
                0..=191 => vec![u8::try_from(length).unwrap_or_default()],
                192..=8383 => (length - 192 + (192 << 8)).to_be_bytes()[2..].to_vec(),
                _ => [&[255], &length.to_be_bytes()[..]].concat(),
            };
            let heads = [[&[0x80 | tag << 2 | 2], &length.to_be_bytes()[..]].concat(), [&[0xc0 | tag], &short[..]].concat()];
            for head in heads {
                let bytes = [&head[..], &body, &rest].concat();
                let Ok(found) = packet(&bytes) else { panic!("{head:x?}") };
                prop_assert_eq!(found, (tag, &body[..], &rest[..]));
            }
        }
    }
}
