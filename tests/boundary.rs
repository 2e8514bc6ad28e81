//! The trust boundary from outside: the program under test meets each attack, and ends in time, small, with a message
//! that names what is wrong. The lab's scenario `evil` plays them all at once, to a whole machine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world does")]
#![allow(clippy::unnecessary_wraps, reason = "whatever an attack needs, it has one type")]

mod fake_engine;
mod machine;

use std::cell::Cell;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use openclaw_lab::metadata_server::Level;
use serde_json::json;
use tar::{EntryType, Header};

use fake_engine::{FakeEngine, frame};
use machine::{Beside, PROGRAM, STATE};

/// The most memory that the program may need, and what it takes of that when nobody attacks it: the optimised one has
/// 8 MiB of code and data. The one under test is not optimised, and takes four times as much before it does anything:
/// it may grow by what is left.
const MEMORY_KIB: u64 = 32 << 10;
const AT_PEACE_KIB: u64 = 8 << 10;

/// The address space that it gets, should it grow all the same.
const MOST_BYTES: u64 = 8 << 30;

/// Machines at the same time.
const SIDE_BY_SIDE: usize = 3;

/// How much it may say.
const SAID_BYTES: usize = 20_000;

/// Runs a program, and notes the largest memory that it had, or a program that it ran.
const PEAK: &str = r#"my $to = shift; my $status = system @ARGV; my $usage = "\0" x 144;
    syscall(98, -1, $usage) == 0 and open(my $file, ">", $to) or die; print $file (unpack "q*", $usage)[4];
    exit($status & 127 ? 128 + ($status & 127) : $status >> 8)"#;

/// Holds a lease on a file.
const LEASE: &str = r#"$SIG{IO} = "IGNORE"; open(F, "+<", $ARGV[0]) or die; fcntl(F, 1024, 1) or die; $| = 1;
    print "held\n"; sleep 600"#;

/// What must never leave the machine.
const CANARY: &str = "canary-7d1f0a";

/// Of `timeout`: a run that waits for an answer, which it does until a deadline of minutes.
const WAITS: i32 = 124;
const CONFIG_INVALID: i32 = 10;
const NO_SPACE: i32 = 24;
const REFUSED: i32 = 28;
const NOT_READY: i32 = 29;

struct Attack {
    /// The row of the table in the issue that these attacks are from.
    row: &'static str,
    /// Prepares it, on a machine whose gateway is ready.
    make: fn(&Machine) -> Result<()>,
    command: &'static str,
    code: i32,
    says: &'static [&'static str],
}

/// A machine with a gateway.
struct Machine {
    directory: tempfile::TempDir,
    beside: Beside,
    /// What goes on until the program has ended.
    attacker: Cell<Option<Attacker>>,
    /// The most memory that a run without an attack has had.
    at_peace: u64,
}

/// A process of the attacker's.
struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

struct Ended {
    code: i32,
    text: String,
    peak: u64,
}

impl Machine {
    fn ready() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
        let beside = machine::make(directory.path())?;
        let mut machine = Self { directory, beside, attacker: Cell::default(), at_peace: 0 };
        let booted = machine.run(60, "boot --foreground")?;
        ensure!(booted.code == 0, "the first boot: {}", booted.text);
        machine.at_peace = booted.peak;
        Ok(machine)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn state(&self, path: &str) -> PathBuf {
        self.at(STATE).join(path)
    }

    fn engine(&self) -> &FakeEngine {
        &self.beside.engine
    }

    fn set(&self, key: &str, value: &str) -> Result<()> {
        self.beside.server.set_attribute(Level::Instance, key, value)
    }

