use aqlm_optimized::cpu::product::linear;
use faer::Par;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

/// A dense f32 weight, [out_features, in_features].
pub type DenseWeight = Array2<f32>;

/// `W x` by faer's product, rows split over the current rayon pool.
pub fn faer_matvec(weight: &DenseWeight, x: &[f32]) -> Vec<f32> {
    ArrayView2::from_shape((1, x.len()), x).map_or_else(
        |_| Vec::new(),
        |x| {
            linear(x, weight.view(), Par::rayon(0))
                .into_raw_vec_and_offset()
                .0
        },
    )
}

/// `W x` by ndarray's own product (unrolled dot products of rows), rows split over the current rayon pool.
pub fn ndarray_matvec(weight: &DenseWeight, x: &[f32], y: &mut [f32]) {
    let rows = weight.nrows().div_ceil(4 * rayon::current_num_threads());
    let x = ArrayView1::from(x);
    y.par_chunks_mut(rows).enumerate().for_each(|(index, y)| {
        let mut weight = weight.view();
        weight.slice_axis_inplace(Axis(0), (index * rows..index * rows + y.len()).into());
        for (y, row) in y.iter_mut().zip(weight.outer_iter()) {
            *y = row.dot(&x);
        }
    });
}
