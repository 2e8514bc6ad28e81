//! Link options of the program: a static position-independent executable has some 17,000 relative relocations, which
//! take 24 bytes each unless they are packed (`DT_RELR`, glibc 2.36 and newer), and functions with equal code are one.
//! A release has no unwind tables, an eighth of its size: it never unwinds, and without symbols no trace can be read.

#[expect(clippy::disallowed_methods, reason = "how cargo tells a build script its target")]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link.ld");
    let is = |name, value| std::env::var(name).is_ok_and(|found| found == value);
    if is("TARGET", "x86_64-unknown-linux-gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,--pack-dyn-relocs=relr");
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
        if is("PROFILE", "release") {
            println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{}/link.ld", env!("CARGO_MANIFEST_DIR"));
        }
    }
}