    /// Runs the program for `seconds` at most.
    fn run(&self, seconds: u32, arguments: &str) -> Result<Ended> {
        let inner = machine::command(self.directory.path(), &self.beside, [PROGRAM, arguments, ""]);
        let peak = self.at("peak");
        #[expect(clippy::disallowed_methods, reason = "a test starts the program under test")]
        let mut command = Command::new("perl");
        command.args(["-e", PEAK]).arg(&peak).arg("prlimit").arg(format!("--as={MOST_BYTES}"));
        command.args(["timeout", &seconds.to_string()]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.stdin(Stdio::null()).output()?;
        let text = [output.stdout, output.stderr].concat();
        let peak = fs::read_to_string(peak)?.parse().context("the program's memory")?;
        Ok(Ended { code: output.status.code().context("it has no code")?, text: String::from_utf8(text)?, peak })
    }
}

fn meet(attack: &Attack) -> Result<()> {
    let machine = Machine::ready()?;
    (attack.make)(&machine).context("preparing it")?;
    let seconds = if attack.code == WAITS { 10 } else { 400 };
    let Ended { code, text, peak } = machine.run(seconds, attack.command)?;
    drop(machine.attacker.take());
    println!("{} {}: {code}, {peak} KiB, {} at peace", attack.row, attack.command, machine.at_peace);
    ensure!(code == attack.code, "it ended with {code}, not {}: {text}", attack.code);
    ensure!(attack.says.iter().all(|words| text.contains(words)), "it does not say {:?}: {text}", attack.says);
    let is_shown = |character: char| !character.is_control() || character == '\n';
    ensure!(text.len() < SAID_BYTES && text.chars().all(is_shown) && !text.contains(CANARY), "it says {text:?}");
    let is_ready = |line: &str| line.trim_start_matches("openclaw: ").starts_with("result=ready");
    ensure!(code == 0 || !text.lines().any(is_ready), "it is ready: {text}");
    let most = machine.at_peace + MEMORY_KIB - AT_PEACE_KIB;
    ensure!(peak <= most, "it took {peak} KiB, {most} at most: {text}");
    Ok(())
}

#[test]
fn no_attack_stops_fills_or_fools_the_program() -> Result<()> {
    meet_all(ATTACKS)
}

#[test]
#[ignore = "it takes minutes: for those who change a limit"]
fn the_largest_state_that_is_accepted_fits_into_the_same_memory() -> Result<()> {
    meet_all(LARGEST)
}

fn meet_all(attacks: &[Attack]) -> Result<()> {
    if !machine::is_possible()? {
        return Ok(());
    }
    let name = |Attack { row, command, says, .. }: &Attack| format!("{row}, {command}, {says:?}");
    machine::each(attacks, SIDE_BY_SIDE, name, meet)
}

#[rustfmt::skip]
const ATTACKS: &[Attack] = &[
    Attack { row: "S1", make: brackets, command: "boot --foreground", code: REFUSED, says: &["openclaw.json", "128 levels"] },
    Attack { row: "S1", make: values, command: "boot --foreground", code: REFUSED, says: &["openclaw.json", "50000 values"] },
    Attack { row: "S1", make: largest_settings, command: "boot --foreground", code: 0, says: &["result=ready"] },
    Attack { row: "S2", make: endless_body, command: "boot --foreground", code: WAITS, says: &[] },
    Attack { row: "S2", make: endless_body, command: "watch", code: WAITS, says: &[] },
    Attack { row: "S2b", make: talkative_end, command: "boot --foreground", code: NOT_READY, says: &["SECRET_X=[redacted]"] },
    Attack { row: "S3", make: endless_output, command: "backup", code: NOT_READY, says: &["gateway back itself up", "1.0 MiB"] },
    Attack { row: "S4", make: native_long_name, command: "backup", code: NOT_READY, says: &["openclaw-init-backup.tar.gz", "longer than any path"] },
    Attack { row: "S4", make: long_name, command: "restore /evil", code: CONFIG_INVALID, says: &["/evil", "longer than any path"] },
    Attack { row: "S4", make: pax_header, command: "restore /evil", code: CONFIG_INVALID, says: &["/evil", "longer than any path"] },
    Attack { row: "S4", make: header_of_values, command: "restore /evil", code: CONFIG_INVALID, says: &["/evil", "50000 values"] },
    Attack { row: "S4", make: nodes, command: "restore /evil", code: CONFIG_INVALID, says: &["/evil", "state/", "900000"] },
    Attack { row: "S5", make: fifo_for_env, command: "boot --foreground", code: REFUSED, says: &["/.env", "not a regular file"] },
    Attack { row: "S6", make: lease, command: "boot --foreground", code: NOT_READY, says: &["/.env", "lease"] },
    Attack { row: "S6", make: lease_in_stopped, command: "backup", code: NOT_READY, says: &["state/.env", "lease"] },
    Attack { row: "S7", make: holes, command: "backup", code: NO_SPACE, says: &["state/vast", "16384.0 GiB"] },
    Attack { row: "S8", make: native_link_to_nothing, command: "backup", code: NOT_READY, says: &["state/link", "is no file before it"] },
    Attack { row: "S8", make: link_to_nothing, command: "restore /evil", code: CONFIG_INVALID, says: &["state/link", "is no file before it"] },
    Attack { row: "S8b", make: nested, command: "restore /evil", code: CONFIG_INVALID, says: &["256 directories"] },
    Attack { row: "S8b", make: nested_state, command: "backup", code: REFUSED, says: &["256 directories"] },
    Attack { row: "S10", make: forged_answer, command: "status", code: 0, says: &["2026"] },
    Attack { row: "S10", make: forged_answer, command: "boot --foreground", code: WAITS, says: &[] },
    Attack { row: "S10", make: long_answer, command: "boot --foreground", code: WAITS, says: &[] },
    Attack { row: "S18", make: fifo_for_backup, command: "restore /evil", code: CONFIG_INVALID, says: &["/evil", "not a regular file"] },
    Attack { row: "S18", make: nothing, command: "backup --to /var/lib/openclaw-init/data/openclaw/", code: CONFIG_INVALID, says: &["gateway's own directory"] },
    Attack { row: "S19", make: endless_changes, command: "boot --foreground", code: 0, says: &["more than can be listed", "openclaw-gateway-kept"] },
    Attack { row: "S20", make: forged_label, command: "restore /evil", code: CONFIG_INVALID, says: &["/evil"] },
    Attack { row: "S20", make: forged_name, command: "backup", code: 0, says: &["fifos", "backed up"] },
    Attack { row: "names", make: many_lines, command: "boot --foreground", code: REFUSED, says: &[".env", "10000 lines"] },
    Attack { row: "names", make: many_lines, command: "watch", code: WAITS, says: &[] },
    Attack { row: "names", make: many_names, command: "backup", code: REFUSED, says: &["openclaw/many", "4.0 MiB"] },
    Attack { row: "names", make: many_names_before_update, command: "boot --foreground", code: 0, says: &["openclaw/many", "4.0 MiB", "version=2026.9.6"] },
    Attack { row: "names", make: many_links, command: "backup", code: REFUSED, says: &["openclaw", "114000 files"] },
    Attack { row: "names", make: long_links, command: "backup", code: 0, says: &["backed up"] },
    Attack { row: "names", make: long_links_before_update, command: "boot --foreground", code: 0, says: &["version=2026.9.7"] },
];

#[rustfmt::skip]
const LARGEST: &[Attack] = &[
    Attack { row: "largest", make: largest, command: "backup", code: 0, says: &["backed up"] },
    Attack { row: "largest", make: largest_before_update, command: "boot --foreground", code: 0, says: &["version=2026.9.7"] },
];

fn nothing(_: &Machine) -> Result<()> {
    Ok(())
}

fn brackets(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    fs::write(machine.state("openclaw.json"), "[".repeat(200_000))?;
    Ok(())
}

fn values(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    fs::write(machine.state("openclaw.json"), format!("{{a: [{}]}}", r#"{"a":1},"#.repeat(120_000)))?;
    Ok(())
}

/// As large as it may be, in objects, which take the most memory, and in text.
fn largest_settings(machine: &Machine) -> Result<()> {
    let file = machine.state("openclaw.json");
    let mut settings: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    settings["logging"] = json!({"objects": vec![json!({"a": 1}); 4_000], "text": "x".repeat(900 << 10)});
    fs::write(file, settings.to_string())?;
    Ok(())
}

fn endless(part: &'static [u8]) -> Response {
    Body::from_stream(futures_util::stream::repeat_with(move || Ok::<_, Infallible>(Bytes::from_static(part))))
        .into_response()
}

fn endless_body(machine: &Machine) -> Result<()> {
    machine.engine().answers_instead("z", || endless(&[b'['; 16 << 10]));
    Ok(())
}

/// It says its environment, and much else before that.
fn talkative_end(machine: &Machine) -> Result<()> {
    machine.set("openclaw-env-FAULT", "ready")?;
    machine.set("openclaw-env-SECRET_X", CANARY)?;
    machine.engine().answers_instead("/logs", || {
        let line = frame(format!("{}\n", "x ".repeat(8 << 10)).as_bytes());
        let end = frame(format!("SECRET_X={CANARY}\n").as_bytes());
        let lines = std::iter::repeat_n(line, 4096).chain([end]).map(Ok::<_, Infallible>);
        Body::from_stream(futures_util::stream::iter(lines)).into_response()
    });
    Ok(())
}

fn endless_output(machine: &Machine) -> Result<()> {
    machine.engine().executes(|| Box::new(std::iter::repeat(Bytes::from_static(&[b'x'; 16 << 10]))));
    Ok(())
}

/// The gateway's `backup create` leaves this archive, and says that it is verified.
fn native(machine: &Machine, archive: Vec<u8>) {
    let file = machine.at(STATE).with_file_name("config-openclaw").join(".openclaw-init-backup.tar.gz");
    machine.engine().executes(move || {
        fs::write(&file, &archive).expect("the archive is written");
        Box::new([Bytes::from_static(br#"{"verified":true}"#)].into_iter())
    });
}

type Tar = tar::Builder<GzEncoder<Vec<u8>>>;

fn packed(members: impl FnOnce(&mut Tar) -> Result<()>) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    members(&mut tar)?;
    Ok(tar.into_inner()?.finish()?)
}

/// Adds a member that says that it has this size.
fn add(tar: &mut Tar, path: &str, kind: EntryType, link: &str, content: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    header.set_uid(1000);
    header.set_gid(1000);
    header.set_mtime(0);
    if !link.is_empty() {
        header.set_link_name(link)?;
    }
    Ok(tar.append_data(&mut header, path, content)?)
}

/// A member whose extension, a name, has three gigabytes; of which it has some.
fn long_extension(tar: &mut Tar, kind: EntryType) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(3 << 30);
    header.set_cksum();
    tar.get_mut().write_all(header.as_bytes())?;
    Ok(tar.get_mut().write_all(&vec![b'x'; 64 << 20])?)
}

fn native_long_name(machine: &Machine) -> Result<()> {
    native(machine, packed(|tar| long_extension(tar, EntryType::GNULongName))?);
    Ok(())
}

fn native_link_to_nothing(machine: &Machine) -> Result<()> {
    let archive = packed(|tar| {
        let path = "backup/payload/posix/home/node/.openclaw/";
        add(tar, "backup/manifest.json", EntryType::Regular, "", br#"{"schemaVersion":1}"#)?;
        add(tar, &format!("{path}link"), EntryType::Link, &format!("{path}missing"), b"")
    });
    native(machine, archive?);
    Ok(())
}

/// What a backup says of itself, with another `owner` of the state and former `value` of a setting.
fn label(owner: &str, value: &str) -> String {
    format!(
        r#"{{"format":1,"created":"2026-11-23T15:00:00Z","machine":"m","how":"stopped","program":"0","record":{{
        "version":{owner},"settings":{{"owned":[{{"path":["a"],"depth":1,"value":{value},"is-object":false}}]}}}}}}"#
    )
}

/// Makes a file for `restore`.
fn evil(machine: &Machine, label: &str, members: impl FnOnce(&mut Tar) -> Result<()>) -> Result<()> {
    let archive = packed(|tar| {
        add(tar, "openclaw-backup.json", EntryType::Regular, "", label.as_bytes())?;
        members(tar)
    });
    fs::write(machine.at("evil"), archive?)?;
    Ok(())
}

fn plain() -> String {
    label("\"2026.9.6\"", "null")
}

fn long_name(machine: &Machine) -> Result<()> {
    evil(machine, &plain(), |tar| long_extension(tar, EntryType::GNULongName))
}

fn pax_header(machine: &Machine) -> Result<()> {
    evil(machine, &plain(), |tar| long_extension(tar, EntryType::XHeader))
}

/// An object takes a hundred times as much memory as its text.
fn header_of_values(machine: &Machine) -> Result<()> {
    evil(machine, &label("\"2026.9.6\"", &format!("[{}1]", r#"{"a":1},"#.repeat(120_000))), |_| Ok(()))
}

/// Each member is in directories of its own.
fn nodes(machine: &Machine) -> Result<()> {
    evil(machine, &plain(), |tar| {
        (0..3700).try_for_each(|number| {
            add(tar, &format!("state/{number}{}/f", "/a".repeat(250)), EntryType::Regular, "", b"")
        })
    })
}

fn link_to_nothing(machine: &Machine) -> Result<()> {
    evil(machine, &plain(), |tar| add(tar, "state/link", EntryType::Link, "state/missing", b""))
}

fn nested(machine: &Machine) -> Result<()> {
    evil(machine, &plain(), |tar| add(tar, &format!("state{}/f", "/d".repeat(1500)), EntryType::Regular, "", b""))
}

fn forged_label(machine: &Machine) -> Result<()> {
    evil(machine, &label(r#""1\n\u001b[2Kresult=ready""#, "null"), |_| Ok(()))
}

fn fifo(path: &Path) -> Result<()> {
    drop(fs::remove_file(path));
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?;
    Ok(())
}

fn fifo_for_env(machine: &Machine) -> Result<()> {
    fifo(&machine.state(".env"))
}

fn fifo_for_backup(machine: &Machine) -> Result<()> {
    fifo(&machine.at("evil"))
}

fn forged_name(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    fifo(&machine.state("a\n\u{1b}[2Kresult=ready"))
}

fn lease(machine: &Machine) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "it goes on while the test does")]
    let mut holder = Command::new("perl");
    holder.args(["-e", LEASE]).arg(machine.state(".env")).stdout(Stdio::piped());
    let mut holder = Attacker(holder.spawn()?);
    let mut said = String::new();
    BufReader::new(holder.0.stdout.take().context("it is piped")?).read_line(&mut said)?;
    ensure!(said == "held\n", "there is no lease");
    machine.attacker.set(Some(holder));
    Ok(())
}

fn lease_in_stopped(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    lease(machine)
}

fn holes(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    File::create(machine.state("vast"))?.set_len(1 << 44)?;
    Ok(())
}

fn nested_state(machine: &Machine) -> Result<()> {
    fs::create_dir_all(machine.state(&"d/".repeat(300)))?;
    Ok(())
}

fn forged_answer(machine: &Machine) -> Result<()> {
    machine.engine().answers_instead("z", || {
        let failing: Vec<_> = (0..500).map(|number| format!("{number}\u{1b}[2K\nresult=ready")).collect();
        let version = format!("2026.9.6\u{1b}]0;{}\nresult=ready\n", "x".repeat(10_000));
        axum::Json(json!({"status": "started", "ready": false, "version": version, "failing": failing})).into_response()
    });
    Ok(())
}

fn long_answer(machine: &Machine) -> Result<()> {
    machine.engine().answers_instead("z", || {
        let version = "x".repeat(3 << 20);
        axum::Json(json!({"status": "started", "ready": true, "version": version})).into_response()
    });
    Ok(())
}

/// In the container that is replaced, which had a root that can be written.
fn endless_changes(machine: &Machine) -> Result<()> {
    machine.set("openclaw-container-root", "writable")?;
    let booted = machine.run(60, "boot --foreground")?;
    ensure!(booted.code == 0, "the boot with a writable root: {}", booted.text);
    machine.set("openclaw-env-A", "b")?;
    machine.engine().answers_instead("/changes", || endless(b"                                                "));
    Ok(())
}

fn many_lines(machine: &Machine) -> Result<()> {
    let mut file = File::options().append(true).open(machine.state(".env"))?;
    file.write_all("A=b\n".repeat(200_000).as_bytes())?;
    Ok(())
}

/// They are hard links of one file, whose names have 240 characters.
fn names(directory: &Path, count: u32) -> Result<()> {
    fs::create_dir_all(directory)?;
    let first = directory.join("first");
    File::create(&first)?;
    (0..count).try_for_each(|number| Ok(fs::hard_link(&first, directory.join(format!("{number:0>240}")))?))
}

fn many_names(machine: &Machine) -> Result<()> {
    names(&machine.state("many"), 18_000)
}

/// The operator has asked for an update.
fn update(machine: &Machine) -> Result<()> {
    Ok(fs::write(machine.at("run/openclaw-init/private/request.json"), r#"{"update":{"to":"2026.9.7"}}"#)?)
}

fn many_names_before_update(machine: &Machine) -> Result<()> {
    many_names(machine)?;
    update(machine)
}

/// Of files with several names, each.
fn links(directory: &Path, files: u32) -> Result<()> {
    fs::create_dir_all(directory)?;
    let directory = File::open(directory)?;
    let at = |name: String| format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&directory));
    (0..files).try_for_each(|number| {
        File::create(at(format!("a{number}")))?;
        Ok(fs::hard_link(at(format!("a{number}")), at(format!("b{number}")))?)
    })
}

fn many_links(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    (0..4).try_for_each(|number| links(&machine.state(&format!("many/{number}")), 29_000))?;
    Ok(())
}

/// Names of 3 KiB each: 40 MB of them.
fn long_links(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    links(&machine.state(&format!("long/{}", format!("{}/", "d".repeat(240)).repeat(13))), 12_000)?;
    Ok(())
}

fn long_links_before_update(machine: &Machine) -> Result<()> {
    long_links(machine)?;
    update(machine)
}

/// Nearly as many files with several names as can be remembered, and nearly as many names as can be listed.
fn largest(machine: &Machine) -> Result<()> {
    machine.engine().ends_all();
    (0..4).try_for_each(|number| links(&machine.state(&format!("many/{number}")), 28_400))?;
    names(&machine.state("names"), 16_500)?;
    Ok(())
}

fn largest_before_update(machine: &Machine) -> Result<()> {
    largest(machine)?;
    update(machine)
}
