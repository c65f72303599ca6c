//! Codes, codebooks and scales in device memory: decoding and its adjoint.

use std::sync::Arc;

use aqlm_vocabulary::{QuantizedMatrix, Scheme};
use ndarray::{Array1, Array3, Array4};

use super::machine::{Machine, Real, THREADS, further};
use crate::cuda::{Buffer, CudaError, Result};

/// Threads of a block that adds up many places, and of one that adds up few.
const MANY: usize = 512;
const FEW: usize = 64;

/// The shape of a quantized matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) scheme: Scheme,
    pub(super) out_groups: usize,
    pub(super) in_groups: usize,
}

impl Form {
    pub(super) fn of(matrix: &QuantizedMatrix) -> Self {
        let (out_groups, in_groups) = matrix.groups();
        Self {
            scheme: matrix.scheme(),
            out_groups,
            in_groups,
        }
    }

    /// out_features
    pub(super) fn rows(&self) -> usize {
        self.out_groups * self.scheme.out_group_size
    }

    /// in_features
    pub(super) fn width(&self) -> usize {
        self.in_groups * self.scheme.in_group_size
    }

    pub(super) fn groups(&self) -> usize {
        self.out_groups * self.in_groups
    }

    pub(super) fn states(&self) -> usize {
        self.scheme.codebook_size()
    }

    pub(super) fn codebooks(&self) -> usize {
        self.scheme.num_codebooks
    }

    pub(super) fn len(&self) -> usize {
        self.scheme.group_len()
    }
}

/// A quantized matrix.
#[derive(Clone)]
pub(super) struct Quantized {
    pub(super) form: Form,
    /// planes, [M, out_groups x in_groups]
    pub(super) codes: Arc<Buffer<u16>>,
    /// [M, 2^B, go gi]
    pub(super) codebooks: Arc<Buffer<f64>>,
    /// `[out_groups]`
    pub(super) scales: Arc<Buffer<f64>>,
}

/// The places of each codeword: for every codebook its groups sorted by code.
pub(super) struct Places {
    /// [M, 2^B + 1]
    starts: Buffer<u32>,
    /// [M, groups]
    sorted: Buffer<u32>,
    groups: usize,
    states: usize,
}

/// The numbers that [`Machine::scatter`] adds up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summed {
    /// numbers of a row of the dense matrix
    pub(super) width: usize,
    /// input groups of the codes
    pub(super) inputs: usize,
    /// rows and columns of a group
    pub(super) group: [usize; 2],
    /// the power of the scale that weights each group
    pub(super) power: usize,
    /// whether the numbers are those of input groups, the same for all output groups
    pub(super) of_input: bool,
}

/// How to decode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoding {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) groups: usize,
    pub(super) codebooks: usize,
    pub(super) states: usize,
    pub(super) group: [usize; 2],
    /// subtract from the base instead of adding
    pub(super) subtract: bool,
    /// a codebook to leave out
    pub(super) skipped: Option<usize>,
}

impl Decoding {
    pub(super) fn of(form: &Form) -> Self {
        Self {
            rows: form.rows(),
            width: form.width(),
            groups: form.groups(),
            codebooks: form.codebooks(),
            states: form.states(),
            group: [form.scheme.out_group_size, form.scheme.in_group_size],
            subtract: false,
            skipped: None,
        }
    }
}

impl Machine {
    pub(super) fn upload_matrix(&self, matrix: &QuantizedMatrix) -> Result<Quantized> {
        let form = Form::of(matrix);
        let (groups, count) = (form.groups(), form.codebooks());
        let mut planes = vec![0_u16; groups * count];
        for (at, &code) in matrix.codes().iter().enumerate() {
            planes[at % count * groups + at / count] = code;
        }
        let codebooks: Vec<f64> = matrix.codebooks().iter().copied().collect();
        Ok(Quantized {
            form,
            codes: Arc::new(self.upload(&planes, "codes")?),
            codebooks: Arc::new(self.upload(&codebooks, "codebooks")?),
            scales: Arc::new(self.upload(&matrix.scales().to_vec(), "scales")?),
        })
    }

    /// Codes in the host's order, [out_groups, in_groups, M].
    pub(super) fn download_codes(&self, form: &Form, codes: &Buffer<u16>) -> Result<Array3<u16>> {
        let planes = self.download(codes)?;
        let (groups, count) = (form.groups(), form.codebooks());
        let codes = if count == 1 {
            planes
        } else {
            let mut codes = vec![0; planes.len()];
            for (m, plane) in planes.chunks_exact(groups.max(1)).enumerate() {
                for (group, &code) in plane.iter().enumerate() {
                    codes[group * count + m] = code;
                }
            }
            codes
        };
        Ok(
            Array3::from_shape_vec((form.out_groups, form.in_groups, count), codes)
                .expect("as many codes as the form has"),
        )
    }

