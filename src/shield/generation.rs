//! The generation of the kernel's rules: a number that is another one after every change of any table.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::host::Host;
use crate::paths::SHIELD_GENERATION;

/// The question and its answer: `NFT_MSG_GETGEN` and `NFT_MSG_NEWGEN` of nftables in the kernel, in its subsystem.
const QUESTION: u16 = 10 << 8 | 16;
const ANSWER: u16 = 10 << 8 | 15;

/// An attribute of eight bytes, `NFTA_GEN_ID`: the first one of the answer.
const GENERATION: [u16; 2] = [8, 1];

/// The present one.
pub(super) fn read() -> Result<u32> {
    let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
    let mut answer = [0; 256];
    let asked = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).and_then(|socket| {
        send(socket.as_raw_fd(), &question(), MsgFlags::empty())?;
        // It is there when the question is taken.
        recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)
    });
    let length = asked.context("asking the kernel for the generation of its rules")?;
    parse(&answer[..length]).context("the kernel tells no generation of its rules")
}

/// Notes that the table was verified when the generation was this one.
pub(super) async fn note_verified(host: &Host, generation: Result<u32>) {
    let noted = generation.map(text).unwrap_or_default();
    // Without the note the next run asks nft.
    drop(tokio::fs::write(host.path(SHIELD_GENERATION), noted).await);
}

/// Whether nothing has changed since the unit verified the table.
pub(super) async fn is_verified(host: &Host) -> bool {
    let noted = tokio::fs::read_to_string(host.path(SHIELD_GENERATION)).await;
    let now = read().map(text);
    matches!((noted, now), (Ok(noted), Ok(now)) if noted == now)
}

fn text(generation: u32) -> String {
    format!("{generation}\n")
}

/// A header (length, kind, flag of a request, number, sender), and the head of what asks about every family.
fn question() -> Vec<u8> {
    let (length, request) = (20_u32.to_ne_bytes(), 1_u16.to_ne_bytes());
    [&length[..], &QUESTION.to_ne_bytes(), &request, &[0; 12]].concat()
}

fn parse(answer: &[u8]) -> Option<u32> {
    let is_generation = answer.get(4..6)? == ANSWER.to_ne_bytes()
        && answer.get(20..24)? == GENERATION.map(u16::to_ne_bytes).as_flattened();
    is_generation.then_some(u32::from_be_bytes(answer.get(24..28)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.1 answers, with the process that made the last change.
    fn answer(generation: u32) -> Vec<u8> {
        let header = [&44_u32.to_ne_bytes()[..], &ANSWER.to_ne_bytes(), &[0; 14]].concat();
        let process = [&8_u16.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &7_u32.to_be_bytes(), b"\x08\0\x03\0nft\0"];
        let id = [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &generation.to_be_bytes()];
        [header, id.concat(), process.concat()].concat()
    }

    #[test]
    fn an_answer_is_a_generation_and_nothing_else_is() {
        assert_eq!(question().len(), 20);
        let known = answer(0x0102_0304);
        assert_eq!((parse(&known), parse(&known[..27])), (Some(0x0102_0304), None));
        // The kind of an error, and another attribute in the place of the generation.
        for (at, byte) in [(4, 2), (5, 0), (20, 7), (22, 2)] {
            let mut other = known.clone();
            other[at] = byte;
            assert_eq!(parse(&other), None, "{at}");
        }
    }

    #[tokio::test]
    async fn only_the_present_generation_is_verified() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(root.path().join("run/openclaw-shield"))?;
        let Ok(now) = read() else {
            println!("SKIPPED: this user may not ask the kernel");
            return Ok(());
        };
        assert!(!is_verified(&host).await);
        for (noted, expected) in [(Ok(now), true), (Ok(now.wrapping_sub(1)), false), (read(), true)] {
            note_verified(&host, noted).await;
            assert_eq!(is_verified(&host).await, expected);
        }
        note_verified(&host, Err(anyhow::anyhow!("no answer"))).await;
        assert!(!is_verified(&host).await);
        Ok(())
    }
}
