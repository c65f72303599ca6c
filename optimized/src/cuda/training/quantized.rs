use std::sync::{Arc, OnceLock};

use aqlm_vocabulary::{AqlmError, QuantizedMatrix, Scheme};
use ndarray::{Array1, Array3, Array4};

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::machine::Machine;
use super::plan::{self, codes};

/// Codes on the device. Copies of a layer share them; what changes them takes copies of its own first
/// ([`Quantized::own_codes`]).
struct Codes {
    /// [out_groups, in_groups, books]
    resident: Buffer<u16>,
    /// made on first use
    places: OnceLock<DevicePlaces>,
}

/// The groups of each codeword on the device: for each codebook its groups, sorted by code.
struct DevicePlaces {
    /// [books, states + 1]
    starts: Buffer<u32>,
    /// [books, out_groups x in_groups]
    groups: Buffer<u32>,
}

/// A quantized weight: codes, and the codebooks and scales in f64 that training moves.
#[derive(Clone)]
pub(super) struct Quantized {
    pub(super) scheme: Scheme,
    /// (out_groups, in_groups)
    pub(super) groups: (usize, usize),
    codes: Arc<Codes>,
    /// [books, states, go, gi]
    pub(super) codebooks: Arc<Buffer<f64>>,
    /// `[out_groups]`
    pub(super) scales: Arc<Buffer<f64>>,
}

impl Quantized {
    pub(super) fn new(machine: &Machine, matrix: &QuantizedMatrix) -> Result<Self> {
        let codes: Vec<u16> = matrix.codes().iter().copied().collect();
        let codebooks: Vec<f64> = matrix.codebooks().iter().copied().collect();
        Ok(Self {
            scheme: matrix.scheme(),
            groups: matrix.groups(),
            codebooks: Arc::new(machine.upload(&codebooks, "codebooks")?),
            scales: Arc::new(machine.upload(&matrix.scales().to_vec(), "scales")?),
            codes: Arc::new(Codes {
                resident: machine.upload(&codes, "codes")?,
                places: OnceLock::new(),
            }),
        })
    }

    /// (out_features, in_features)
    pub(super) fn shape(&self) -> (usize, usize) {
        (
            self.groups.0 * self.scheme.out_group_size,
            self.groups.1 * self.scheme.in_group_size,
        )
    }

    /// Number of groups.
    pub(super) fn count(&self) -> usize {
        self.groups.0 * self.groups.1
    }

    /// [out_groups, in_groups, books]
    pub(super) fn codes(&self) -> &Buffer<u16> {
        &self.codes.resident
    }

    /// The codes, to be changed in place. Other copies of the layer keep theirs.
    pub(super) fn own_codes(&mut self) -> Result<&Buffer<u16>> {
        if Arc::strong_count(&self.codes) > 1 {
            self.codes = Arc::new(Codes {
                resident: self.codes.resident.try_clone()?,
                places: OnceLock::new(),
            });
        }
        Ok(&self.codes.resident)
    }

    /// Must be called after codes have changed: their places are found anew.
    pub(super) fn codes_changed(&mut self) {
        if let Some(codes) = Arc::get_mut(&mut self.codes) {
            codes.places = OnceLock::new();
        }
    }

    /// Replaces the codes, in the order of [`Quantized::codes`].
    pub(super) fn set_codes(&mut self, machine: &Machine, codes: &[u16]) -> Result<()> {
        self.codes = Arc::new(Codes {
            resident: machine.upload(codes, "codes")?,
            places: OnceLock::new(),
        });
        Ok(())
    }

    /// The codes on the host, [out_groups, in_groups, books].
    pub(super) fn codes_on_host(&self, machine: &Machine) -> Result<Array3<u16>> {
        let codes = machine.device().download(&self.codes.resident)?;
        let (out_groups, in_groups) = self.groups;
        let shape = (out_groups, in_groups, self.scheme.num_codebooks);
        Ok(Array3::from_shape_vec(shape, codes).map_err(|_| misshapen("codes", shape.0))?)
    }

    /// The matrix with the current codes, codebooks and scales.
    pub(super) fn matrix(&self, machine: &Machine) -> Result<QuantizedMatrix> {
        let scheme = self.scheme;
        let shape = (
            scheme.num_codebooks,
            scheme.codebook_size(),
            scheme.out_group_size,
            scheme.in_group_size,
        );
        let codebooks = machine.device().download(&*self.codebooks)?;
        let codebooks =
            Array4::from_shape_vec(shape, codebooks).map_err(|_| misshapen("codebooks", shape.0))?;
        let scales = Array1::from(machine.device().download(&*self.scales)?);
        Ok(QuantizedMatrix::new(
            scheme,
            self.codes_on_host(machine)?,
            codebooks,
            scales,
        )?)
    }

