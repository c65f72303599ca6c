// A product with several of many matrices that are laid out alike: the experts that a router chose.
//
// With AQLM_EXPERTS, an operand holds the same operand of all experts, one after the other, each padded to
// the same number of 16-byte units (`..._stride`). The grid's second axis runs over slots, each with `slabs`
// blocks of that axis. Slot s is the product with expert chosen[s]: its x is s * x_stride numbers after the
// first one's, its y is s * y_stride numbers after. `chosen` is written by an earlier kernel of the stream,
// so nothing of a matrix can be read before that kernel has ended.
#pragma once

#ifdef AQLM_EXPERTS
#define EXPERT_POINTER const u32* chosen,
#define EXPERT_SIZES , int slabs, int x_stride, int y_stride
#define SLAB (blockIdx.y % static_cast<u32>(slabs))
#define SLOT (blockIdx.y / static_cast<u32>(slabs))

// An operand of the expert with this number.
template <class T>
__device__ __forceinline__ const T* of_expert(const T* first, u32 expert, int stride) {
    return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(first) + static_cast<size_t>(expert) * static_cast<u32>(stride) * 16);
}
// The same where a kernel has no registers to keep the result; it names the expert `expert`.
#define OF_EXPERT(operand) of_expert(operand, expert, operand##_stride)
#else
#define OF_EXPERT(operand) operand
#define EXPERT_POINTER
#define EXPERT_SIZES
#define SLAB blockIdx.y
#endif
