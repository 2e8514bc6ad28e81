//! A module imports only from the left of the order in `lib.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// From left to right; every other module is ground.
const ORDER: [&str; 7] = ["cloud", "machine", "cli", "workstation", "scenarios", "runner", "commands"];

/// Its place in the order; 0 is ground.
fn place(module: &str) -> usize {
    ORDER.iter().position(|name| *name == module).map_or(0, |index| index + 1)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { sources(&path, found) } else { found.push(path) }
    }
}

/// The first part of every path that begins with `crate::`, also of those in braces.
fn imported(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (_, rest) in text.match_indices("crate::").map(|(at, found)| text.split_at(at + found.len())) {
        let list = rest.strip_prefix('{').and_then(|rest| rest.split_once("};")).map_or(rest, |(list, _)| list);
        let names = if list.len() == rest.len() { vec![rest] } else { list.split(',').collect() };
        let name = |text: &'_ str| text.trim().find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
        found.extend(names.into_iter().map(|text| text.trim().split_at(name(text).unwrap_or(text.trim().len())).0));
    }
    found
}

#[test]
fn modules_import_only_from_the_left() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&top, &mut files);
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("lib.rs") && !file.ends_with("main.rs")) {
        let relative = file.strip_prefix(&top).unwrap().with_extension("");
        let module = relative.iter().next().unwrap().to_str().unwrap();
        let text = fs::read_to_string(file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let to_the_right = imported(text).into_iter().filter(|name| place(name) > place(module));
        wrong.extend(to_the_right.map(|name| format!("{} imports {name}", relative.display())));
    }
    assert!(files.len() > 50 && wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn imports_are_found_in_every_spelling() {
    let text = "use crate::{cloud, host::self_test, a_b};\nuse crate::machine::disks;\nlet x = crate::runner::run();";
    assert_eq!(imported(text), ["cloud", "host", "a_b", "machine", "runner"]);
}
