// Simulates thread blocks and clusters on the CPU, so that a kernel's indexing is tested without a GPU.
//
// Every thread of a cluster is a fiber. It starts by ucontext and then switches by _setjmp and _longjmp,
// which make no system calls. Barriers and shuffles yield until all their threads have arrived. f16
// arithmetic is done in double and rounded once. Not modelled: races, memory ordering, speed, inline PTX
// (common.cuh keeps it behind the functions defined here).
#pragma once
// Its checks of _longjmp know one stack only.
#undef _FORTIFY_SOURCE
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>
#include <csetjmp>
#include <ucontext.h>

#define AQLM_ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n)
#define WARP_MASK 0xffffffffu

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct Place { uint32_t x, y, z; };

struct Barrier {
    unsigned size = 0, arrived = 0, generation = 0;
};

struct Block {
    Place index;
    std::vector<unsigned char> shared;
    Barrier barrier;
    std::vector<Barrier> warps;
    std::vector<uint32_t> exchange;                // one word a thread, for shuffles
    std::vector<std::array<float, 6>> fragments;   // operands of a matrix product
    std::vector<std::array<uint32_t, 6>> pairs;    // the same in f16, two a word
    std::array<Barrier, 16> teams;                 // named barriers
    std::vector<Barrier> warpgroups;
};

struct Fiber {
    ucontext_t context;
    jmp_buf place;
    Block* block = nullptr;
    Place thread;
    bool started = false, done = false;
};

static jmp_buf scheduler;
// Of all fibers; kept from one block to the next.
static std::vector<std::unique_ptr<char[]>> stacks;
static Fiber* current;
static std::vector<Block> cluster_blocks;
static Barrier cluster_wide;
static Place grid_size, block_size;
#define threadIdx (current->thread)
#define blockIdx (current->block->index)
#define blockDim block_size
#define gridDim grid_size

inline void yield() {
    if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

// Lets a fiber run until it yields. Not inlined, so that no variable of the caller changes between _setjmp
// and _longjmp.
__attribute__((noinline)) static void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

inline void wait_at(Barrier& barrier) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    while (barrier.generation == generation) yield();
}

inline unsigned char* dynamic_shared() {
    const auto address = reinterpret_cast<uintptr_t>(current->block->shared.data());
    return reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
}

// As on a device, the system's part of shared memory lies before the block's own.
inline uint32_t shared_address(const void* shared) {
    return 1024 + static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - dynamic_shared());
}

template <uint32_t OFFSET>
float load_shared_f32(uint32_t address) {
    float f;
    std::memcpy(&f, dynamic_shared() + (address + OFFSET - 1024), 4);
    return f;
}

inline void team_barrier(int id, int threads) {
    Barrier& barrier = current->block->teams[static_cast<size_t>(id)];
    barrier.size = static_cast<unsigned>(threads);
    wait_at(barrier);
}
inline void __syncwarp() { wait_at(current->block->warps[current->thread.x / 32]); }
inline void __syncthreads() { wait_at(current->block->barrier); }
inline void cluster_barrier() { wait_at(cluster_wide); }

// For kernels whose blocks meet, the whole grid runs as one cluster; each block meets the others once.
inline void meet_blocks(uint32_t*, uint32_t, bool, uint32_t) { cluster_barrier(); }

inline void cluster_arrive() {}
inline void cluster_wait() { cluster_barrier(); }

inline void cluster_write(float* here, uint32_t rank, float value) {
    const auto offset = reinterpret_cast<unsigned char*>(here) - dynamic_shared();
    Block* own = current->block;
    current->block = &cluster_blocks[rank];
    std::memcpy(dynamic_shared() + offset, &value, 4);
    current->block = own;
}

inline uint4 cluster_read(uint32_t here, uint32_t rank) {
    uint4 value;
    Block* own = current->block;
    current->block = &cluster_blocks[rank];
    std::memcpy(&value, dynamic_shared() + (here - 1024), 16);
    current->block = own;
    return value;
}

// d += a b with the fragments of mma.m16n8k8: a [16 x 8], b [8 x 8], d [16 x 8], spread over the warp as PTX
// defines.
inline void multiply_16x8x8(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
    Block& block = *current->block;
    const uint32_t id = current->thread.x, first = id / 32 * 32, g = id % 32 / 4, t = id % 4;
    for (int i = 0; i < 4; ++i) block.fragments[id][i] = a[i];
    for (int i = 0; i < 2; ++i) block.fragments[id][4 + i] = b[i];
    wait_at(block.warps[id / 32]);
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = i / 2, column = t * 2 + i % 2;  // row g + 8 row
        for (uint32_t k = 0; k < 8; ++k) {
            const float left = block.fragments[first + g * 4 + k % 4][row + k / 4 * 2];
            const float right = block.fragments[first + column * 4 + k % 4][4 + k / 4];
            d[i] += left * right;
        }
    }
    wait_at(block.warps[id / 32]);
}