    pub(super) fn download_matrix(&self, matrix: &Quantized) -> Result<QuantizedMatrix> {
        let form = &matrix.form;
        let scheme = form.scheme;
        let shape = (
            scheme.num_codebooks,
            form.states(),
            scheme.out_group_size,
            scheme.in_group_size,
        );
        let codebooks = Array4::from_shape_vec(shape, self.download(&matrix.codebooks)?)
            .expect("as many numbers as the scheme has");
        QuantizedMatrix::new(
            scheme,
            self.download_codes(form, &matrix.codes)?,
            codebooks,
            Array1::from(self.download(&matrix.scales)?),
        )
        .map_err(CudaError::Aqlm)
    }

    /// base + or - scale x sum of codewords; without a base that sum, without scales unscaled.
    pub(super) fn decode<T: Real>(
        &self,
        decoding: &Decoding,
        base: Option<&Buffer<T>>,
        codes: &Buffer<u16>,
        codebooks: Codebooks<'_>,
        scales: Option<&Buffer<f64>>,
        to: &mut Buffer<T>,
    ) -> Result<()> {
        let (narrow, codebooks) = match codebooks {
            Codebooks::Wide(buffer) => (0, self.address(buffer)),
            Codebooks::Narrow(buffer) => (1, self.address(buffer)),
        };
        self.run(
            "layer_decode/k1_thread_a_weight",
            &[
                ("AQLM_WIDE", T::WIDE),
                ("AQLM_BASE", usize::from(base.is_some())),
                ("AQLM_SCALED", usize::from(scales.is_some())),
                ("AQLM_NARROW", narrow),
            ],
            [decoding.width.div_ceil(THREADS), decoding.rows, THREADS, 0],
            &[
                base.map_or(0, |base| self.address(base)),
                self.address(codes),
                codebooks,
                scales.map_or(0, |scales| self.address(scales)),
                self.address(to),
            ],
            &[
                decoding.rows,
                decoding.width,
                decoding.groups,
                decoding.codebooks,
                decoding.states,
                decoding.group[0],
                decoding.group[1],
                if decoding.subtract { usize::MAX } else { 1 },
                decoding.skipped.unwrap_or(usize::MAX),
            ],
        )
    }

    /// [`Machine::decode`] in place: the base becomes the result.
    pub(super) fn decode_onto(
        &self,
        decoding: &Decoding,
        base: &mut Buffer<f32>,
        codes: &Buffer<u16>,
        codebooks: &Buffer<f32>,
    ) -> Result<()> {
        let at = self.address(base);
        self.run(
            "layer_decode/k1_thread_a_weight",
            &[
                ("AQLM_WIDE", 0),
                ("AQLM_BASE", 1),
                ("AQLM_SCALED", 0),
                ("AQLM_NARROW", 1),
            ],
            [decoding.width.div_ceil(THREADS), decoding.rows, THREADS, 0],
            &[at, self.address(codes), self.address(codebooks), 0, at],
            &[
                decoding.rows,
                decoding.width,
                decoding.groups,
                decoding.codebooks,
                decoding.states,
                decoding.group[0],
                decoding.group[1],
                if decoding.subtract { usize::MAX } else { 1 },
                decoding.skipped.unwrap_or(usize::MAX),
            ],
        )
    }

