//! Finds the kernels of this folder and, with the feature `embed-kernels`, compiles them.

mod embed;
mod folder;
mod signature;

fn main() {
    println!("cargo::rerun-if-changed=build");
    let found = folder::find();
    let done = found.and_then(|found| {
        folder::write(&found)?;
        if std::env::var_os("CARGO_FEATURE_EMBED_KERNELS").is_some() {
            embed::embed(&found.kernels).map_err(|reason| format!("feature embed-kernels: {reason}"))?;
        } else {
            // A new folder is a new operation. With the feature only known folders are watched: compiling
            // all kernels takes minutes.
            println!("cargo::rerun-if-changed=.");
        }
        Ok(())
    });
    if let Err(reason) = done {
        // Not a warning: a kernel that is left out would be missed much later.
        println!("cargo::error={reason}");
    }
}
