// CUDA C++ on the machine: qualifiers, indices, and the functions that the kernels use.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda_runtime_api.h"

#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
struct uint2 {
    uint32_t x, y;
};
struct uint4 {
    uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static machine::Index& threadIdx = machine::thread;
static machine::Index& blockIdx = machine::block;
static machine::Index& blockDim = machine::block_size;
static machine::Index& gridDim = machine::grid_size;

inline void __syncthreads() { machine::wait_for_block(); }
inline float __shfl_xor_sync(uint32_t, float x, int step) {
    const uint8_t* all = machine::exchange(&x, sizeof(x));
    float other;
    std::memcpy(&other, all + ((threadIdx.x % 32) ^ step) * sizeof(x), sizeof(x));
    return other;
}
inline uint32_t __ballot_sync(uint32_t, bool yes) {
    const uint8_t own = yes;
    const uint8_t* all = machine::exchange(&own, sizeof(own));
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i) votes |= uint32_t{all[i]} << i;
    return votes;
}
inline void __syncwarp() { __ballot_sync(0xffffffffu, true); }
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= uint32_t(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
