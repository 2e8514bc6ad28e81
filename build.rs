//! Link options of the program: a static position-independent executable has some 17,000 relative relocations, which
//! take 24 bytes each unless they are packed (`DT_RELR`, glibc 2.36 and newer), and functions with equal code are one.

#[expect(clippy::disallowed_methods, reason = "how cargo tells a build script its target")]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,--pack-dyn-relocs=relr");
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
