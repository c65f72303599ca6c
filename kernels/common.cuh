// Shared by every kernel: plain integer types, f16 arithmetic, streaming loads, clusters.
//
// No CUDA header is included, so NVRTC needs no include path. With AQLM_ON_CPU a C++ compiler compiles the
// same kernels against shim/shim.h, which supplies these functions for a simulated thread block.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;

// With AQLM_BF16, x and y are bf16 instead of f16, and so are the codebooks of kernels whose head says so.
// Scales and all other codebooks stay f16.
#ifndef AQLM_BF16
#define AQLM_BF16 0
#endif

#ifndef AQLM_ON_CPU

#define WARP_MASK 0xffffffffu

// Loads eight f16, or any 16 bytes, that the kernel reads only once. Bypasses L1, so it evicts nothing there.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

// Loads 16 bytes that are read repeatedly: through L1, evicted last.
__device__ __forceinline__ uint4 load_often(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::evict_last.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

// Two predicated loads without a branch. Lanes with `near` read a vector from shared memory, lanes with `far`
// from global memory through L1. All other lanes keep their value.
__device__ __forceinline__ void load_near(uint4& v, const void* from, bool near) {
    const u32 at = static_cast<u32>(__cvta_generic_to_shared(from));
    asm volatile("{\n.reg .pred near;\nsetp.ne.u32 near, %5, 0;\n@near ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "r"(at), "r"(static_cast<u32>(near)) : "memory");
}
__device__ __forceinline__ void load_far(uint4& v, const uint4* from, bool far) {
    asm volatile("{\n.reg .pred far;\nsetp.ne.u32 far, %5, 0;\n@far ld.global.nc.L1::evict_last.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "l"(from), "r"(static_cast<u32>(far)));
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

// Loads a value that other blocks change while this kernel runs: bypasses L1.
__device__ __forceinline__ int load_fresh(const int* from) {
    int v;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

__device__ __forceinline__ u32 load_fresh(const u32* from) {
    u32 v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

__device__ __forceinline__ uint4 load_fresh(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}

// Barrier over `blocks` blocks of a launch, all of which must be resident at once. What they wrote to global
// memory before the barrier is visible to all of them after it, through load_fresh. Exactly one block is
// `first`. `arrived` starts as zero. Each use flips its top bit and leaves the other bits zero, so the
// counter serves every launch. `before` is the value of `arrived` that thread 0 read with load_fresh at any
// time after wait_for_previous_kernel().
__device__ __forceinline__ void meet_blocks(u32* arrived, u32 blocks, bool first, u32 before) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(arrived), "r"(first ? 0x80000000u - (blocks - 1) : 1u) : "memory");
        u32 now;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
        } while (((before ^ now) & 0x80000000u) == 0);
        __threadfence();
    }
    __syncthreads();
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

// Rounds to nearest, ties to even. A bf16 is the upper half of the f32 with the same value.
__device__ __forceinline__ u16 bf16_of_f32(float f) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// Two bf16 sums, each rounded once. Computed as a * 1 + b, because sm_80 has no bf16 addition.
__device__ __forceinline__ u32 add_bf16x2(u32 a, u32 b) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return d;
}

// An address in shared memory in the form that PTX instructions take, and a load from such an address plus a
// constant offset, which costs no instruction.
__device__ __forceinline__ u32 shared_address(const void* shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }

template <u32 OFFSET>
__device__ __forceinline__ float load_shared_f32(u32 address) {
    float f;
    asm volatile("ld.shared.f32 %0, [%1 + %2];" : "=f"(f) : "r"(address), "n"(OFFSET) : "memory");
    return f;
}

// Stops the compiler from moving memory accesses across this point. That bounds the loads in flight, hence
// the registers.
__device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

// Starts an asynchronous copy of 16 bytes from global to shared memory, which takes no registers.
// complete_copies() waits for all copies of this thread.
__device__ __forceinline__ void start_copy16(void* shared_to, const void* global_from) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared_to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global_from) : "memory");
}

// start_copy16, but where `valid` is false nothing is read and 16 zero bytes are written.
__device__ __forceinline__ void start_copy16_or_zero(void* shared_to, const void* global_from, bool valid) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared_to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global_from), "r"(valid ? 16 : 0) : "memory");
}

// Closes a group of copies. copies_in_flight<N>() waits until at most the last N groups of this thread are
// unfinished.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int GROUPS>
__device__ __forceinline__ void copies_in_flight() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Barrier number `id` (1 to 15) over the `threads` threads that use it, a multiple of 32.
__device__ __forceinline__ void team_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

