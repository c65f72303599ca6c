use std::fmt;
use std::str::FromStr;

/// Most sums of two codewords that are searched as one table. 2^16 sums of two 8-bit codes are 256 KiB in
/// f32, which stay in a core's cache.
pub const MAX_SUMS: usize = 1 << 16;

use serde::{Deserialize, Serialize};

use crate::{AqlmError, Result};

/// Group sizes and code sizes of a quantized weight matrix: `MxBgG`, or `MxBgGoO` when a group spans several
/// output rows.
///
/// A group of `out_group_size` x `in_group_size` weights is the scale of its output group times a sum of
/// codewords: one codeword from each of `num_codebooks` codebooks of `2^nbits` codewords (paper section 3.1).
///
/// ```
/// use aqlm_vocabulary::Scheme;
/// let scheme: Scheme = "2x8g8".parse()?;
/// assert_eq!(scheme.codebook_size(), 256);
/// // paper appendix H: Llama 2 70B's gate_proj takes 2.002 bits per parameter
/// assert!((scheme.bits_per_parameter(28672, 8192) - 2.002).abs() < 5e-4);
/// # Ok::<(), aqlm_vocabulary::AqlmError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scheme {
    /// M, the number of codebooks that are summed, 1 to 64
    pub num_codebooks: usize,
    /// B, the bits of one code, 1 to 16
    pub nbits: u32,
    /// G, consecutive inputs in a group
    pub in_group_size: usize,
    /// consecutive outputs in a group, nearly always 1
    pub out_group_size: usize,
}

impl Scheme {
    /// A scheme with out_group_size 1.
    ///
    /// # Errors
    /// `Scheme` when a number is out of range: see [`Scheme::with_out_group`].
    pub fn new(num_codebooks: usize, nbits: u32, in_group_size: usize) -> Result<Self> {
        Self::with_out_group(num_codebooks, nbits, in_group_size, 1)
    }

    /// A scheme with any group shape.
    ///
    /// # Errors
    /// `Scheme` unless 1 <= M <= 64, 1 <= B <= 16 and both group sizes are 1 to 1024.
    pub fn with_out_group(
        num_codebooks: usize,
        nbits: u32,
        in_group_size: usize,
        out_group_size: usize,
    ) -> Result<Self> {
        let scheme = Self {
            num_codebooks,
            nbits,
            in_group_size,
            out_group_size,
        };
        let refuse = |reason: &str| {
            Err(AqlmError::Scheme {
                scheme: scheme.to_string(),
                reason: reason.into(),
            })
        };
        if !(1..=64).contains(&num_codebooks) {
            return refuse("expected 1 to 64 codebooks");
        }
        if !(1..=16).contains(&nbits) {
            return refuse("expected 1 to 16 bits per code");
        }
        if !(1..=1024).contains(&in_group_size) || !(1..=1024).contains(&out_group_size) {
            return refuse("expected group sizes of 1 to 1024");
        }
        Ok(scheme)
    }

    /// 2^B, the number of codewords in one codebook.
    pub fn codebook_size(&self) -> usize {
        1 << self.nbits
    }

    /// Whether all sums of a codeword of one codebook and a codeword of another are few enough ([`MAX_SUMS`])
    /// to be searched as one table.
    pub fn sums_fit(&self) -> bool {
        self.codebook_size().pow(2) <= MAX_SUMS
    }

    /// Whether there are two codebooks whose codes can be chosen together.
    pub fn has_pairs(&self) -> bool {
        self.num_codebooks > 1 && self.sums_fit()
    }

    /// Number of weights in one group: in_group_size x out_group_size.
    pub fn group_len(&self) -> usize {
        self.in_group_size * self.out_group_size
    }

    /// Conjugate-gradient steps of an update in closed form: to the minimum where the codebooks have at most
    /// `max_unknowns` unknowns for each row of a group, M 2^B in_group_size, else `cg_steps`.
    pub fn descent_steps(&self, max_unknowns: usize, cg_steps: usize) -> usize {
        let unknowns = self.num_codebooks * self.codebook_size() * self.in_group_size;
        if unknowns <= max_unknowns {
            unknowns
        } else {
            cg_steps
        }
    }

