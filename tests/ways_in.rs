//! The ways in are files for people to copy: the loader stands in two of them and must be the same.

use openclaw_init::error::Code;

const LOADER: &str = include_str!("../cloud-init/startup-script.sh");
const USER_DATA: &str = include_str!("../cloud-init/user-data.yaml");

/// What the loader may weigh: it is read by people before they run it as root.
const LINES: usize = 60;

#[test]
fn user_data_holds_the_loader_itself() {
    let (_, content) = USER_DATA.split_once("    content: |\n").unwrap_or_default();
    let embedded: String = content
        .lines()
        .map(|line| line.strip_prefix("      ").unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n");
    assert_eq!(embedded, LOADER);
    assert!(USER_DATA.starts_with("#cloud-config\n"));
}

#[test]
fn the_loader_is_short_and_fails_with_its_own_code() {
    assert!(LOADER.lines().count() <= LINES);
    assert!(LOADER.is_ascii() && !LOADER.contains('\r'));
    assert!(LOADER.contains(&format!("result=failed:{}", Code::LoaderFailed)));
    assert!(LOADER.contains(r#"detail={\"updated\":\"$now\","#));
    assert!(LOADER.contains(&format!("exit {}", Code::LoaderFailed.exit_code())));
}