__device__ __forceinline__ void complete_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// d += a b over a warp: a [16 x 8], b [8 x 8], d [16 x 8] in the fragments of mma.m16n8k8. Lane 4 g + t holds
// a(g, t), a(g + 8, t), a(g, t + 4), a(g + 8, t + 4); b(t, g), b(t + 4, g); d(g, 2 t), d(g, 2 t + 1), d(g +
// 8, 2 t), d(g + 8, 2 t + 1). The operands must be exact in tf32 (10 bits of mantissa), as every f16 is.
// Products are then exact and sums are f32.
__device__ __forceinline__ void multiply_16x8x8(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

#if AQLM_BF16
#define X_TYPE "bf16"
#else
#define X_TYPE "f16"
#endif

// The same for [16 x 16] times [16 x 8], both in x's format, in the fragments of mma.m16n8k16. A word holds
// two neighbours along k. Lane 4 g + t holds a(g, 2 t), a(g + 8, 2 t), a(g, 2 t + 8), a(g + 8, 2 t + 8); b(2
// t, g), b(2 t + 8, g), each with the neighbour after it; d as above.
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." X_TYPE "." X_TYPE ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Prefetches the cache line at `at` into L2.
__device__ __forceinline__ void prefetch_line(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Programmatic dependent launch: lets the stream's next kernel start its set-up as soon as a multiprocessor
// has room.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until this returns, the kernel may read only weights and must not write to global memory. Without dependent
// launch it returns at once.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// Barrier over all threads of the cluster, split into arrival and wait. Memory written before the arrival is
// visible to the cluster after the wait.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes a float at the offset of `here` in the shared memory of the cluster's block `rank`, which must have
// started.
__device__ __forceinline__ void cluster_write(float* here, u32 rank, float value) {
    u32 local = static_cast<u32>(__cvta_generic_to_shared(here));
    u32 remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
}

// Reads 16 bytes at the offset of `here` in the shared memory of the cluster's block `rank`. A cluster
// barrier must lie between the write and this read, and another between this read and the end of that block.
__device__ __forceinline__ uint4 cluster_read(u32 here, u32 rank) {
    uint4 v;
    u32 remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(here), "r"(rank));
    asm volatile("ld.shared::cluster.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(remote));
    return v;
}
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Matrix products of a warpgroup (four warps, the first divisible by four), which run asynchronously beside
// the threads' own instructions.

// A matrix in shared memory as the second operand of these products. Eight rows of 16 bytes (eight values
// along k) lie one after the other. The next eight values along k are `next_k` bytes further, the next eight
// rows `next_rows` bytes. All are multiples of 16.
typedef unsigned long long Tile;
__device__ __forceinline__ Tile tile_at(const void* shared, u32 next_k, u32 next_rows) {
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
    return static_cast<Tile>(address >> 4 & 0x3fff) | static_cast<Tile>(next_k >> 4) << 16 | static_cast<Tile>(next_rows >> 4) << 32;
}

// Required before the first product, and again after other instructions wrote registers that products use.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes a group of products. products_in_flight<N>() waits until at most the last N groups are unfinished.
// Until then neither their operands nor their sums may be touched.
__device__ __forceinline__ void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int GROUPS>
__device__ __forceinline__ void products_in_flight() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}
// Makes this thread's stores to shared memory visible to products that start after the next barrier.
__device__ __forceinline__ void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Starts d += a b, with a and b in x's format. a [64 x 16] is in registers: warp w of the group holds rows 16
// w to 16 w + 15 as in multiply_16x8x16. b [16 x N] is in shared memory. d [64 x N]: for each eight columns,
// lane 4 g + t holds (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
#define SUMS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define OPERANDS_8(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define SUMS_16 SUMS_8 \
    ",%8,%9,%10,%11,%12,%13,%14,%15"
#define OPERANDS_16(d) OPERANDS_8(d), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define SUMS_32 SUMS_16 \
    ",%16,%17,%18,%19,%20,%21,%22,%23" \
    ",%24,%25,%26,%27,%28,%29,%30,%31"
#define OPERANDS_32(d) OPERANDS_16(d), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define SUMS_64 SUMS_32 \
    ",%32,%33,%34,%35,%36,%37,%38,%39" \
    ",%40,%41,%42,%43,%44,%45,%46,%47" \
    ",%48,%49,%50,%51,%52,%53,%54,%55" \
    ",%56,%57,%58,%59,%60,%61,%62,%63"
#define OPERANDS_64(d) OPERANDS_32(d), \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define SUMS_128 SUMS_64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71" \
    ",%72,%73,%74,%75,%76,%77,%78,%79" \
    ",%80,%81,%82,%83,%84,%85,%86,%87" \
    ",%88,%89,%90,%91,%92,%93,%94,%95" \
    ",%96,%97,%98,%99,%100,%101,%102,%103" \
    ",%104,%105,%106,%107,%108,%109,%110,%111" \
    ",%112,%113,%114,%115,%116,%117,%118,%119" \
    ",%120,%121,%122,%123,%124,%125,%126,%127"
#define OPERANDS_128(d) OPERANDS_64(d), \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), \
    "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), \
    "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), \
    "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), \
    "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), \
    "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), \
    "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), \
    "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
