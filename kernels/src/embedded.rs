//! Kernels that nvcc compiled into the program (feature `embed-kernels`), for machines without NVRTC.

/// Kernel id, constants, and an image that holds machine code for several architectures.
type Embedded = (&'static str, &'static str, &'static [u8]);

#[cfg(feature = "embed-kernels")]
static EMBEDDED: &[Embedded] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
#[cfg(not(feature = "embed-kernels"))]
static EMBEDDED: &[Embedded] = &[];

/// Constants in the form of embedded.json: in alphabetical order, regardless of the packer's order.
pub fn constants(defines: &[(&str, usize)]) -> String {
    let mut words: Vec<String> = defines
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    words.sort();
    words.join(" ")
}

/// The image of kernel `id` with these constants.
pub fn embedded(id: &str, defines: &[(&str, usize)]) -> Option<&'static [u8]> {
    let constants = constants(defines);
    EMBEDDED
        .iter()
        .find(|(kernel, with, _)| *kernel == id && *with == constants)
        .map(|(_, _, image)| *image)
}

/// Whether the program contains any embedded kernel.
pub fn has_embedded() -> bool {
    !EMBEDDED.is_empty()
}
