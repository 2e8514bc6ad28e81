//! The rules of the house, read from the source: which room imports which, how long a function is, how wide a comment.

#![allow(clippy::expect_used, clippy::panic, reason = "a test ends where its world does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use openclaw_init::error::Code;

/// The rooms from the ground up: a room imports only from rows above its own, or from itself. See `src/lib.rs`.
const FLOORS: &[&[&str]] = &[
    &["stage", "error", "secret", "version", "reference", "paths", "document", "failpoint", "lock", "text"],
    &["host"],
    &["log"],
    &["http", "config", "systemd"],
    &["metadata", "apt", "memory"],
    &["account", "clock", "disk", "docker", "secret_manager", "shield", "report", "trust"],
    &["identity", "state"],
    &["image", "proxy"],
    &["gateway"],
    &["update"],
    &["backup", "install", "link", "pair", "watch"],
    &["bake", "status"],
    &["bootstrap"],
    &["cli"],
    &["main"],
];

/// Lines of a function outside of tests, its signature and last brace included.
const LONGEST_FUNCTION: usize = 60;

/// Columns of a line with a comment.
const WIDEST_COMMENT: usize = 120;

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let (mut found, mut open) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("the source is there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("the source is text");
                found.push((path.strip_prefix(&root).expect("it is below").to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// The room of a file: its first folder or its name.
fn room(path: &Path) -> String {
    let first = path.components().next().expect("a path has a part").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The production half of a file: what stands before its tests.
fn production(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

/// The modules of this crate that a file names as `crate::…` or `openclaw_init::…`.
fn imports(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let (code, mut found) = (code.join("\n"), BTreeSet::new());
    for prefix in ["crate::", "openclaw_init::"] {
        for rest in code.split(prefix).skip(1) {
            // `use crate::{a, b::C};` names several.
            let list = rest.strip_prefix('{').map(|rest| rest.split("};").next().unwrap_or_default());
            let names: Vec<&str> = match list {
                Some(list) => split_outside_of_braces(list),
                None => vec![rest],
            };
            found.extend(names.iter().map(|name| leading_word(name.trim())).filter(|word| !word.is_empty()));
        }
    }
    found
}

fn leading_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect()
}

fn split_outside_of_braces(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts
}

#[test]
fn a_module_imports_only_from_the_left() {
    let floor: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor))).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let here = room(&path);
        if here == "lib" {
            continue;
        }
        let Some(&own) = floor.get(here.as_str()) else { panic!("{here} stands on no floor: add it to FLOORS") };
        for name in imports(production(&text)) {
            // The ground's modules are leaves that may know each other; the compiler's order is their order.
            let allowed =
                name == here || floor.get(name.as_str()).is_some_and(|&other| other < own || own + other == 0);
            if floor.contains_key(name.as_str()) && !allowed {
                wrong.push(format!("{} imports {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A parent re-exports and sequences; what its children share is a leaf beside them.
#[test]
fn no_circle_of_files_within_a_room() {
    let mut edges: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    let files = sources("src");
    let exists = |path: &Path| files.iter().any(|(file, _)| file == path);
    for (path, text) in &files {
        let folder = path.parent().unwrap_or(Path::new(""));
        for rest in production(text).split("use super::").skip(1) {
            let list = rest.strip_prefix('{').map_or(rest, |rest| rest.split("};").next().unwrap_or_default());
            for name in if rest.starts_with('{') { split_outside_of_braces(list) } else { vec![list] } {
                let sibling = folder.join(format!("{}.rs", leading_word(name.trim())));
                if exists(&sibling) && sibling != *path {
                    edges.entry(path.clone()).or_default().insert(sibling);
                }
            }
        }
    }
    for start in edges.keys() {
        let (mut open, mut seen) = (edges[start].iter().collect::<Vec<_>>(), BTreeSet::new());
        while let Some(file) = open.pop() {
            assert!(file != start, "{} is in a circle: {seen:?}", start.display());
            if seen.insert(file) {
                open.extend(edges.get(file).into_iter().flatten());
            }
        }
    }
}

#[test]
fn functions_are_short() {
    let (mut lengths, mut long) = (Vec::new(), Vec::new());
    for (path, text) in sources("src") {
        if path.ends_with("tests.rs") {
            continue;
        }
        let mut open: Option<(usize, usize, String)> = None;
        for (number, line) in production(&text).lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let head = line.trim_start();
            let words: Vec<&str> = head.split([' ', '(', '<']).collect();
            let starts = words
                .iter()
                .take_while(|word| **word != "fn")
                .all(|word| ["pub", "async", "const", "crate)", "super)", ""].contains(word))
                && words.contains(&"fn");
            match &open {
                None if starts && !head.ends_with('}') && !head.ends_with(';') => {
                    open = Some((number, indent, head.to_owned()));
                }
                Some((start, depth, name)) if head.starts_with('}') && indent == *depth => {
                    let length = number - start + 1;
                    lengths.push(length);
                    if length > LONGEST_FUNCTION {
                        long.push(format!("{}:{}: {length} lines: {name}", path.display(), start + 1));
                    }
                    open = None;
                }
                _ => {}
            }
        }
    }
    lengths.sort_unstable();
    println!("{} functions, median {} lines, longest {:?}", lengths.len(), lengths[lengths.len() / 2], lengths.last());
    assert!(long.is_empty(), "{}", long.join("\n"));
    assert!(lengths[lengths.len() / 2] <= 10, "the median is {}", lengths[lengths.len() / 2]);
}

#[test]
fn comments_end_at_column_120() {
    let mut wide = Vec::new();
    for directory in ["src", "tests"] {
        for (path, text) in sources(directory) {
            for (number, line) in text.lines().enumerate() {
                if line.trim_start().starts_with("//") && line.chars().count() > WIDEST_COMMENT {
                    wide.push(format!("{directory}/{}:{}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}

/// What the container writes is opened by `host/untrusted.rs`, or through `state/copy/tree.rs`: by nothing else.
#[test]
fn only_one_module_opens_what_the_container_writes() {
    const NEAR: [&str; 10] =
        ["gateway", "backup", "update", "state", "pair", "link", "status", "watch", "proxy", "identity"];
    const OPENS: [&str; 8] = [
        "read_dir(",
        "File::open(",
        "File::options(",
        "OpenOptions",
        "fs::read(",
        "fs::read_to_string(",
        ".read(data",
        ".read(path",
    ];
    // They are in directories that only root can enter or change, or list names.
    const TRUSTED: [&str; 8] = [
        "backup/unpack.rs",
        "state/copy/tree.rs",
        "state/data_dir.rs",
        "state/locate.rs",
        "state/publish.rs",
        "state/relocate.rs",
        "state/switch.rs",
        "watch/look.rs",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let is_near = NEAR.contains(&room(&path).as_str());
        if !is_near || path.ends_with("tests.rs") || TRUSTED.iter().any(|file| path == Path::new(file)) {
            continue;
        }
        let found = OPENS.iter().filter(|open| production(&text).contains(**open));
        wrong.extend(found.map(|open| format!("{}: {open}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A code that nothing constructs promises an operator what never happens.
#[test]
fn every_failure_code_is_constructed() {
    let files = sources("src");
    let constructed = |variant: &str| {
        let path = format!("Code::{variant}");
        files.iter().any(|(file, text)| room(file) != "error" && production(text).contains(&path))
    };
    // What no code of this program's classified, and what the loader says before this program is there.
    let others = [Code::Internal, Code::LoaderFailed];
    let never: Vec<_> = Code::ALL
        .iter()
        .filter(|code| !others.contains(code))
        .filter(|code| !constructed(&format!("{code:?}")))
        .collect();
    assert!(never.is_empty(), "{never:?}");
}

/// The name by which a link finds a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("the pages are there").flatten().map(|entry| entry.path());
    let pages = ["README.md", "README.zh.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    let pages = pages.map(|page| root.join(page)).into_iter().chain(docs);
    let (mut checked, mut broken) = (0, Vec::new());
    for page in pages.filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(&page).expect("a page is text");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            checked += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let target_text = fs::read_to_string(&target).unwrap_or_default();
            let mut headings = target_text.lines().filter_map(|line| line.strip_prefix('#')?.split_once(' '));
            if !target.exists() || !heading.is_empty() && !headings.any(|(_, text)| anchor(text) == heading) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(checked > 10 && broken.is_empty(), "of {checked} links: {}", broken.join("\n"));
}

/// Who copies the half of a command that a line has gets another command.
#[test]
fn commands_in_sentences_stay_on_one_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("the pages are there").flatten().map(|entry| entry.path());
    let pages = ["README.md", "README.zh.md", "CONTRIBUTING.md"].map(|page| root.join(page)).into_iter().chain(docs);
    let mut broken = Vec::new();
    for page in pages.filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(&page).expect("a page is text");
        let mut is_block = false;
        for (number, line) in text.lines().enumerate() {
            let is_fence = line.trim_start().starts_with("```");
            is_block ^= is_fence;
            if !is_block && !is_fence && line.matches('`').count() % 2 == 1 {
                broken.push(format!("{}:{}: {line}", page.display(), number + 1));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// What is to be read and typed before the Control UI is open.
#[test]
fn the_control_ui_is_a_short_way_from_the_top_of_the_readme() {
    const WORDS: usize = 250;
    const TYPED: usize = 400;
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("it is there");
    let (way, _) = page.split_once("\n## First model key").expect("the section after the way");
    let (mut words, mut typed) = (0, 0);
    for (index, part) in way.split("```").enumerate() {
        if index % 2 == 1 {
            typed += part.trim_start_matches("sh\n").len();
        } else {
            // Nobody reads the target of a link.
            let text = part.split("](").enumerate().map(|(index, part)| {
                if index == 0 { part } else { part.split_once(')').map_or(part, |(_, text)| text) }
            });
            words += text.flat_map(str::split_whitespace).filter(|it| it.contains(char::is_alphanumeric)).count();
        }
    }
    assert!(words <= WORDS && typed <= TYPED, "{words} words and {typed} characters of shell");
}

#[test]
fn the_readme_has_the_same_commands_and_links_in_both_languages() {
    let read = |page: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("it is there");
    let blocks = |text: &str| text.split("```").skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let links = |text: &str| {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let mut links: Vec<_> = targets.filter(|link| !link.starts_with("README")).map(str::to_owned).collect();
        links.sort();
        links
    };
    let (english, chinese) = (read("README.md"), read("README.zh.md"));
    assert!(blocks(&english).len() > 3 && links(&english).len() > 10, "{english}");
    assert_eq!(blocks(&english), blocks(&chinese));
    assert_eq!(links(&english), links(&chinese));
}

/// A sentence of a page, and the line of the code that makes it true.
#[rustfmt::skip]
const NUMBERS: [(&str, &str, &str, &str); 32] = [
    ("README.md", "gives up after an hour", "openclaw-gcp", "-lt 3600 ] || give_up"),
    ("docs/gcloud.md", "fails with `failed:CODE` or after an hour", "docs/gcloud.md", "seconds=3600"),
    ("docs/small-machines.md", "less than 4 GiB of memory", "src/memory/swap.rs", "ENOUGH_MEMORY_BYTES: u64 = 4096 * MIB"),
    ("docs/small-machines.md", "2 GiB, but at most a quarter of what is free", "src/memory/swap.rs", "MAX_BYTES: u64 = 2048 * MIB"),
    ("docs/small-machines.md", "at most a quarter of what is free", "src/memory/swap.rs", "FREE_SHARE: u64 = 4"),
    ("docs/small-machines.md", "may use 75 % of the memory", "src/gateway/spec.rs", "MEMORY_PERCENT: u64 = 75"),
    ("docs/small-machines.md", "Node's heap in it half of that", "src/gateway/env.rs", "memory / 2 / MIB"),
    ("docs/security.md", "each at most a tenth of the VM's", "src/gateway/spec.rs", "SCRATCH_PERCENT: u64 = 10"),
    ("docs/security.md", "`/tmp`, `~/.npm` and `~/.local` are in memory", "src/gateway/spec.rs", r#"["/tmp", "/home/node/.npm", "/home/node/.local"]"#),
    ("docs/backups.md", "links | 900,000 |", "src/backup/plan.rs", "NODES: usize = 900_000"),
    ("docs/backups.md", "(hard links) | 114,000,", "src/state/copy/linked.rs", "FILES: usize = 114_000"),
    ("docs/backups.md", "| 4 MiB: some", "src/state/copy/tree.rs", "NAMES_BYTES: usize = 4 << 20"),
    ("docs/disks.md", "up to 64 GiB |", "src/disk/proof.rs", "FULL_BYTES: u64 = 64 * GIB"),
    ("docs/disks.md", "after 30 s of reading", "src/disk/proof.rs", "PACE_DEADLINE: Duration = Duration::from_secs(30)"),
    ("docs/disks.md", "takes at most 20 minutes", "src/disk/proof.rs", "READING_DEADLINE: Duration = Duration::from_secs(20 * 60)"),
    ("docs/disks.md", "for a week", "src/disk/undo.rs", "KEPT: Duration = Duration::from_secs(7 * 24 * 3600)"),
    ("docs/disks.md", "up to 64 MiB", "src/disk/undo.rs", "MAX_BYTES: u64 = 64 * MIB"),
    ("docs/disks.md", "none is\nmade for a disk above 2 TiB", "src/disk/undo.rs", "MAX_DISK_BYTES: u64 = 2048 * GIB"),
    ("docs/watch.md", "after 1, 2, 5, 15, then every 60 minutes", "src/watch/decide.rs", "BACKOFF_MINUTES: [u64; 5] = [1, 2, 5, 15, 60]"),
    ("docs/watch.md", "What lasts for 10 seconds counts", "src/watch/decide.rs", "CONFIRM: Duration = Duration::from_secs(10)"),
    ("docs/watch.md", "a run starts it after 10 minutes", "src/watch/decide.rs", "GRACE: Duration = Duration::from_secs(600)"),
    ("docs/watch.md", "and 10 quiet seconds", "src/watch/attributes.rs", "QUIET: Duration = Duration::from_secs(10)"),
    ("docs/watch.md", "told every 10 minutes", "src/report/live.rs", "HEARTBEAT_INTERVAL: Duration = Duration::from_secs(600)"),
    ("docs/watch.md", "looks at the machine every 50 seconds", "src/watch.rs", "TICK: Duration = Duration::from_secs(50)"),
    ("docs/watch.md", "for 3 minutes it gives no answer", "src/gateway/silence.rs", "HUNG_AFTER: Duration = Duration::from_secs(180)"),
    ("docs/watch.md", "when its last one is a minute old", "src/watch/decide.rs", "WELL: Duration = Duration::from_secs(60)"),
    ("docs/watch.md", "beginning a minute after it", "src/watch/decide.rs", "FAILED_GRACE: Duration = Duration::from_secs(60)"),
    ("docs/watch.md", "more than a minute off", "src/clock.rs", "TOLERANCE: SignedDuration = SignedDuration::from_secs(60)"),
    ("docs/watch.md", "less than 5 % of room", "src/state/room.rs", "LOW_PERCENT: u128 = 5"),
    ("docs/failures.md", "two more in a boot", "src/report/tries.rs", "TRIES_LIMIT: u32 = 3"),
    ("docs/failures.md", "a minute apart", "src/install/openclaw-init.service", "RestartSec=60"),
    ("docs/failures.md", "One run may take 55 minutes", "src/bootstrap.rs", "RUN_DEADLINE: Duration = Duration::from_secs(55 * 60)"),
];

/// The units, and how open `systemd-analyze security` may find them, in tenths. The page has the same.
const UNITS: [(&str, u32); 6] = [
    ("src/identity/openclaw-identity.service", 15),
    ("src/proxy/openclaw-proxy.service", 40),
    ("src/install/openclaw-watch.service", 56),
    ("src/shield/openclaw-shield.service", 56),
    ("src/install/openclaw-init.service", 96),
    ("src/install/openclaw-gateway-stop.service", 96),
];

#[test]
#[expect(clippy::disallowed_methods, reason = "a test starts a program of its own")]
fn the_units_are_as_closed_as_the_page_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("SECURITY.md")).expect("it is there");
    for (unit, tenths) in UNITS {
        let mut analyze = std::process::Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", &format!("--threshold={tenths}")]).arg(root.join(unit));
        let output = analyze.output().expect("the gate needs systemd-analyze");
        assert!(output.status.success(), "{unit}: {}", String::from_utf8_lossy(&output.stdout));
        let name = Path::new(unit).file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let level = format!("{}.{}", tenths / 10, tenths % 10);
        assert!(page.contains(&level) && page.contains(&format!("`{name}`")), "{name} {level}");
    }
}

#[test]
fn numbers_in_the_pages_are_those_of_the_code() {
    let read = |page: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("it is there");
    for (page, sentence, code, line) in NUMBERS {
        assert!(
            read(page).contains(sentence),
            "{page} does not say {sentence:?}: is {line:?} of {code} told elsewhere?"
        );
        assert!(read(code).contains(line), "{code} is not {line:?} any more: {page} says {sentence:?}");
    }
}

/// The price that the README names for the smallest VM is the sum of what the page with the machine types has.
#[test]
fn the_price_in_the_readme_is_a_sum() {
    let read = |page: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("it is there");
    let types = read("docs/small-machines.md");
    let small = types.lines().find_map(|line| line.strip_prefix("| `e2-small` | 2 GB | ")?.split_once(' '));
    let small: u32 = small.and_then(|(price, _)| price.parse().ok()).expect("the page has the machine type");
    for page in ["README.md", "README.zh.md"] {
        let text = read(page);
        assert!(text.contains(&small.to_string()) && text.contains(&(small + 2 * 2 + 4).to_string()), "{page}");
    }
    assert!(types.contains("come 2 for every\n20 GB") && types.contains("about 4 for an external address"));
    assert!(read("README.md").contains(&format!("`e2-small` {small}, disks 4, address 4")));
}

#[test]
fn every_state_is_on_the_page() {
    let read = |page: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("it is there");
    let (code, page) = (read("src/report/status.rs"), read("docs/operations.md"));
    let (_, names) = code.split_once("The value of the guest attribute `state`").expect("the states have names");
    let (names, _) = names.split_once("\n    }\n").expect("the function ends");
    let states: Vec<_> = names.split('"').skip(1).step_by(2).map(|state| format!("`{state}`")).collect();
    let (_, listed) = page.split_once("`state` (").expect("the page lists them");
    let (listed, _) = listed.split_once(')').expect("the list ends");
    assert_eq!(states, listed.split(',').map(|state| state.trim().to_owned()).collect::<Vec<_>>());
}
