// Shared by the kernels of training: reductions in a fixed order, doubles as launch arguments.
#pragma once

// Declares the block's dynamic shared memory as `shared`.
#ifdef AQLM_ON_CPU
#define SHARED_MEMORY unsigned char* shared = dynamic_shared()
#else
#define SHARED_MEMORY extern __shared__ __align__(128) unsigned char shared[]
#endif

// A double that arrives as two integers: launches pass 32-bit words only.
__device__ __forceinline__ double f64_of(int low, int high) {
    return __longlong_as_double(static_cast<long long>(high) << 32 | static_cast<long long>(static_cast<u32>(low)));
}

// Before the first score: below every number. NVRTC has no INFINITY without a header.
__device__ __forceinline__ float minus_infinity() { return __int_as_float(static_cast<int>(0xff800000u)); }

// Sum over the 32 lanes of a warp, the same in all lanes.
__device__ __forceinline__ float sum_of_warp(float value) {
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(WARP_MASK, value, step);
    return value;
}

// Sum over the block, the same in all threads, by a tree of fixed shape. `scratch` holds one number a thread;
// the number of threads is a power of two.
template <class T> __device__ __forceinline__ T sum_of_block(T value, T* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (u32 step = blockDim.x / 2; step > 0; step >>= 1) {
        if (threadIdx.x < step) scratch[threadIdx.x] += scratch[threadIdx.x + step];
        __syncthreads();
    }
    return scratch[0];
}

// The largest value of the block, the same in all threads. NaN is passed over.
__device__ __forceinline__ float largest_of_block(float value, float* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (u32 step = blockDim.x / 2; step > 0; step >>= 1) {
        if (threadIdx.x < step) scratch[threadIdx.x] = fmaxf(scratch[threadIdx.x], scratch[threadIdx.x + step]);
        __syncthreads();
    }
    return scratch[0];
}
