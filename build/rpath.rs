//! Build script shared by every crate that links libtorch: writes libtorch's folder into the rpath of its binaries and
//! tests, so that nobody has to export `LD_LIBRARY_PATH`.

#![allow(clippy::print_stdout, reason = "a build script speaks to cargo on standard output")]

fn main() {
    // Once is enough. A file that is not there, such as another crate's build.rs, would be once for every call of cargo.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        // DT_RPATH, not DT_RUNPATH: libtorch's own dependencies must be found through it as well.
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags");
    }
}
