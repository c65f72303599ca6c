//! The largest numbers of an array on the device, found digit by digit and not by a sort of all (radix
//! select).

use super::super::llama::address;
use super::super::{Buffer, Result};
use super::machine::Machine;
use super::plan::codes;

/// Digits of a double.
const DIGITS: usize = 8;
/// 16-bit words of a double.
const WORDS: usize = 4;

/// The k-th largest of some arrays' numbers: its digits, and how many equal to it are among the k.
pub(super) struct Cut(Buffer<u32>);

/// The places of an array's numbers above a cut, and of the first that equal it, in ascending order.
pub(super) struct Chosen {
    pub(super) places: Buffer<u32>,
    /// ascending where the numbers descend
    keys: Option<Buffer<u64>>,
}

impl Chosen {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

/// Numbers above a cut, and numbers equal to it, before every tile of an array, then in total.
struct Tiles {
    above: Buffer<u32>,
    equal: Buffer<u32>,
}

impl Machine {
    /// The places of the `count` largest numbers; among equals the lower place comes first. With `ordered`,
    /// they can be sorted ([`Machine::by_size`]).
    pub(super) fn largest_of(&self, values: &Buffer<f64>, count: usize, ordered: bool) -> Result<Chosen> {
        if count == 0 {
            return self.none();
        }
        let cut = self.cut(&[values], count)?;
        let tiles = self.tiles(values, &cut)?;
        self.gather(values, &cut, &tiles, count, None, ordered)
    }

    /// The places of the `count` largest numbers of all arrays together, array by array; among equals the
    /// earlier array and the lower place come first.
    pub(super) fn largest_of_all(
        &self,
        arrays: &[&Buffer<f64>],
        count: usize,
        ordered: bool,
    ) -> Result<Vec<Chosen>> {
        if count == 0 {
            return arrays.iter().map(|_| self.none()).collect();
        }
        let cut = self.cut(arrays, count)?;
        let tiles = arrays.iter().map(|values| self.tiles(values, &cut));
        let tiles: Vec<Tiles> = tiles.collect::<Result<_>>()?;
        let device = self.device();
        let mut left = device.download(&cut.0)?[2] as usize;
        let mut chosen = Vec::with_capacity(arrays.len());
        for (values, tiles) in arrays.iter().zip(&tiles) {
            let total = |counts: &Buffer<u32>| -> Result<usize> {
                let last = device.download(&counts.slice(counts.len() - 1..))?;
                Ok(last[0] as usize)
            };
            let equals = total(&tiles.equal)?.min(left);
            left -= equals;
            let own = total(&tiles.above)? + equals;
            chosen.push(self.gather(values, &cut, tiles, own, Some(equals), ordered)?);
        }
        Ok(chosen)
    }

    fn none(&self) -> Result<Chosen> {
        Ok(Chosen {
            places: self.zeros(0, "the largest groups")?,
            keys: None,
        })
    }

    /// The `count`th largest, from 1, of all arrays' numbers.
    fn cut(&self, arrays: &[&Buffer<f64>], count: usize) -> Result<Cut> {
        let device = self.device();
        let state: Buffer<u32> = self.zeros(4, "the k-th largest number")?;
        let counts: Buffer<u32> = self.zeros(256, "counts of a digit")?;
        for digit in 0..DIGITS {
            // All numbers are counted for the first digit, whatever the state.
            for values in arrays {
                let pointers = [
                    address(device, values),
                    address(device, &state),
                    address(device, &counts),
                ];
                self.run(&codes::count(values.len(), digit), &pointers)?;
            }
            let first = (digit == 0).then_some(count);
            self.run(
                &codes::digit(first),
                &[address(device, &counts), address(device, &state)],
            )?;
        }
        Ok(Cut(state))
    }

    fn tiles(&self, values: &Buffer<f64>, cut: &Cut) -> Result<Tiles> {
        let device = self.device();
        let count = codes::number_tiles(values.len()) + 1;
        // Zeros, because no kernel runs for an array without numbers.
        let above = self.zeros(count, "numbers above the k-th largest")?;
        let equal = self.zeros(count, "numbers equal to the k-th largest")?;
        let [above_there, equal_there] = [&above, &equal].map(|buffer| address(device, buffer));
        self.run(
            &codes::tiles(values.len()),
            &[
                address(device, values),
                address(device, &cut.0),
                above_there,
                equal_there,
            ],
        )?;
        for counts in [above_there, equal_there] {
            self.run(&codes::scan(count), &[counts])?;
        }
        Ok(Tiles { above, equal })
    }

    fn gather(
        &self,
        values: &Buffer<f64>,
        cut: &Cut,
        tiles: &Tiles,
        count: usize,
        equals: Option<usize>,
        ordered: bool,
    ) -> Result<Chosen> {
        let device = self.device();
        let places: Buffer<u32> = self.space(count, "the largest groups")?;
        let keys: Option<Buffer<u64>> = ordered
            .then(|| self.space(count, "keys of the largest groups"))
            .transpose()?;
        self.run(
            &codes::gather(values.len(), equals, ordered),
            &[
                address(device, values),
                address(device, &cut.0),
                address(device, &tiles.above),
                address(device, &tiles.equal),
                address(device, &places),
                keys.as_ref().map_or(0, |keys| address(device, keys)),
            ],
        )?;
        Ok(Chosen { places, keys })
    }

    /// The numbers 0 to `chosen.len()` in the order of size, the largest number first; among equals the lower
    /// place first. `None` if they were not chosen with `ordered`.
    pub(super) fn by_size(&self, chosen: &Chosen) -> Result<Option<Buffer<u32>>> {
        let Some(keys) = &chosen.keys else {
            return Ok(None);
        };
        let device = self.device();
        let count = chosen.len();
        let mut order: Buffer<u32> = self.space(count, "groups by size")?;
        let mut next: Buffer<u32> = self.space(count, "groups by size")?;
        for digit in 0..DIGITS {
            let word = digit / (DIGITS / WORDS);
            self.sort_by(
                address(device, keys) + (word * size_of::<u16>()) as u64,
                [count, digit % (DIGITS / WORDS) * 8, WORDS],
                (digit > 0).then(|| address(device, &order)),
                address(device, &next),
            )?;
            std::mem::swap(&mut order, &mut next);
        }
        Ok(Some(order))
    }
}