// The same with the fragments of mma.m16n8k16 in f16.
inline void multiply_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1);

inline float __shfl_xor_sync(uint32_t, float value, int mask) {
    Block& block = *current->block;
    const uint32_t id = current->thread.x;
    std::memcpy(&block.exchange[id], &value, 4);
    wait_at(block.warps[id / 32]);
    float other;
    std::memcpy(&other, &block.exchange[id ^ static_cast<uint32_t>(mask)], 4);
    wait_at(block.warps[id / 32]);
    return other;
}

inline float __int_as_float(int bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline double __longlong_as_double(long long bits) {
    double d;
    std::memcpy(&d, &bits, 8);
    return d;
}

inline long long __double_as_longlong(double d) {
    long long bits;
    std::memcpy(&bits, &d, 8);
    return bits;
}

inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

inline double wide(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) value = mantissa ? NAN : INFINITY;
    return h & 0x8000 ? -value : value;
}

// To nearest, ties to even: nearbyint rounds the quotient by the weight of the last place.
inline uint16_t narrow(double value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::fabs(value);
    if (std::isnan(size)) return 0x7e00;
    if (size == 0.0) return sign;
    if (size >= 65520.0) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);
    const int place = exponent - 11 < -24 ? -24 : exponent - 11;
    const double rounded = std::nearbyint(std::ldexp(size, -place));
    // A subnormal or zero is its count of last places; a normal carries into the exponent by plain addition.
    return sign | static_cast<uint16_t>(place == -24 ? rounded : (place + 24) * 1024 + rounded);
}

inline float f32_of_bf16(uint16_t h) {
    const uint32_t bits = static_cast<uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// To nearest, ties to even, by adding just less than half of the last place.
inline uint16_t bf16_of_f32(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (std::isnan(f)) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#ifndef AQLM_BF16
#define AQLM_BF16 0
#endif
// A number in the format of x, as a double.
inline double wide_x(uint16_t h) { return AQLM_BF16 ? f32_of_bf16(h) : wide(h); }

inline uint32_t add_bf16x2(uint32_t a, uint32_t b) {
    const auto sum = [](uint32_t a, uint32_t b) -> uint32_t { return bf16_of_f32(f32_of_bf16(a & 0xffff) + f32_of_bf16(b & 0xffff)); };
    return sum(a, b) | sum(a >> 16, b >> 16) << 16;
}

inline float f32_of_f16(uint16_t h) { return static_cast<float>(wide(h)); }
inline uint16_t f16_of_f32(float f) { return narrow(f); }

inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t low = narrow(wide(a & 0xffff) * wide(b & 0xffff) + wide(c & 0xffff));
    const uint32_t high = narrow(wide(a >> 16) * wide(b >> 16) + wide(c >> 16));
    return low | high << 16;
}
inline uint32_t add_f16x2(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(narrow(wide(a & 0xffff) + wide(b & 0xffff))) |
           static_cast<uint32_t>(narrow(wide(a >> 16) + wide(b >> 16))) << 16;
}
inline uint32_t mul_f16x2(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(narrow(wide(a & 0xffff) * wide(b & 0xffff))) |
           static_cast<uint32_t>(narrow(wide(a >> 16) * wide(b >> 16))) << 16;
}

inline uint4 load_once(const uint4* from) { return *from; }
inline uint4 load_often(const uint4* from) { return *from; }
inline void load_near(uint4& v, const void* from, bool near) {
    if (near) std::memcpy(&v, from, 16);
}
inline void load_far(uint4& v, const uint4* from, bool far) {
    if (far) v = *from;
}
inline uint2 load_once(const uint2* from) { return *from; }
inline uint32_t load_once(const uint32_t* from) { return *from; }
inline int load_fresh(const int* from) { return *from; }
inline uint32_t load_fresh(const uint32_t* from) { return *from; }
inline uint4 load_fresh(const uint4* from) { return *from; }
template <class T> T atomicAdd(T* at, T value) {
    const T before = *at;
    *at += value;
    return before;
}
inline void __threadfence() {}
inline int __float2int_rn(float f) { return static_cast<int>(std::nearbyintf(f)); }
inline uint32_t __float_as_uint(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline void start_copy16(void* to, const void* from) { std::memcpy(to, from, 16); }
inline void start_copy16_or_zero(void* to, const void* from, bool valid) {
    if (valid) {
        std::memcpy(to, from, 16);
    } else {
        std::memset(to, 0, 16);
    }
}
inline void close_copies() {}
template <int GROUPS> void copies_in_flight() {}
inline void keep_order() {}
inline void prefetch_line(const void*) {}
inline void complete_copies() {}
inline void allow_next_kernel() {}
inline void wait_for_previous_kernel() {}

inline void multiply_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    Block& block = *current->block;
    const uint32_t id = current->thread.x, first = id / 32 * 32, g = id % 32 / 4, t = id % 4;
    block.pairs[id] = {a0, a1, a2, a3, b0, b1};
    wait_at(block.warps[id / 32]);
    const auto half = [](uint32_t pair, uint32_t which) { return wide_x(static_cast<uint16_t>(pair >> 16 * which & 0xffff)); };
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = i / 2, column = t * 2 + i % 2;  // row g + 8 row
        double sum = 0.0;
        for (uint32_t k = 0; k < 16; ++k) {
            const uint32_t lane = k % 8 / 2;
            const double left = half(block.pairs[first + g * 4 + lane][row + k / 8 * 2], k % 2);
            const double right = half(block.pairs[first + column * 4 + lane][4 + k / 8], k % 2);
            sum += left * right;
        }
        d[i] += static_cast<float>(sum);
    }
    wait_at(block.warps[id / 32]);
}

