//! Launch plans of a mixture of experts between its products.

use aqlm_vocabulary::RoutedMlp;

use super::{Plan, elementwise};

/// The experts of each row. Pointers: scores (then their softmax), chosen, weights.
pub fn route(rows: usize, mlp: &RoutedMlp) -> Plan {
    elementwise("route_rows/k1_thread_a_row", rows, &shape(rows, mlp))
}

/// The gradient of scores. Pointers: probabilities, chosen, weights, places, `grad_weights`, `grad_scores`.
pub fn route_back(rows: usize, mlp: &RoutedMlp) -> Plan {
    elementwise(
        "route_back/k1_thread_a_score",
        rows * mlp.experts.len(),
        &shape(rows, mlp),
    )
}

fn shape(rows: usize, mlp: &RoutedMlp) -> [usize; 4] {
    [rows, mlp.experts.len(), mlp.used, usize::from(mlp.normalized)]
}

/// Each row times a factor of its own, in place; `ordered` for the numbers of the rows' factors. Pointers:
/// factors, order, x.
pub fn scale_rows(rows: usize, width: usize, ordered: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_ORDERED", usize::from(ordered))],
        ..elementwise("scale_rows/k1_elementwise", rows * width, &[rows * width, width])
    }
}

/// Sums of what the experts of each row computed, `weighted` or not. Pointers: from, places, weights, to.
pub fn gather_sums(rows: usize, width: usize, used: usize, weighted: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_WEIGHTED", usize::from(weighted))],
        ..elementwise(
            "gather_sums/k1_elementwise",
            rows * width,
            &[rows * width, width, used],
        )
    }
}

/// The sigmoid in place, or the gradient of its argument. Pointers: y, x.
pub fn sigmoid(count: usize, back: bool) -> Plan {
    Plan {
        defines: vec![("AQLM_BACK", usize::from(back))],
        ..elementwise("sigmoid_rows/k1_elementwise", count, &[count])
    }
}
