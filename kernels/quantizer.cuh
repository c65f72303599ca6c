// Shared by the kernels that quantize a layer: real numbers of two widths, sums in one order.
//
// Names: a layer's weight is [rows, width]; a group is out_group x in_group weights; groups are numbered
// output group x inputs + input group, where inputs is the number of input groups. Codes are planes, one for
// each codebook, of one code a group. Codewords are [states, out_group x in_group].
#pragma once

#ifndef AQLM_WIDE
#define AQLM_WIDE 0
#endif
#if AQLM_WIDE
typedef double real;
#else
typedef float real;
#endif

#ifdef AQLM_ON_CPU
#define SHARED_MEMORY(name) unsigned char* name = dynamic_shared()
#else
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#define INFINITE __int_as_float(0x7f800000)

// A double whose halves came as integers.
__device__ __forceinline__ double double_of(int low, int high) {
#ifdef AQLM_ON_CPU
    double value;
    const int halves[2] = {low, high};
    std::memcpy(&value, halves, 8);
    return value;
#else
    return __hiloint2double(high, low);
#endif
}

// The sum of every thread's value, known to all threads; `shared` holds a double a thread, and the number of
// threads is a power of two.
__device__ __forceinline__ double block_sum(double value, double* shared) {
    const int threads = blockDim.x;
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}