// A matrix in shared memory as products of a warpgroup take it (common.cuh).
struct Tile {
    const unsigned char* at;
    uint32_t next_k, next_rows;
};
inline Tile tile_at(const void* shared, uint32_t next_k, uint32_t next_rows) {
    return {static_cast<const unsigned char*>(shared), next_k, next_rows};
}
inline void begin_products() {}
inline void close_products() {}
template <int GROUPS> void products_in_flight() {}
inline void publish_to_products() {}

// d += a b over a warpgroup, computed at once.
template <size_t SUMS>
void multiply_64xNx16(float (&d)[SUMS], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, Tile b) {
    Block& block = *current->block;
    const uint32_t id = current->thread.x, first = id / 32 * 32, g = id % 32 / 4, t = id % 4;
    block.pairs[id] = {a0, a1, a2, a3};
    wait_at(block.warpgroups[id / 128]);
    for (uint32_t i = 0; i < SUMS; ++i) {
        const uint32_t row = i / 2 % 2, column = i / 4 * 8 + t * 2 + i % 2;  // row g + 8 row
        double sum = 0.0;
        for (uint32_t k = 0; k < 16; ++k) {
            const uint32_t pair = block.pairs[first + g * 4 + k % 8 / 2][row + k / 8 * 2];
            uint16_t right;
            std::memcpy(&right, b.at + k / 8 * b.next_k + column / 8 * b.next_rows + column % 8 * 16 + k % 8 * 2, 2);
            sum += wide_x(static_cast<uint16_t>(pair >> 16 * (k % 2) & 0xffff)) * wide_x(right);
        }
        d[i] += static_cast<float>(sum);
    }
    wait_at(block.warpgroups[id / 128]);
}

// A kernel's arguments: pointers to buffers, then integers.
struct Arguments {
    std::vector<void*> pointers;
    std::vector<int> integers;

    template <class T> T get(size_t index) const {
        if constexpr (std::is_pointer_v<T>) {
            return static_cast<T>(pointers[index]);
        } else {
            return static_cast<T>(integers[index - pointers.size()]);
        }
    }
};

static const Arguments* arguments;
static void (*run_kernel)();

template <class... A, size_t... I> void call(void (*kernel)(A...), std::index_sequence<I...>) { kernel(arguments->get<A>(I)...); }
template <class... A> void call(void (*kernel)(A...)) { call(kernel, std::index_sequence_for<A...>{}); }

static void enter() {
    run_kernel();
    current->done = true;
    yield();
}

