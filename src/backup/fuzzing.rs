//! For the fuzz targets in `fuzz/`; no other build has it.

use std::io::{Read, Write as _};
use std::path::Component;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;

use super::archive::{self, Header, How, Writer};
use super::native;
use super::plan::Member;
use crate::state::Record;

/// As much as a small state may take.
const LIMIT: u64 = 1 << 30;

/// A tar archive, as `restore` would read it and as the gateway's own: members stay inside, and nothing is waited for.
pub fn archive(tar: &[u8]) {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    let packed = gzip.write_all(tar).and_then(|()| gzip.finish()).unwrap_or_default();
    let visit = |member: &Member, _: &mut dyn Read| {
        let is_inside = member.path.starts_with("state") || member.path.starts_with("config");
        assert!(is_inside && member.path.components().all(|part| matches!(part, Component::Normal(_))), "{member:?}");
        Ok(())
    };
    drop(archive::read(&packed[..], visit));
    let header = Header::new(Timestamp::UNIX_EPOCH, String::new(), How::Gateway, Record::default());
    let Ok(mut writer) = Writer::new(Vec::new(), &header) else { return };
    if native::copy(&packed[..], LIMIT, &mut writer, &|_| Ok(())).is_ok()
        && let Ok((ours, _)) = writer.finish()
    {
        // What is written is what can be read back.
        let read = archive::read(&ours[..], visit);
        assert!(read.is_ok(), "{read:?}");
    }
}
