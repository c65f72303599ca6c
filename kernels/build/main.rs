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
            // A new folder is a new operation. With the feature, only known folders are watched, because
            // compiling all kernels takes minutes.
            println!("cargo::rerun-if-changed=.");
        }
        Ok(())
    });
    if let Err(reason) = done {
        // An error, not a warning: a kernel left out silently would be noticed much later.
        println!("cargo::error={reason}");
    }
}
