pub(super) mod k2_fused_tensor;
pub(super) mod k3_warpgroup;
pub(super) mod k4_hot_codewords;
