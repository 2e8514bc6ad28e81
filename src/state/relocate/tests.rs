use std::fs;

use super::*;
use crate::error::{code_of, one_line};
use crate::paths::BOOT_DISK_OPERATION_0_1;

/// A fixture with directories and a journal of version 0.1.0, without the devices.
struct Fixture {
    host: Host,
    data: DataDir,
    _root: tempfile::TempDir,
}

impl Fixture {
    /// `states`: directories that hold a state.
    fn new(states: &[&str], intent: Option<(&str, bool)>) -> Result<Self> {
        let root = tempfile::tempdir()?;
        let (host, data) = (Host::new(root.path()), DataDir::at("/disk", false));
        for directory in ["/disk", BOOT_DISK_DIR] {
            fs::create_dir_all(host.path(directory))?;
        }
        for state in states {
            fs::create_dir_all(host.path(state).join("openclaw"))?;
            fs::write(host.path(state).join("openclaw/is"), state)?;
        }
        if let Some((uuid, switching)) = intent {
            let journal = serde_json::json!({ "device-name": "d", "uuid": uuid, "switching": switching });
            fs::write(host.path(BOOT_DISK_OPERATION_0_1), journal.to_string())?;
        }
        Ok(Self { host, data, _root: root })
    }

    async fn is_due(&self) -> Result<bool> {
        let disk = LastDisk { device_name: "d".into(), uuid: "u".into(), instance_id: 1 };
        let volume = Volume { root: "/disk".into(), disk: Some(disk), is_adopted: false };
        prepare(&self.host, &self.data, &volume, &RunLock::of_a_test()).await
    }

    fn is(&self, directory: &str) -> Option<String> {
        fs::read_to_string(self.host.path(directory).join("openclaw/is")).ok()
    }

    /// Names that begin with `data.` beside the boot disk's data.
    fn former(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(self.host.path(BOOT_DISK_DIR))?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        Ok(names
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with("data."))
            .collect())
    }
}

#[tokio::test]
async fn a_move_to_a_disk_that_is_not_there_any_more_is_taken_back() -> Result<()> {
    for (intent, states, due) in [
        (Some(("another", false)), &[STAGING][..], true),
        (Some(("another", true)), &[STAGING][..], true),
        (None, &[STAGING][..], true),
    ] {
        let fixture = Fixture::new(states, intent)?;
        assert_eq!(fixture.is_due().await?, due, "{intent:?}: a new move begins");
        assert_eq!(fixture.is(BOOT_DISK_DATA).as_deref(), Some(STAGING), "{intent:?}");
        assert!(
            !fixture.host.path(BOOT_DISK_OPERATION_0_1).exists() && !fixture.host.path(STAGING).exists(),
            "{intent:?}"
        );
    }
    let fixture = Fixture::new(&[STAGING], Some(("u", true)))?;
    fs::create_dir_all(fixture.host.path(BOOT_DISK_DATA).join("openclaw"))?;
    take_back(&fixture.host, &RunLock::of_a_test()).await?;
    assert_eq!(fixture.is(BOOT_DISK_DATA).as_deref(), Some(STAGING), "openclaw-data-disk=none");
    assert!(matches!(&fixture.former()?[..], [name] if name.starts_with("data.before-")), "the empty one is kept");
    Ok(())
}

#[tokio::test]
async fn a_move_that_was_cut_after_the_switch_is_finished() -> Result<()> {
    let fixture = Fixture::new(&[STAGING, "/disk"], Some(("u", true)))?;
    let original = Path::new(STAGING);
    for path in [&original.join("backups/one"), &original.join("openclaw-init")] {
        fs::create_dir_all(fixture.host.path(path))?;
    }
    for path in ["/disk/backups.moving/one", "/disk/backups", "/disk/films.moving"] {
        fs::create_dir_all(fixture.host.path(path))?;
    }
    for (path, content) in [
        ("openclaw-init.moving/update.json", "theirs"),
        ("openclaw-init.moving/disk.json", "theirs"),
        ("openclaw-init/disk.json", "its own"),
    ] {
        let path = fixture.host.path("/disk").join(path);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(path, content)?;
    }
    assert!(!fixture.is_due().await?);
    assert_eq!(fixture.is("/disk").as_deref(), Some("/disk"));
    assert!(fixture.host.path("/disk/backups/one").exists());
    assert!(fixture.host.path("/disk/films.moving").exists(), "what is somebody's has another name");
    assert_eq!(fs::read_to_string(fixture.host.path("/disk/openclaw-init/update.json"))?, "theirs");
    assert_eq!(fs::read_to_string(fixture.host.path("/disk/openclaw-init/disk.json"))?, "its own");
    assert!(matches!(&fixture.former()?[..], [name] if name.starts_with("data.moved-to-d-")), "the original is kept");
    assert!(!fixture.host.path(BOOT_DISK_OPERATION_0_1).exists());
    Ok(())
}

#[tokio::test]
async fn two_states_are_named_with_their_last_use() -> Result<()> {
    for (states, intent) in [
        (&[BOOT_DISK_DATA, "/disk"][..], None),
        (&[STAGING, "/disk"][..], Some(("u", false))),
        (&[STAGING, "/disk"][..], Some(("another", true))),
    ] {
        let fixture = Fixture::new(states, intent)?;
        let Err(error) = fixture.is_due().await else { panic!("{states:?} is no conflict") };
        assert_eq!(code_of(&error), Code::TwoStates);
        let sentence = one_line(&error);
        let times = sentence.matches(", last used 2").count();
        assert!(times == 2 && sentence.contains(BOOT_DISK_DATA) && sentence.contains("/disk/openclaw"), "{sentence}");
        assert_eq!(fixture.is("/disk").as_deref(), Some("/disk"), "nothing is touched");
    }
    let fixture = Fixture::new(&[BOOT_DISK_DATA, STAGING], Some(("u", false)))?;
    assert!(fixture.is_due().await.is_err_and(|error| code_of(&error) == Code::TwoStates), "both on the boot disk");
    Ok(())
}