#define DEFINE_PRODUCT(N, SUMS, OPERANDS, A0, A1, A2, A3, B)                                                                         \
    __device__ __forceinline__ void multiply_64xNx16(float (&d)[N / 2], u32 a0, u32 a1, u32 a2, u32 a3, Tile b) {                      \
        asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" #N                               \
                     "k16.f32." X_TYPE "." X_TYPE " {" SUMS "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B ", add, 1, 1, 0;\n}"                     \
                     : OPERANDS                                                                                                         \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                                                     \
    }
DEFINE_PRODUCT(16, SUMS_8, OPERANDS_8(d), 8, 9, 10, 11, 12)
DEFINE_PRODUCT(32, SUMS_16, OPERANDS_16(d), 16, 17, 18, 19, 20)
DEFINE_PRODUCT(64, SUMS_32, OPERANDS_32(d), 32, 33, 34, 35, 36)
DEFINE_PRODUCT(128, SUMS_64, OPERANDS_64(d), 64, 65, 66, 67, 68)
DEFINE_PRODUCT(256, SUMS_128, OPERANDS_128(d), 128, 129, 130, 131, 132)
#endif

#endif  // AQLM_ON_CPU

// Numbers in the format of x and y.
#if AQLM_BF16
__device__ __forceinline__ float f32_of_x(u16 h) { return __uint_as_float(static_cast<u32>(h) << 16); }
__device__ __forceinline__ u16 y_of_f32(float f) { return bf16_of_f32(f); }
__device__ __forceinline__ float low_x(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_x(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u32 add_x2(u32 a, u32 b) { return add_bf16x2(a, b); }
#else
__device__ __forceinline__ float f32_of_x(u16 h) { return f32_of_f16(h); }
__device__ __forceinline__ u16 y_of_f32(float f) { return f16_of_f32(f); }
__device__ __forceinline__ float low_x(u32 pair) { return f32_of_f16(static_cast<u16>(pair & 0xffffu)); }
__device__ __forceinline__ float high_x(u32 pair) { return f32_of_f16(static_cast<u16>(pair >> 16)); }
__device__ __forceinline__ u32 add_x2(u32 a, u32 b) { return add_f16x2(a, b); }
#endif

__device__ __forceinline__ float low_f32(u32 pair) { return f32_of_f16(static_cast<u16>(pair & 0xffffu)); }
__device__ __forceinline__ float high_f32(u32 pair) { return f32_of_f16(static_cast<u16>(pair >> 16)); }

// The running sum of a group. Products in f16 are summed as two f16 sums, which is fastest. No instruction
// multiplies f16 by bf16, so those are summed in f32.
#if AQLM_BF16
typedef float GroupSum;
__device__ __forceinline__ void add_pair_product(GroupSum& sum, u32 weights, u32 inputs) {
    sum += low_f32(weights) * low_x(inputs);
    sum += high_f32(weights) * high_x(inputs);
}
__device__ __forceinline__ float group_total(GroupSum sum) { return sum; }
#else
typedef u32 GroupSum;
__device__ __forceinline__ void add_pair_product(GroupSum& sum, u32 weights, u32 inputs) { sum = fma_f16x2(weights, inputs, sum); }
__device__ __forceinline__ float group_total(GroupSum sum) { return low_f32(sum) + high_f32(sum); }
#endif

// Adds the products of eight f16 weights and eight numbers of x.
__device__ __forceinline__ void add_products(GroupSum& sum, const uint4& weights, const uint4& inputs) {
    add_pair_product(sum, weights.x, inputs.x);
    add_pair_product(sum, weights.y, inputs.y);
    add_pair_product(sum, weights.z, inputs.z);
    add_pair_product(sum, weights.w, inputs.w);
}

// Up to three matrices share a launch. Returns the matrix that a slab of rows belongs to, given the first
// slabs of the second and the third matrix.
__device__ __forceinline__ u32 part_of(u32 slab, int second, int third) {
    return (slab >= static_cast<u32>(second) ? 1u : 0u) + (slab >= static_cast<u32>(third) ? 1u : 0u);
}

// Sums four rows over the 32 lanes of a warp with 6 shuffles instead of 20: each exchange also halves the
// rows that a lane still holds. Returns the sum of row (lane >> 3), the same in all eight lanes of that row.
// The order of additions is fixed.
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
