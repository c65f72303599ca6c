/// The facts that a packer needs about the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// streaming multiprocessors
    pub multiprocessors: u32,
    /// shared memory that one block can request, bytes
    pub shared_bytes: usize,
    /// how many clusters of 1, 2, 4, 8, 16 blocks run at once when a block fills a multiprocessor; 0 if a
    /// size cannot run
    pub clusters: [u32; 5],
    /// whether only kernels compiled into the program can run
    pub embedded_only: bool,
}

impl Target {
    /// Clusters of `size` blocks (a power of two up to 16) that run at once; at least 1.
    pub(super) fn clusters_of(&self, size: u32) -> u32 {
        self.clusters[(size.trailing_zeros() as usize).min(4)].max(1)
    }

    /// The largest cluster size of at most `wanted` (a power of two) that the device can place.
    pub(super) fn cluster_up_to(&self, wanted: usize) -> usize {
        let mut size = wanted.min(16);
        while size > 1 && self.clusters[size.trailing_zeros() as usize] == 0 {
            size /= 2;
        }
        size
    }

    /// Whether kernel `id` with these constants can run.
    pub(super) fn has(&self, id: &str, defines: &[(&str, usize)]) -> bool {
        !self.embedded_only || aqlm_kernels::embedded(id, defines).is_some()
    }

    /// An H100 SXM with 132 multiprocessors, for use without a device.
    pub fn h100() -> Self {
        Self {
            multiprocessors: 132,
            shared_bytes: 232_448,
            clusters: [132, 66, 32, 16, 0],
            embedded_only: false,
        }
    }
}
