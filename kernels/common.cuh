// What every kernel of this folder shares: plain integer types, f16 arithmetic, streaming loads, clusters.
//
// No header of CUDA is included, so NVRTC needs no include path. With AQLM_ON_CPU the same kernels are compiled by a C++ compiler against
// tests/shim.h, which supplies these functions for a simulated thread block.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;

#ifndef AQLM_ON_CPU

#define WARP_MASK 0xffffffffu

// A vector of eight f16, or any 16 bytes, that the kernel reads once: past L1, so that it evicts nothing there.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

// The same for something that is read again and again: through L1.
__device__ __forceinline__ uint4 load_often(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::evict_last.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

// load_once for 8 bytes.
__device__ __forceinline__ uint2 load_once(const uint2* from) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
    return v;
}

// load_once for 4 bytes.
__device__ __forceinline__ u32 load_once(const u32* from) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}

// Two f16 products and sums, each rounded once: a * b + c.
__device__ __forceinline__ u32 fma_f16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Two f16 sums, each rounded once.
__device__ __forceinline__ u32 add_f16x2(u32 a, u32 b) {
    u32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ u32 mul_f16x2(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ float f32_of_f16(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ u16 f16_of_f32(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// The address of shared memory as its instructions take it, and a load from there with an offset that costs no instruction.
__device__ __forceinline__ u32 shared_address(const void* shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }

template <u32 OFFSET>
__device__ __forceinline__ float load_shared_f32(u32 address) {
    float f;
    asm volatile("ld.shared.f32 %0, [%1 + %2];" : "=f"(f) : "r"(address), "n"(OFFSET) : "memory");
    return f;
}

// The compiler moves no memory access across this: it bounds how many loads are in flight, hence registers.
__device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

// Starts a copy of 16 bytes from global to shared memory that takes no registers; complete_copies() ends all of this thread's.
__device__ __forceinline__ void start_copy16(void* shared_to, const void* global_from) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared_to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global_from) : "memory");
}

// The same, but where `valid` is false nothing is read and 16 zero bytes are written.
__device__ __forceinline__ void start_copy16_or_zero(void* shared_to, const void* global_from, bool valid) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared_to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global_from), "r"(valid ? 16 : 0) : "memory");
}

// Ends a group of copies; copies_in_flight<N>() waits until at most the last N groups of this thread are unfinished.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int GROUPS>
__device__ __forceinline__ void copies_in_flight() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Barrier number `id` (1 to 15) of the `threads` threads that use it; a multiple of 32.
__device__ __forceinline__ void team_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

__device__ __forceinline__ void complete_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// d += a b over a warp: a [16 x 8], b [8 x 8], d [16 x 8] in the fragments of mma.m16n8k8. Lane = 4 g + t holds a(g, t), a(g + 8, t),
// a(g, t + 4), a(g + 8, t + 4); b(t, g), b(t + 4, g); d(g, 2 t), d(g, 2 t + 1), d(g + 8, 2 t), d(g + 8, 2 t + 1).
// The operands must be exact in tf32 (10 bits of mantissa), as every f16 is: then products are exact and sums are f32's.
__device__ __forceinline__ void multiply_16x8x8(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// The same for [16 x 16] f16 times [16 x 8] f16 in the fragments of mma.m16n8k16, two neighbours along k a word. Lane = 4 g + t holds
// a(g, 2 t), a(g + 8, 2 t), a(g, 2 t + 8), a(g + 8, 2 t + 8); b(2 t, g), b(2 t + 8, g), each with the neighbour after it; d as above.
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Asks for the cache line at `at` to be brought to L2; returns at once.
__device__ __forceinline__ void prefetch_line(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Programmatic dependent launch: lets the next kernel of the stream start its own set-up as soon as a multiprocessor has room.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until this returns, only weights may be read and nothing may be written to global memory. Without dependent launch it returns at once.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// Barrier over all threads of the cluster in two halves. Memory written before the arrival is visible to the cluster after the wait.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes a float to where `here` points, but in the shared memory of the cluster's block `rank`, which must have started.
__device__ __forceinline__ void cluster_write(float* here, u32 rank, float value) {
    u32 local = static_cast<u32>(__cvta_generic_to_shared(here));
    u32 remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
}
#endif

#endif  // AQLM_ON_CPU

__device__ __forceinline__ float low_f32(u32 pair) { return f32_of_f16(static_cast<u16>(pair & 0xffffu)); }
__device__ __forceinline__ float high_f32(u32 pair) { return f32_of_f16(static_cast<u16>(pair >> 16)); }

// Sums four rows over the 32 lanes of a warp with 6 shuffles instead of 20: each exchange also halves the rows that a lane still holds.
// Returns the sum of row (lane >> 3), the same in all eight lanes of that row. The order of additions is fixed.
__device__ __forceinline__ float sum_four_rows(float r0, float r1, float r2, float r3) {
    const u32 lane = threadIdx.x & 31;
    const bool upper = lane & 16;
    float keep0 = upper ? r2 : r0, keep1 = upper ? r3 : r1;
    float send0 = upper ? r0 : r2, send1 = upper ? r1 : r3;
    keep0 += __shfl_xor_sync(WARP_MASK, send0, 16);
    keep1 += __shfl_xor_sync(WARP_MASK, send1, 16);
    const bool odd = lane & 8;
    float keep = odd ? keep1 : keep0, send = odd ? keep0 : keep1;
    keep += __shfl_xor_sync(WARP_MASK, send, 8);
    keep += __shfl_xor_sync(WARP_MASK, keep, 4);
    keep += __shfl_xor_sync(WARP_MASK, keep, 2);
    keep += __shfl_xor_sync(WARP_MASK, keep, 1);
    return keep;
}
