/// Clears the upper halves of the vector registers, as code without AVX expects. Call it after faer has
/// multiplied.
///
/// faer's matrix kernels (private-gemm-x86 0.1) return without VZEROUPPER, so the upper halves of the
/// registers stay in use. Until they are cleared, every mixture of SSE and AVX code on that thread is slow:
/// `exp` took 145 ns instead of 10 and was nine tenths of a block's forward pass.
pub(super) fn clear_upper_registers() {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx) = pulp::core_arch::x86::Avx::try_new() {
        avx._mm256_zeroupper();
    }
}