    /// (out_groups, in_groups) of a weight of shape [out_features, in_features].
    ///
    /// # Errors
    /// `NotDivisible` when either side is zero or not a multiple of its group size.
    pub fn groups(&self, out_features: usize, in_features: usize) -> Result<(usize, usize)> {
        let sides = [
            ("out_features", out_features, self.out_group_size),
            ("in_features", in_features, self.in_group_size),
        ];
        for (what, features, group) in sides {
            if features == 0 || features % group != 0 {
                return Err(AqlmError::NotDivisible {
                    what: what.into(),
                    features,
                    group,
                });
            }
        }
        Ok((
            out_features / self.out_group_size,
            in_features / self.in_group_size,
        ))
    }

    /// Total bits for a weight of shape [out_features, in_features]: codes of B bits, codebooks and scales of
    /// 16 bits.
    pub fn bits(&self, out_features: usize, in_features: usize) -> f64 {
        let out_groups = out_features as f64 / self.out_group_size as f64;
        let in_groups = in_features as f64 / self.in_group_size as f64;
        let codebooks = 16.0 * (self.num_codebooks * self.codebook_size() * self.group_len()) as f64;
        let codes = out_groups * in_groups * f64::from(self.nbits) * self.num_codebooks as f64;
        codebooks + codes + 16.0 * out_groups
    }

    /// Average bits per parameter of one weight matrix (paper appendix H, equation 10).
    pub fn bits_per_parameter(&self, out_features: usize, in_features: usize) -> f64 {
        self.bits(out_features, in_features) / (out_features as f64 * in_features as f64)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}g{}", self.num_codebooks, self.nbits, self.in_group_size)?;
        if self.out_group_size == 1 {
            Ok(())
        } else {
            write!(f, "o{}", self.out_group_size)
        }
    }
}

impl FromStr for Scheme {
    type Err = AqlmError;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (codebooks, rest) = text.split_once('x')?;
            let (nbits, groups) = rest.split_once('g')?;
            let (in_group, out_group) = groups.split_once('o').unwrap_or((groups, "1"));
            Some((
                codebooks.parse().ok()?,
                nbits.parse().ok()?,
                in_group.parse().ok()?,
                out_group.parse().ok()?,
            ))
        };
        let (codebooks, nbits, in_group, out_group) = parse().ok_or_else(|| AqlmError::Scheme {
            scheme: text.into(),
            reason: "expected MxBgG or MxBgGoO, for example 2x8g8".into(),
        })?;
        Self::with_out_group(codebooks, nbits, in_group, out_group)
    }
}

impl TryFrom<String> for Scheme {
    type Error = AqlmError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Scheme> for String {
    fn from(scheme: Scheme) -> Self {
        scheme.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["2x8g8", "1x16g8", "15x8g64", "3x5g8o4"] {
            assert_eq!(text.parse::<Scheme>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_schemes_are_refused() {
        for text in [
            "", "2x8", "x8g8", "0x8g8", "2x17g8", "2x0g8", "2x8g0", "2x8g8o0", "2x8g8 ", "-1x8g8",
        ] {
            assert!(
                matches!(text.parse::<Scheme>(), Err(AqlmError::Scheme { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn bits_match_the_papers_headline_figures() {
        // One 4096 x 4096 layer: 1x16g8 2.504, 2x8g8 2.008 (paper table 1).
        let bits = |text: &str| text.parse::<Scheme>().unwrap().bits_per_parameter(4096, 4096);
        assert_eq!(bits("1x16g8"), 2.50390625);
        assert_eq!(bits("2x8g8"), 2.0078125);
        assert_eq!(bits("2x12g8"), 3.06640625);
    }

    #[test]
    fn groups_must_divide() {
        let scheme = Scheme::new(2, 8, 8).unwrap();
        assert_eq!(
            scheme.groups(64, 172),
            Err(AqlmError::NotDivisible {
                what: "in_features".into(),
                features: 172,
                group: 8
            })
        );
        assert_eq!(scheme.groups(64, 176), Ok((64, 22)));
    }
}
