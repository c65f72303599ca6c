pub(super) mod k2_shared_codebook;
pub(super) mod k3_lookup_table;
pub(super) mod k4_sliced_codebook;
pub(super) mod k5_staged_codes;
pub(super) mod k6_product_tables;
pub(super) mod k7_lane_inputs;
