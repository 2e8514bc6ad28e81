//! Images of the fake gateway (`tests/fake-gateway`), in the lab's registry like the real ones: for machines on which
//! the real gateway would be too heavy.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::cloud::images::{self, GATEWAY_REPOSITORY};
use crate::cloud::oci::Layout;
use crate::files::write;
use crate::host;
use crate::program::run;

/// A good version; its state has schema 1.
pub const FIRST: &str = "0.1.1";
/// A good version that brings the state to schema 2, which [`FIRST`] refuses.
pub const SECOND: &str = "0.1.2";
/// A version with schema 2 that refuses an older state until its own `doctor --fix` has brought it there.
pub const WANTS_DOCTOR: &str = "0.1.3";
/// Versions that end twice, with exit code 1 and 78, as if their databases were read from a cold disk, and then start.
pub const COLD: [&str; 2] = ["0.1.4", "0.1.5"];
/// A good version with schema 2 that does not load the plugin `pigeon`, as all others do.
pub const WITHOUT_PLUGIN: &str = "0.1.6";
/// A good version with schema 2 that starts for 400 seconds without a sign of life.
pub const SLOW: &str = "0.1.7";
/// A version that brings the state to schema 2 and then never becomes ready.
pub const NEVER_READY: &str = "0.1.66";

const VERSIONS: [&str; 8] = [FIRST, SECOND, WANTS_DOCTOR, COLD[0], COLD[1], WITHOUT_PLUGIN, SLOW, NEVER_READY];

/// All that determines the program.
const SOURCES: [&str; 5] = [
    include_str!("../../../fake-gateway/Cargo.toml"),
    include_str!("../../../fake-gateway/src/evil.rs"),
    include_str!("../../../fake-gateway/src/main.rs"),
    include_str!("../../../fake-gateway/src/http.rs"),
    include_str!("../../../fake-gateway/src/state.rs"),
];
/// Part of the cache key: to be raised when the steps below change.
const RECIPE: &str = "1";
const PROGRAM: &str = "app/openclaw.mjs";
/// The program's other names in its image.
const NAMES: [&str; 3] = ["usr/bin/tini", "usr/local/bin/node", "usr/local/bin/openclaw"];
/// What belongs to the image's user, with its permissions.
const OWN: [(&str, u32); 6] = [
    ("app", 0o755),
    ("home/node", 0o755),
    ("home/node/.openclaw", 0o700),
    ("home/node/.openclaw/workspace", 0o700),
    ("home/node/.config", 0o755),
    ("home/node/.config/openclaw", 0o700),
];

/// A registry's storage that has the images of `storage` and those of the fake gateway, built when the cache does not
/// have it (20 s).
pub fn add(cache: &Cache, storage: &Path) -> Result<PathBuf> {
    let others = storage.to_str().context("the cache's path is not text")?;
    let parts = [&SOURCES[..], &[RECIPE, others], &VERSIONS].concat();
    let entry = cache.entry("registry", &parts, |directory| build(directory, storage))?;
    Ok(entry.join("storage"))
}

fn build(directory: &Path, storage: &Path) -> Result<()> {
    // What a registry has stored it never changes: the files may be shared.
    let mut copy = Command::new("cp");
    run(copy.args(["--archive", "--link"]).arg(storage).arg(directory)).context("taking over the other images")?;
    let (root, mark) = (directory.join("root"), directory.join("mark"));
    fill(&root).context("making the fake gateway's files")?;
    File::create(&mark).and_then(|it| it.set_modified(SystemTime::UNIX_EPOCH)).context("making a mark")?;
    let layout = Layout::create(&directory.join("oci"))?;
    let layer = [layout.layer(&root, &mark)?];
    for version in VERSIONS {
        layout.image(GATEWAY_REPOSITORY, version, &layer, &config(version))?;
    }
    images::push(&layout, directory)?;
    [root.as_path(), layout.directory()].iter().try_for_each(fs::remove_dir_all).context("removing what is pushed")
}

fn fill(root: &Path) -> Result<()> {
    let program = host::fake_gateway()?;
    for (path, mode) in OWN {
        let path = root.join(path);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        chown(&path, Some(images::NODE_USER), Some(images::NODE_USER))?;
    }
    fs::copy(&program, root.join(PROGRAM)).with_context(|| format!("copying {}", program.display()))?;
    for name in NAMES.map(|name| root.join(name)) {
        fs::create_dir_all(name.parent().context("a program has a directory")?)?;
        fs::hard_link(root.join(PROGRAM), &name)?;
    }
    for (file, text) in [("passwd", "node:x:1000:1000::/home/node:/bin/false\n"), ("group", "node:x:1000:\n")] {
        fs::create_dir_all(root.join("etc"))?;
        write(&root.join("etc").join(file), text.as_bytes(), 0o644)?;
    }
    fs::create_dir(root.join("tmp"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).context("opening /tmp")
}

/// The gateway's own configuration, with another health check and the version.
fn config(version: &str) -> Value {
    let mut config = images::gateway_config(version);
    config["Healthcheck"]["Test"] = json!(["CMD", "openclaw", "health"]);
    config["Env"] = json!([format!("PATH={}", images::SYSTEM_PATH), format!("FAKE_GATEWAY_VERSION={version}")]);
    config
}
