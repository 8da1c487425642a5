// What the kernels share: vector loads and stores with conversion, GELU, quantization, launches that may overlap.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels.h"
#include "ptx.cuh"

namespace quantkit {

// Whether launches may overlap: unless QUANTKIT_NO_OVERLAP is set, as for timing kernels one by one.
inline bool kernels_overlap() {
    static const bool overlap = std::getenv("QUANTKIT_NO_OVERLAP") == nullptr;
    return overlap;
}

// A launch that may begin while the kernel before it on the stream ends. Every kernel calls `wait_for_inputs` before it
// touches memory that others write, and `let_next_begin` as soon as it runs. `cluster` neighbouring blocks run at once.
template <typename... Params, typename... Args>
cudaError_t launch_clusters(void (*kernel)(Params...), int cluster, dim3 grid, int threads, size_t shared,
                            cudaStream_t stream, Args&&... args) {
    cudaLaunchAttribute attributes[2];
    int count = 0;
    if (kernels_overlap()) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count].val.clusterDim.x = cluster;
        attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
        ++count;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                   Args&&... args) {
    return launch_clusters(kernel, 1, grid, threads, shared, stream, static_cast<Params>(args)...);
}

// Asks for as much shared memory as the linear layers have: blocks of kernels that divide a multiprocessor's memory in
// another way cannot be there at the same time.
template <typename Kernel>
cudaError_t share_like_linear(Kernel kernel) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
}

// x rounded half to even and kept within [-127, 127], in the low byte.
__device__ __forceinline__ uint32_t quantized(float x) {
    constexpr float kShift = 12582912.f;  // 1.5 * 2^23: the sum's low bits are the rounded number
    return __float_as_uint(fminf(fmaxf(x, -127.f), 127.f) + kShift) & 0xffu;
}

// Four quantized numbers in a word, the first in the low byte.
__device__ __forceinline__ uint32_t packed(float a, float b, float c, float d) {
    constexpr float kShift = 12582912.f;
    auto bits = [](float x) { return __float_as_uint(fminf(fmaxf(x, -127.f), 127.f) + kShift); };
    const uint32_t low = __byte_perm(bits(a), bits(b), 0x0040);
    const uint32_t high = __byte_perm(bits(c), bits(d), 0x0040);
    return __byte_perm(low, high, 0x5410);
}

// x * Phi(x), Phi the normal distribution.
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }

// The same to 1e-3 at |x| <= 4, an eleventh of a step of an output that reaches 1.4 in INT8: tanh with an argument that
// is fitted to make it erf(x / sqrt 2) (to 2.6e-5; the instruction itself is good for 2^-11). The product's epilogue is
// what its time goes by: this is 7 operations and one that another unit makes meanwhile, instead of 14.
__device__ __forceinline__ float gelu_by_tanh(float x) {
    const float half = 0.5f * x, u = fminf(x * x, 36.f);
    const float p = fmaf(fmaf(-3.5161248524673283e-4f, u, 3.7006236612796783e-2f), u, 7.975072264671326e-1f);
    return fmaf(half, tanh_approximately(x * p), half);
}

// The same to 8e-5, which no half output shows: erf(x / sqrt 2) as x times a polynomial in x^2 that is fitted for
// the least largest error of the result on |x| <= 4.2 and has the value 1 there. No special functions.
__device__ __forceinline__ float gelu_by_polynomial(float x) {
    const float z = fminf(fmaxf(x, -4.2f), 4.2f);
    const float u = z * z;
    float p = -1.8036672155830047e-9f;
    p = fmaf(p, u, 1.588376221661747e-7f);
    p = fmaf(p, u, -6.076157205825439e-6f);
    p = fmaf(p, u, 1.3378550647757947e-4f);
    p = fmaf(p, u, -1.9013461424037814e-3f);
    p = fmaf(p, u, 1.8596582114696503e-2f);
    p = fmaf(p, u, -1.3105662167072296e-1f);
    p = fmaf(p, u, 7.969318628311157e-1f);
    const float half = 0.5f * x;
    return fmaf(half, p * z, half);
}

// The same bytes as another type.
template <typename To, typename From>
__device__ __forceinline__ To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "of the same size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

// Eight numbers at `index`, as floats; `index` is a multiple of 8.
template <typename T>
__device__ __forceinline__ void load8(const T* from, size_t index, float scale, float (&x)[8]);

template <>
__device__ __forceinline__ void load8<float>(const float* from, size_t index, float, float (&x)[8]) {
    const float4 a = *reinterpret_cast<const float4*>(from + index);
    const float4 b = *reinterpret_cast<const float4*>(from + index + 4);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

template <>
__device__ __forceinline__ void load8<__half>(const __half* from, size_t index, float, float (&x)[8]) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from + index);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 two = __half22float2(bits_as<__half2>(words[i]));
        x[2 * i] = two.x, x[2 * i + 1] = two.y;
    }
}

template <>
__device__ __forceinline__ void load8<int8_t>(const int8_t* from, size_t index, float scale, float (&x)[8]) {
    const uint2 raw = *reinterpret_cast<const uint2*>(from + index);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = scale * static_cast<float>(static_cast<int8_t>((i < 4 ? raw.x : raw.y) >> i % 4 * 8));
}

// How a number becomes INT8.
struct Code {
    float rescale, shift;
    __device__ __forceinline__ float operator()(float x) const { return fmaf(x, rescale, shift); }
};

// Stores eight numbers at `index`, to INT8 by `code`.
template <typename T>
__device__ __forceinline__ void store8(T* to, size_t index, Code code, const float (&x)[8]);

template <>
__device__ __forceinline__ void store8<float>(float* to, size_t index, Code, const float (&x)[8]) {
    *reinterpret_cast<float4*>(to + index) = make_float4(x[0], x[1], x[2], x[3]);
    *reinterpret_cast<float4*>(to + index + 4) = make_float4(x[4], x[5], x[6], x[7]);
}

template <>
__device__ __forceinline__ void store8<__half>(__half* to, size_t index, Code, const float (&x)[8]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = bits_as<uint32_t>(__floats2half2_rn(x[2 * i], x[2 * i + 1]));
    *reinterpret_cast<uint4*>(to + index) = make_uint4(words[0], words[1], words[2], words[3]);
}

template <>
__device__ __forceinline__ void store8<int8_t>(int8_t* to, size_t index, Code code, const float (&x)[8]) {
    const uint32_t low = packed(code(x[0]), code(x[1]), code(x[2]), code(x[3]));
    const uint32_t high = packed(code(x[4]), code(x[5]), code(x[6]), code(x[7]));
    *reinterpret_cast<uint2*>(to + index) = make_uint2(low, high);
}

// One number, for widths that are no multiple of 8.
__device__ __forceinline__ float load1(const float* from, size_t i, float) { return from[i]; }
__device__ __forceinline__ float load1(const __half* from, size_t i, float) { return __half2float(from[i]); }
__device__ __forceinline__ float load1(const int8_t* from, size_t i, float scale) { return scale * from[i]; }
__device__ __forceinline__ void store1(float* to, size_t i, Code, float x) { to[i] = x; }
__device__ __forceinline__ void store1(__half* to, size_t i, Code, float x) { to[i] = __float2half_rn(x); }
__device__ __forceinline__ void store1(int8_t* to, size_t i, Code code, float x) {
    to[i] = static_cast<int8_t>(quantized(code(x)));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

}  // namespace quantkit