// Runs a whole grid, cluster after cluster; the grid may be one cluster.
inline void run_grid(Place grid, Place block, uint32_t cluster, size_t shared_bytes, void (*kernel)(), const Arguments& with) {
    grid_size = grid;
    block_size = block;
    arguments = &with;
    run_kernel = kernel;
    for (uint32_t first = 0; first < grid.x * grid.y; first += cluster) {
        cluster_blocks.assign(cluster, {});
        cluster_wide = Barrier{cluster * block.x, 0, 0};
        std::vector<Fiber> fibers(static_cast<size_t>(cluster) * block.x);
        for (uint32_t rank = 0; rank < cluster; ++rank) {
            Block& b = cluster_blocks[rank];
            b.index = {(first + rank) % grid.x, (first + rank) / grid.x, 0};
            // Poison: a kernel must not read shared memory that it didn't write.
            b.shared.assign(shared_bytes + 128, 0xff);
            b.barrier.size = block.x;
            b.warps.assign(block.x / 32, Barrier{32, 0, 0});
            b.exchange.assign(block.x, 0);
            b.fragments.assign(block.x, {});
            b.pairs.assign(block.x, {});
            b.teams = {};
            b.warpgroups.assign(block.x / 128, Barrier{128, 0, 0});
            for (uint32_t t = 0; t < block.x; ++t) {
                Fiber& f = fibers[static_cast<size_t>(rank) * block.x + t];
                f.block = &b;
                f.thread = {t, 0, 0};
                const size_t bytes = 32768, number = static_cast<size_t>(rank) * block.x + t;
                if (number == stacks.size()) stacks.emplace_back(new char[bytes]);
                getcontext(&f.context);
                f.context.uc_stack.ss_sp = stacks[number].get();
                f.context.uc_stack.ss_size = bytes;
                f.context.uc_link = nullptr;
                makecontext(&f.context, enter, 0);
            }
        }
        for (size_t live = fibers.size(); live > 0;) {
            live = 0;
            for (Fiber& f : fibers) {
                if (f.done) continue;
                resume(f);
                if (!f.done) ++live;
            }
        }
    }
}

// Guard bytes lie before and after every buffer. A kernel that writes outside a buffer changes them.
constexpr size_t GUARD_BYTES = 1024;
constexpr unsigned char GUARD_PATTERN = 0xa5;

struct Guarded {
    unsigned char* memory;
    size_t length;

    explicit Guarded(size_t bytes) : memory(static_cast<unsigned char*>(std::aligned_alloc(128, 2 * GUARD_BYTES + (bytes + 127) / 128 * 128))), length(bytes) {
        if (!memory) std::exit(3);
        std::memset(memory, GUARD_PATTERN, GUARD_BYTES);
        std::memset(memory + GUARD_BYTES + length, GUARD_PATTERN, GUARD_BYTES);
    }
    unsigned char* begin() const { return memory + GUARD_BYTES; }
    // "before", "after", or nothing if all guard bytes are intact.
    const char* broken() const {
        for (size_t i = 0; i < GUARD_BYTES; ++i) {
            if (memory[i] != GUARD_PATTERN) return "before";
            if (begin()[length + i] != GUARD_PATTERN) return "after";
        }
        return nullptr;
    }
};

// Reads a launch from a file of little-endian u64 words and bytes, runs it, and writes the output buffer to
// another file. Exits with status 5 if guard bytes have changed, and names the buffer and the side on
// standard error. File: grid x, grid y, block, cluster, shared bytes, pointers, integers, index of the
// output; byte lengths; integers; contents.
inline int run_file(const char* in, const char* out, void (*kernel)()) {
    FILE* file = std::fopen(in, "rb");
    if (!file) return 2;
    auto word = [&] {
        uint64_t w = 0;
        if (std::fread(&w, 8, 1, file) != 1) std::exit(3);
        return w;
    };
    const uint32_t grid_x = word(), grid_y = word(), block = word(), cluster = word();
    const size_t shared_bytes = word(), count = word(), integers = word(), output = word();
    std::vector<size_t> lengths;
    for (size_t i = 0; i < count; ++i) lengths.push_back(word());
    Arguments with;
    for (size_t i = 0; i < integers; ++i) with.integers.push_back(static_cast<int>(word()));
    std::vector<Guarded> buffers;
    for (size_t length : lengths) {
        buffers.emplace_back(length);
        if (std::fread(buffers.back().begin(), 1, length, file) != length) return 3;
        with.pointers.push_back(buffers.back().begin());
    }
    std::fclose(file);
    run_grid({grid_x, grid_y, 1}, {block, 1, 1}, cluster, shared_bytes, kernel, with);
    for (size_t i = 0; i < buffers.size(); ++i) {
        if (const char* side = buffers[i].broken()) {
            std::fprintf(stderr, "%s %zu\n", side, i);
            return 5;
        }
    }
    FILE* result = std::fopen(out, "wb");
    if (!result || std::fwrite(with.pointers[output], 1, lengths[output], result) != lengths[output]) return 4;
    return std::fclose(result) ? 4 : 0;
}
