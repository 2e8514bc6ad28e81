use std::fs;

use super::*;
use crate::failure::{code_of, one_line};

#[test]
fn what_is_done_follows_from_what_is_there() {
    use Action::{Finish, Move, Nothing, Refuse, TakeBack};
    use Begun::{Copying, No, Switching};
    #[rustfmt::skip]
    let cases = [
        // begun, parked, boot, disk
        ((No, false, false, false), Nothing, "two new disks"),
        ((No, false, false, true), Nothing, "an ordinary boot"),
        ((No, false, true, false), Move, "a disk was attached"),
        ((No, false, true, true), Refuse, "two states"),
        ((No, true, false, false), TakeBack, "a move to another disk was cut"),
        ((No, true, false, true), TakeBack, "the same, and this one has a state"),
        ((No, true, true, false), TakeBack, "two states on the boot disk"),
        ((Copying, false, true, false), Move, "cut before it was parked"),
        ((Copying, true, false, false), Move, "cut while copying"),
        ((Copying, true, false, true), TakeBack, "cut while copying, and the disk was used elsewhere"),
        ((Copying, false, false, false), Nothing, "cut, and the operator has taken the state away"),
        ((Switching, true, false, false), Move, "cut before the switch"),
        ((Switching, true, false, true), Finish, "cut after the switch"),
        ((Switching, false, false, true), Finish, "cut before the intent was removed"),
    ];
    for ((begun, parked, boot, disk), expected, case) in cases {
        assert_eq!(decide(begun, parked, boot, disk), expected, "{case}");
    }
}

/// A machine with directories and an intent, without the devices.
struct Machine {
    host: Host,
    data: DataDir,
    _root: tempfile::TempDir,
}

impl Machine {
    /// `states`: directories that hold a state.
    fn new(states: &[&str], intent: Option<(&str, bool)>) -> Result<Self> {
        let root = tempfile::tempdir()?;
        let (host, data) = (Host::new(root.path()), layout::data_dir(Path::new("/disk"), false));
        for directory in ["/disk", BOOT_DISK_DIR] {
            fs::create_dir_all(host.path(directory))?;
        }
        for state in states {
            fs::create_dir_all(host.path(state).join("openclaw"))?;
            fs::write(host.path(state).join("openclaw/is"), state)?;
        }
        if let Some((uuid, switching)) = intent {
            let intent = Intent { device_name: "d".into(), uuid: uuid.into(), switching };
            fs::write(host.path(FILE), serde_json::to_vec(&intent)?)?;
        }
        Ok(Self { host, data, _root: root })
    }

    async fn is_due(&self) -> Result<bool> {
        is_due(&self.host, &self.data, "d", "u").await
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
        (Some(("another", false)), &[PARKED][..], true),
        (Some(("another", true)), &[PARKED][..], true),
        (None, &[PARKED][..], true),
    ] {
        let machine = Machine::new(states, intent)?;
        assert_eq!(machine.is_due().await?, due, "{intent:?}: a new move begins");
        assert_eq!(machine.is(BOOT_DISK_DATA).as_deref(), Some(PARKED), "{intent:?}");
        assert!(!machine.host.path(FILE).exists() && !machine.host.path(PARKED).exists(), "{intent:?}");
    }
    let machine = Machine::new(&[PARKED], Some(("u", true)))?;
    fs::create_dir_all(machine.host.path(BOOT_DISK_DATA).join("openclaw"))?;
    take_back(&machine.host).await?;
    assert_eq!(machine.is(BOOT_DISK_DATA).as_deref(), Some(PARKED), "openclaw-data-disk=none");
    assert!(matches!(&machine.former()?[..], [name] if name.starts_with("data.before-")), "the empty one is kept");
    Ok(())
}

#[tokio::test]
async fn a_move_that_was_cut_after_the_switch_is_finished() -> Result<()> {
    let machine = Machine::new(&[PARKED, "/disk"], Some(("u", true)))?;
    fs::create_dir_all(machine.host.path("/disk/backups.moving/one"))?;
    fs::create_dir_all(machine.host.path("/disk/backups"))?;
    for (path, content) in [
        ("openclaw-init.moving/update.json", "theirs"),
        ("openclaw-init.moving/disk.json", "theirs"),
        ("openclaw-init/disk.json", "its own"),
    ] {
        let path = machine.host.path("/disk").join(path);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(path, content)?;
    }
    assert!(!machine.is_due().await?);
    assert_eq!(machine.is("/disk").as_deref(), Some("/disk"));
    assert!(machine.host.path("/disk/backups/one").exists());
    assert_eq!(fs::read_to_string(machine.host.path("/disk/openclaw-init/update.json"))?, "theirs");
    assert_eq!(fs::read_to_string(machine.host.path("/disk/openclaw-init/disk.json"))?, "its own");
    assert!(matches!(&machine.former()?[..], [name] if name.starts_with("data.moved-to-d-")), "the original is kept");
    assert!(!machine.host.path(FILE).exists());
    Ok(())
}

#[tokio::test]
async fn two_states_are_named_with_their_last_use() -> Result<()> {
    for (states, intent) in [
        (&[BOOT_DISK_DATA, "/disk"][..], None),
        (&[PARKED, "/disk"][..], Some(("u", false))),
        (&[PARKED, "/disk"][..], Some(("another", true))),
    ] {
        let machine = Machine::new(states, intent)?;
        let Err(error) = machine.is_due().await else { panic!("{states:?} is no conflict") };
        assert_eq!(code_of(&error), Code::TwoStates);
        let said = one_line(&error);
        let times = said.matches(", last used 2").count();
        assert!(times == 2 && said.contains(BOOT_DISK_DATA) && said.contains("/disk/openclaw"), "{said}");
        assert_eq!(machine.is("/disk").as_deref(), Some("/disk"), "nothing is touched");
    }
    let machine = Machine::new(&[BOOT_DISK_DATA, PARKED], Some(("u", false)))?;
    assert!(machine.is_due().await.is_err_and(|error| code_of(&error) == Code::TwoStates), "both on the boot disk");
    Ok(())
}
