//! What the linker is told.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(name).unwrap_or_default();
    // The list of devices is put together by the linker, of parts that nothing else names: GNU's for Windows would
    // leave some of them out.
    if target("CARGO_CFG_TARGET_OS") == "windows" && target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo::rustc-link-arg=-Wl,--no-gc-sections");
    }
}
