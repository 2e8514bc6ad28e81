//! What a person sees who only has the program: help, version, exit codes.

#![allow(clippy::expect_used, reason = "a test ends where its world does")]

use std::process::{Command, Output};

fn openclaw_init(args: &[&str]) -> Output {
    #[expect(clippy::disallowed_methods, reason = "a test starts the program under test")]
    let output = Command::new(env!("CARGO_BIN_EXE_openclaw-init")).args(args).env("COLUMNS", "100").output();
    output.expect("the program starts")
}

/// Every command that a person sees.
const COMMANDS: [&str; 13] = [
    "boot",
    "status",
    "link",
    "bake",
    "seal",
    "backup",
    "restore",
    "install",
    "uninstall",
    "update",
    "rollback",
    "settings",
    "stop",
];

#[test]
fn help_version_and_usage_errors() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--help"], 0, "openclaw-init.service"),
        (&["boot", "--help"], 0, "never refused"),
        (&["--version"], 0, env!("CARGO_PKG_VERSION")),
        (&["explode"], 2, "unrecognized subcommand"),
    ];
    let teaching = COMMANDS.map(|command| [command, "--help"]);
    let teaching = teaching.iter().map(|args| (&args[..], 0, "Example"));
    let cases = cases.iter().copied().chain(teaching);
    for (args, code, text) in cases {
        let output = openclaw_init(args);
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {printed}");
        assert!(printed.lines().all(|line| line.len() <= 120), "{args:?}: {printed}");
        assert!(printed.contains(text), "{args:?}: {printed}");
    }
}

#[test]
fn the_help_of_every_command_is_the_golden_one() {
    let help = |command: Option<&str>| {
        let args: Vec<_> = command.into_iter().chain(["--help"]).collect();
        format!("$ openclaw-init {}\n{}\n", args.join(" "), String::from_utf8_lossy(&openclaw_init(&args).stdout))
    };
    let text: String = [None].into_iter().chain(COMMANDS.map(Some)).map(help).collect();
    expect_test::expect_file!["cli/help.txt"].assert_eq(&text);
}

/// For everybody, and on any machine.
#[test]
fn settings_is_the_schema() {
    let output = openclaw_init(&["settings"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), include_str!("../docs/settings.schema.json"));
}

#[test]
fn completions_and_manual_pages_come_from_the_same_definitions() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let output = openclaw_init(&["generate", directory.path().to_str().expect("the path is text")]);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap_or_default();
    for (file, text) in [
        ("openclaw-init.bash", "complete -F"),
        ("openclaw-init.fish", "complete -c openclaw-init"),
        ("_openclaw-init", "#compdef openclaw-init"),
        ("openclaw-init.1", ".TH openclaw-init 1"),
        ("openclaw-init-bake.1", "baked.json"),
    ] {
        assert!(read(file).contains(text), "{file}: {}", read(file));
    }
}

#[test]
fn other_users_are_told_in_one_sentence() {
    use std::os::unix::process::CommandExt as _;
    for command in [&[][..], &["boot"], &["stop"], &["link"], &["backup"], &["update"], &["uninstall"], &["install"]] {
        #[expect(clippy::disallowed_methods, reason = "a test starts the program under test")]
        let mut program = Command::new(env!("CARGO_BIN_EXE_openclaw-init"));
        program.args(command);
        if nix::unistd::geteuid().is_root() {
            program.uid(65534);
        }
        let output = program.output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(30), "{command:?}: {said}");
        assert_eq!(
            said.trim_end(),
            "openclaw: error: this user is not root. Run the same command as root, with sudo.",
            "{command:?}"
        );
    }
}

#[test]
fn modes_do_not_depend_on_who_starts_the_program() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory can be made");
    #[expect(clippy::disallowed_methods, reason = "a test starts the program under test")]
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 000 && exec \"$0\" generate \"$1\"", env!("CARGO_BIN_EXE_openclaw-init")]);
    assert!(shell.arg(directory.path()).status().expect("the shell starts").success());
    let file = directory.path().join("openclaw-init.1").metadata().expect("it was written");
    assert_eq!(file.permissions().mode() & 0o777, 0o644);
}
