//! What the agent could do in the gateway's place, all of it at once: for tests of the program that reads it.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::directory;

/// While the state has a file of this name, no answer and no output ends.
const SWITCH: &str = "evil";
/// Deeper than a path can be long.
const DEPTH: usize = 3000;

pub(crate) fn is_on() -> bool {
    directory().join(SWITCH).exists()
}

/// Writes for ever, or until nobody reads any more.
pub(crate) fn write(mut out: impl Write) -> io::Result<()> {
    let part = [b'a'; 8 << 10];
    loop {
        out.write_all(&part)?;
    }
}

/// Fills the state with directories within each other and with a file of holes, then puts a fifo in the place of
/// `.env` and takes it away, for ever.
pub(crate) fn play() -> Result<()> {
    let state = directory();
    fs::write(state.join(SWITCH), "").context("throwing the switch")?;
    fs::File::create(state.join("holes"))?.set_len(15 << 30)?;
    nest(&state.join("deep")).context("nesting directories")?;
    let (file, fifo) = (state.join(".env"), state.join("fifo"));
    mkfifo(&fifo, Mode::S_IRWXU).context("making a fifo")?;
    loop {
        renameat2(AT_FDCWD, &file, AT_FDCWD, &fifo, RenameFlags::RENAME_EXCHANGE).context("swapping .env")?;
        thread::sleep(Duration::from_millis(1));
    }
}

/// From the inside out: what is there already becomes the only content of a new directory.
fn nest(path: &Path) -> Result<()> {
    let outer = path.with_extension("outer");
    fs::create_dir(path)?;
    for _ in 0..DEPTH {
        fs::create_dir(&outer)?;
        fs::rename(path, outer.join("d"))?;
        fs::rename(&outer, path)?;
    }
    Ok(())
}
