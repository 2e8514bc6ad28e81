//! The name of a container image.

#![no_main]

use libfuzzer_sys::fuzz_target;
use openclaw_init::reference::ImageReference;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<ImageReference>() else { return };
    assert_eq!(reference.to_string(), text);
    let again = reference.in_repository(reference.repository().to_owned());
    assert_eq!(again, reference);
    assert!(reference.registry().is_none_or(|registry| text.starts_with(registry)));
});
