// Shared by the kernels that read a weight as its codes: one number of it, and the order of doubles as
// integers.
#pragma once

// A number of a decoded group, number `inside` of `length`: the scale times the sum of codewords, in f64 and
// rounded once.
__device__ __forceinline__ float decoded(const u16* code, const double* codebooks, double scale, int books, int states, int length, int inside) {
    double sum = 0.0;
    for (int m = 0; m < books; ++m) sum += codebooks[(static_cast<size_t>(m) * states + code[m]) * length + inside];
    return static_cast<float>(scale * sum);
}

// A double as an integer of the same order: NaN above infinity, as Rust's total_cmp for a positive NaN.
__device__ __forceinline__ unsigned long long ordered(double value) {
    const unsigned long long bits = static_cast<unsigned long long>(__double_as_longlong(value));
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}