    pub(super) fn decoded(&self, machine: &Machine) -> Result<Buffer<f32>> {
        let (out, inputs) = self.shape();
        let weight = machine.space(out * inputs, "a decoded weight")?;
        let device = machine.device();
        machine.run(
            &plan::decode(self.scheme, out, inputs),
            &[
                address(device, &self.codes.resident),
                address(device, &self.codebooks),
                address(device, &self.scales),
                address(device, &weight),
            ],
        )?;
        Ok(weight)
    }

    fn places(&self, machine: &Machine) -> Result<&DevicePlaces> {
        let cell = &self.codes.places;
        if let Some(places) = cell.get() {
            return Ok(places);
        }
        let places = machine.places(&self.codes.resident, self.scheme)?;
        Ok(cell.get_or_init(|| places))
    }

    /// Adds to the gradients of codebooks and of scales, given the gradient of the decoded weight.
    pub(super) fn add_gradients(
        &self,
        machine: &Machine,
        gradient: &Buffer<f32>,
        codebooks: Option<&Buffer<f64>>,
        scales: Option<&Buffer<f64>>,
    ) -> Result<()> {
        let (out, inputs) = self.shape();
        let device = machine.device();
        if let Some(sums) = codebooks {
            let places = self.places(machine)?;
            machine.run(
                &plan::codeword_sums(self.scheme, out, inputs),
                &[
                    address(device, &places.starts),
                    address(device, &places.groups),
                    address(device, &self.scales),
                    address(device, gradient),
                    address(device, sums),
                ],
            )?;
        }
        if let Some(sums) = scales {
            machine.run(
                &plan::scale_sums(self.scheme, out, inputs),
                &[
                    address(device, &self.codes.resident),
                    address(device, &self.codebooks),
                    address(device, gradient),
                    address(device, sums),
                ],
            )?;
        }
        Ok(())
    }
}

/// The device returned another number of values than it was given room for.
fn misshapen(what: &str, found: usize) -> AqlmError {
    AqlmError::Shape {
        what: format!("{what} from the device"),
        expected: vec![found],
        found: vec![0],
    }
}

impl Machine {
    /// The groups of every codeword, in ascending order: a stable sort of each codebook's groups by code.
    fn places(&self, codes: &Buffer<u16>, scheme: Scheme) -> Result<DevicePlaces> {
        let (books, states) = (scheme.num_codebooks, scheme.codebook_size());
        let count = codes.len() / books;
        let starts = self.space(books * (states + 1), "where codewords begin")?;
        let groups = self.space(books * count, "the groups of codewords")?;
        let half = self.space(count, "groups sorted by half of a code")?;
        let shifts: &[usize] = if states > 256 { &[0, 8] } else { &[0] };
        let device = self.device();
        let at = |buffer: &Buffer<u32>, number: usize| {
            address(device, buffer) + (number * size_of::<u32>()) as u64
        };
        for book in 0..books {
            let codes = address(device, codes) + (book * size_of::<u16>()) as u64;
            let target = at(&groups, book * count);
            for (pass, &shift) in shifts.iter().enumerate() {
                let to = if pass + 1 == shifts.len() {
                    target
                } else {
                    at(&half, 0)
                };
                self.sort_by(codes, [count, shift, books], (pass > 0).then(|| at(&half, 0)), to)?;
            }
            self.run(
                &codes::starts(count, states, books),
                &[codes, target, at(&starts, book * (states + 1))],
            )?;
        }
        Ok(DevicePlaces { starts, groups })
    }

    /// A pass of a stable sort of `count` 16-bit numbers, `stride` apart, by eight bits from `shift` on;
    /// `order` is the one so far, `to` receives the new one.
    pub(super) fn sort_by(
        &self,
        numbers: u64,
        [count, shift, stride]: [usize; 3],
        order: Option<u64>,
        to: u64,
    ) -> Result<()> {
        let counters: Buffer<u32> = self.space(codes::counters(count), "counts of digits")?;
        let counted = address(self.device(), &counters);
        let [counting, placing] = codes::sort(count, shift, stride, order.is_none());
        let order = order.unwrap_or(0);
        self.run(&counting, &[numbers, order, counted])?;
        self.run(&codes::scan(counters.len()), &[counted])?;
        self.run(&placing, &[numbers, order, counted, to])
    }
}
