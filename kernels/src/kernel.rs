//! The description beside each kernel: `kN_name.json` says what `kN_name.cu` can do.
//!
//! The build script reads the same types, so a description that does not parse stops the build.

use serde::Deserialize;

/// What a kernel can do. Ranges are inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that a kernel can do, and any of them go together"
)]
pub struct Kernel {
    /// folder and file name, for example `matvec/k1_naive`
    pub id: String,
    /// the operation: the name of the folder and of the kernel's entry
    pub op: String,
    /// path inside the `kernels` folder
    pub file: String,
    /// names of the entry's pointers, in the order of its source
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
    /// highest compute capability, times ten, for kernels whose instructions exist only on some architectures
    #[serde(default)]
    pub max_compute: Option<u32>,
    /// rows of x
    pub batch: [usize; 2],
    /// local memory that a compiler may use a thread; none where absent
    #[serde(default)]
    pub local: Option<Local>,
    /// whether x and y may be bf16 (AQLM_BF16)
    #[serde(default)]
    pub bf16: bool,
    /// the operand that holds codebooks in the format of x, for kernels whose codebooks are not always f16
    #[serde(default)]
    pub typed_codebooks: Option<String>,
    /// the operand that holds codebooks, for kernels in which matrices that read the same x can share a
    /// launch
    #[serde(default)]
    pub joins: Option<String>,
    /// whether a launch can take several of many matrices, by numbers in device memory (experts.cuh)
    #[serde(default)]
    pub experts: bool,
    /// whether blocks wait for others of their launch, so that all must be resident at once
    #[serde(default)]
    pub meets: bool,
    /// the operand, zeros at first, whose memory all matrices of a stream share
    #[serde(default)]
    pub scratch: Option<String>,
}

/// Local memory that a kernel may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Local {
    /// numbers of codebooks for which it may use local memory
    pub codebooks: [usize; 2],
    /// bytes a thread
    pub bytes: u32,
}

impl Kernel {
    /// Bytes of local memory a thread that a compiler may use with this number of codebooks.
    pub fn local_bytes(&self, codebooks: usize) -> u32 {
        self.local
            .as_ref()
            .filter(|local| (local.codebooks[0]..=local.codebooks[1]).contains(&codebooks))
            .map_or(0, |local| local.bytes)
    }

    /// Whether the kernel handles a scheme of `codebooks` x `nbits` with groups of `out_group` x `in_group`.
    pub fn claims(&self, codebooks: usize, nbits: u32, in_group: usize, out_group: usize) -> bool {
        (self.codebooks[0]..=self.codebooks[1]).contains(&codebooks)
            && (self.nbits[0]..=self.nbits[1]).contains(&nbits)
            && (self.in_groups.is_empty() || self.in_groups.contains(&in_group))
            && (!self.out_group_one || out_group == 1)
    }

    /// Whether the kernel exists for this compute capability, times ten.
    pub fn runs_on(&self, compute: u32) -> bool {
        compute >= self.min_compute && self.max_compute.is_none_or(|most| compute <= most)
    }

    /// The operands that have a role, each with the role's name in the description.
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
