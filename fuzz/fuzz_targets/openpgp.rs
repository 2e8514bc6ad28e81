//! A file with an OpenPGP key: armored, and the packets inside.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use openclaw_init::apt::docker_key::only_key;

fuzz_target!(|bytes: &[u8]| {
    let block = |bytes| {
        format!(
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{}\n-----END PGP PUBLIC KEY BLOCK-----\n",
            STANDARD.encode(bytes)
        )
    };
    drop(only_key(bytes));
    if let Ok(fingerprint) = only_key(block(bytes).as_bytes()) {
        // A second copy of the one key is a second key.
        assert!(only_key(block(&[bytes, bytes].concat()).as_bytes()).is_err(), "{fingerprint}");
    }
});