    /// Sorts the groups of every plane of codes, stably.
    pub(super) fn places(&self, codes: &Buffer<u16>, groups: usize, states: usize) -> Result<Places> {
        const TILE: usize = 4096;
        const DIGITS: usize = 256;
        let planes = codes.len() / groups;
        let tiles = groups.div_ceil(TILE);
        let starts = self.fresh::<u32>(planes * (states + 1), "where codes' places begin")?;
        let sorted = self.fresh::<u32>(planes * groups, "places of codes")?;
        let passes = if states > DIGITS { 2 } else { 1 };
        let half = self.fresh::<u32>(
            if passes == 2 { groups } else { 1 },
            "places sorted by half of a code",
        )?;
        let counts = self.fresh::<u32>(DIGITS * tiles, "counts of digits")?;
        let shared = DIGITS * 64 * 2 + TILE;
        for plane in 0..planes {
            let own = further::<u16>(self.address(codes), plane * groups);
            let target = further::<u32>(self.address(&sorted), plane * groups);
            for pass in 0..passes {
                let to = if pass + 1 == passes {
                    target
                } else {
                    self.address(&half)
                };
                let defines = [("AQLM_FIRST", usize::from(pass == 0))];
                let integers = [groups, pass * 8, 1];
                let counted = self.address(&counts);
                let order = self.address(&half);
                self.run(
                    "layer_count/k1_tiles",
                    &defines,
                    [tiles, 1, 64, shared],
                    &[own, order, counted],
                    &integers,
                )?;
                self.run(
                    "layer_scan/k1_one_block",
                    &[],
                    [1, 1, 1024, 4096],
                    &[counted],
                    &[DIGITS * tiles],
                )?;
                self.run(
                    "layer_place/k1_tiles",
                    &defines,
                    [tiles, 1, 64, shared],
                    &[own, order, counted, to],
                    &integers,
                )?;
            }
            self.run(
                "layer_starts/k1_thread_a_place",
                &[],
                [groups.div_ceil(THREADS), 1, THREADS, 0],
                &[
                    own,
                    target,
                    further::<u32>(self.address(&starts), plane * (states + 1)),
                ],
                &[groups, states, 1],
            )?;
        }
        Ok(Places {
            starts,
            sorted,
            groups,
            states,
        })
    }

    /// The adjoint of decoding, for each plane of codes: [planes, 2^B, numbers of a group] in f64.
    pub(super) fn scatter<T: Real>(
        &self,
        dense: &Buffer<T>,
        scales: Option<&Buffer<f64>>,
        places: &Places,
        summed: &Summed,
    ) -> Result<Buffer<f64>> {
        let planes = places.sorted.len() / places.groups;
        self.scatter_planes(0..planes, dense, scales, places, summed)
    }

    /// [`Machine::scatter`] of one plane.
    pub(super) fn scatter_plane<T: Real>(
        &self,
        plane: usize,
        dense: &Buffer<T>,
        scales: Option<&Buffer<f64>>,
        places: &Places,
        summed: &Summed,
    ) -> Result<Buffer<f64>> {
        self.scatter_planes(plane..plane + 1, dense, scales, places, summed)
    }

    fn scatter_planes<T: Real>(
        &self,
        planes: std::ops::Range<usize>,
        dense: &Buffer<T>,
        scales: Option<&Buffer<f64>>,
        places: &Places,
        summed: &Summed,
    ) -> Result<Buffer<f64>> {
        let states = places.states;
        let len = summed.group[0] * summed.group[1];
        let sums = self.fresh::<f64>(planes.len() * states * len, "sums over the places of codewords")?;
        // A block's threads share the places of a codeword.
        let each = places.groups / states;
        let threads = if each * len > 8 * MANY || len > FEW {
            MANY
        } else {
            FEW
        };
        for (index, plane) in planes.enumerate() {
            self.run(
                "layer_scatter/k1_block_a_codeword",
                &[
                    ("AQLM_WIDE", T::WIDE),
                    ("AQLM_OF_INPUT", usize::from(summed.of_input)),
                ],
                [states, 1, threads, threads * 8],
                &[
                    self.address(dense),
                    scales.map_or(0, |scales| self.address(scales)),
                    further::<u32>(self.address(&places.starts), plane * (states + 1)),
                    further::<u32>(self.address(&places.sorted), plane * places.groups),
                    further::<f64>(self.address(&sums), index * states * len),
                ],
                &[
                    summed.inputs,
                    summed.width,
                    summed.group[0],
                    summed.group[1],
                    summed.power,
                ],
            )?;
        }
        Ok(sums)
    }

    /// Moves the centroids [2^B, len] of one plane, among those of all planes, to the means that `sums` give;
    /// those of empty clusters stay. `moved` becomes 1 if one moved noticeably.
    pub(super) fn move_to_means(
        &self,
        sums: &Buffer<f64>,
        places: &Places,
        centroids: &mut Buffer<f32>,
        plane: usize,
        moved: &mut Buffer<i32>,
    ) -> Result<()> {
        let states = places.states;
        let len = sums.len() / states;
        self.run(
            "layer_means/k1_thread_a_number",
            &[],
            [(states * len).div_ceil(THREADS), 1, THREADS, 0],
            &[
                self.address(sums),
                further::<u32>(self.address(&places.starts), plane * (states + 1)),
                further::<f32>(self.address(centroids), plane * states * len),
                self.address(moved),
            ],
            &[states, len],
        )
    }
}

/// Codebooks in one of two widths.
#[derive(Clone, Copy)]
pub(super) enum Codebooks<'a> {
    Wide(&'a Buffer<f64>),
    Narrow(&'a Buffer<f32>),
}
