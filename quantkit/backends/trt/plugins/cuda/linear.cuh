// What both forms of the linear layers' kernel share: types of sums, and the epilogue of a warpgroup's rows.
#pragma once

#include <type_traits>

#include "common.cuh"
#include "wgmma.cuh"

namespace quantkit {

constexpr int kRowBytes = 128;  // of a tile in shared memory: one swizzled row
constexpr int kGroup = 32;      // columns whose order the weight's rows are permuted in

template <typename T>
struct Sums;
template <>
struct Sums<int8_t> {
    using type = int32_t;
};
template <>
struct Sums<__half> {
    using type = float;
};

struct Epilogue {
    const float* alpha;
    const float* beta;
    void* out;
    int m, n, k;
    Code code;
};

// Multiplies 64 rows by kColumns rows, 128 bytes of each, in shared memory. `first`: the sums begin here.
template <int kColumns, typename Sum>
__device__ __forceinline__ void multiply_row_bytes(Sum (&sums)[kColumns / 2], uint64_t a, uint64_t b, bool first) {
#pragma unroll
    for (int part = 0; part < kRowBytes / 32; ++part) {
        wgmma<kColumns>(sums, a + 2 * part, b + 2 * part, !first || part > 0);
    }
}

// Scales, adds, applies GELU and stores what this thread holds of group `part` of 32 columns: eight neighbours, from
// `column` on, of rows `row` and `row` + 8.
template <typename Out, bool kGelu, typename Sum, int kSums>
__device__ __forceinline__ void finish(const Sum (&sums)[kSums], int part, const float (&alpha)[8],
                                       const float (&beta)[8], int row, int column, const Epilogue& args) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (row + 8 * half >= args.m) continue;
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const Sum sum = sums[part * 16 + i / 2 * 4 + half * 2 + i % 2];
            y[i] = fmaf(static_cast<float>(sum), alpha[i], beta[i]);
            if constexpr (kGelu) y[i] = std::is_same_v<Out, int8_t> ? gelu_by_tanh(y[i]) : gelu_by_polynomial(y[i]);
        }
        store8(static_cast<Out*>(args.out), size_t(row + 8 * half) * args.n + column, args.code, y);
    }
}

}  // namespace quantkit
