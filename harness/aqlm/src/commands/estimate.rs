use aqlm_engine::runs::records::Estimate;

/// A figure times `unit` with its standard error, to this many decimals. Too few positions for an error leave
/// the figure alone.
pub(super) fn with_error(estimate: &Estimate, unit: f64, decimals: usize) -> String {
    let value = unit * estimate.value;
    if estimate.error.is_nan() {
        return format!("{value:.decimals$}");
    }
    format!("{value:.decimals$} +- {:.decimals$}", unit * estimate.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_not_known_is_not_printed() {
        let of = |error| with_error(&Estimate { value: 0.25, error }, 100.0, 2);
        assert_eq!(of(0.015), "25.00 +- 1.50");
        assert_eq!(of(f64::NAN), "25.00");
    }
}
