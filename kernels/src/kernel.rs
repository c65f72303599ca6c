//! What stands beside a kernel: `kN_name.json`, which says what `kN_name.cu` can do.
//!
//! The build script reads the same types, so that a description that does not parse stops the build.

use serde::Deserialize;

/// What a kernel can do. Ranges are inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// folder and file name, for example `matvec/k1_naive`
    pub id: String,
    /// the operation: the folder's name, and that of the kernel's entry
    pub op: String,
    /// path inside the `kernels` folder
    pub file: String,
    /// names of the entry's pointers in order, as its source has them
    pub operands: Vec<String>,
    /// one line for listings
    pub summary: String,
    /// numbers of codebooks; `[0, 0]` for a kernel that reads none
    #[serde(default)]
    pub codebooks: [usize; 2],
    /// bits of a code
    #[serde(default)]
    pub nbits: [u32; 2],
    /// input group sizes; empty when any will do
    #[serde(default)]
    pub in_groups: Vec<usize>,
    /// whether output groups must be of one row
    #[serde(default)]
    pub out_group_one: bool,
    /// lowest compute capability, times ten
    pub min_compute: u32,
    /// highest compute capability, times ten, where instructions exist on some architectures only
    #[serde(default)]
    pub max_compute: Option<u32>,
    /// rows of x
    pub batch: [usize; 2],
    /// what a compiler may keep of a thread in local memory; nothing where absent
    #[serde(default)]
    pub local: Option<Local>,
    /// whether x and y may be bf16 (AQLM_BF16)
    #[serde(default)]
    pub bf16: bool,
    /// the operand that is codebooks in the format of x, where they are not always f16
    #[serde(default)]
    pub typed_codebooks: Option<String>,
    /// the operand that is codebooks, of a kernel whose matrices can share a launch where they read the same
    /// x
    #[serde(default)]
    pub joins: Option<String>,
    /// whether blocks wait for others of their launch, so that all must run at once
    #[serde(default)]
    pub meets: bool,
    /// the operand, zeros at first, that is memory which all matrices of a stream share
    #[serde(default)]
    pub scratch: Option<String>,
}

/// Local memory that a kernel may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Local {
    /// numbers of codebooks for which it may
    pub codebooks: [usize; 2],
    /// bytes of a thread
    pub bytes: u32,
}

impl Kernel {
    /// Bytes of a thread that a compiler may keep in local memory with so many codebooks.
    pub fn local_bytes(&self, codebooks: usize) -> u32 {
        self.local
            .as_ref()
            .filter(|local| (local.codebooks[0]..=local.codebooks[1]).contains(&codebooks))
            .map_or(0, |local| local.bytes)
    }

    /// Whether it does a scheme of `codebooks` x `nbits`, groups of `out_group` x `in_group`.
    pub fn claims(&self, codebooks: usize, nbits: u32, in_group: usize, out_group: usize) -> bool {
        (self.codebooks[0]..=self.codebooks[1]).contains(&codebooks)
            && (self.nbits[0]..=self.nbits[1]).contains(&nbits)
            && (self.in_groups.is_empty() || self.in_groups.contains(&in_group))
            && (!self.out_group_one || out_group == 1)
    }

    /// Whether it exists for that compute capability, times ten.
    pub fn runs_on(&self, compute: u32) -> bool {
        compute >= self.min_compute && self.max_compute.is_none_or(|most| compute <= most)
    }

    /// The operands that are named for a role, each with the role's name in the description.
    pub fn roles(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("typed_codebooks", &self.typed_codebooks),
            ("joins", &self.joins),
            ("scratch", &self.scratch),
        ]
        .into_iter()
        .filter_map(|(role, operand)| Some((role, operand.as_deref()?)))
    }
}
