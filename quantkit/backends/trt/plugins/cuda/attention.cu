// Fused self-attention: scores, softmax and context of 16 or 32 queries of one head in a warp. Queries, keys and values are
// copied to shared memory as they are; INT8 queries and keys are multiplied in INT8, probabilities and values always in
// FP16. Sentences of up to 128 tokens meet all their keys at once. Longer ones meet them in pieces of 64, with the softmax
// kept up to date as they pass (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135).
#include "common.cuh"
#include "ptx.cuh"

namespace quantkit {
namespace {

constexpr int kKeys = 128;       // rows of keys in shared memory: one piece, or two of half the size
constexpr int kChunk = 32;       // keys that are left out together where none of them stands
constexpr int kFewBlocks = 132;  // of 32 queries a warp: no more than multiprocessors of the largest Hopper
constexpr uint32_t kAll = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;

// Scores as the first product leaves them, and what it starts from. The INT8 product starts from the bits of 1.5 * 2^23:
// its sums' bits are then those of the float 1.5 * 2^23 + sum, and all that follows takes differences of scores.
template <typename T>
struct Score;
template <>
struct Score<int8_t> {
    using type = int32_t;
    static constexpr int32_t start = 0x4b400000;
};
template <>
struct Score<__half> {
    using type = float;
    static constexpr float start = 0.f;
};

// A form of the kernel: kWarps warps a block, kTiles * 16 queries of a head a warp.
template <typename T, typename Out, int kHead, int kTiles, int kWarps>
struct Form {
    static constexpr int kThreads = kWarps * 32, kWarpQueries = kTiles * 16, kQueries = kWarps * kWarpQueries;
    static constexpr int kRowBytes = kHead * int(sizeof(T)), kOutBytes = kHead * int(sizeof(Out));
    // Rows lie 16 bytes further apart than they need: 8 of them lie in different banks. Results take the queries' place.
    static constexpr int kStride = kRowBytes + 16;
    static constexpr int kQueryStride = (kRowBytes > kOutBytes ? kRowBytes : kOutBytes) + 16;
    static constexpr int kShared = kQueries * kQueryStride + 2 * kKeys * kStride;
};

__device__ __forceinline__ uint32_t half_pair(float a, float b) {
    return bits_as<uint32_t>(__floats2half2_rn(a, b));
}

// INT8 values become the halves 1024 + (x + 128), which have x + 128 in their low bits; what that adds to a weighted mean
// of values is taken off the result.
template <typename T>
constexpr float kAdded = sizeof(T) == 1 ? 1152.f : 0.f;

// Bytes `i` and `i` + 2 of a word, to which 128 was added, as two such halves.
__device__ __forceinline__ uint32_t halves_of(uint32_t word, int i) {
    return __byte_perm(word, 0x64646464u, i == 0 ? 0x4240 : 0x4341);
}

// Neighbouring elements of a result, in shared memory.
__device__ __forceinline__ void put(int8_t* to, const float (&y)[4]) {
    *reinterpret_cast<uint32_t*>(to) = packed(y[0], y[1], y[2], y[3]);
}
__device__ __forceinline__ void put(int8_t* to, const float (&y)[2]) {
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(packed(y[0], y[1], 0.f, 0.f));
}
__device__ __forceinline__ void put(__half* to, const float (&y)[4]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(half_pair(y[0], y[1]), half_pair(y[2], y[3]));
}
__device__ __forceinline__ void put(__half* to, const float (&y)[2]) {
    *reinterpret_cast<uint32_t*>(to) = half_pair(y[0], y[1]);
}

// What a warp knows of its queries between pieces of keys. A thread has rows lane / 4 and lane / 4 + 8 of every 16. The
// probabilities' sums are a product, too, with a column of ones: of the very halves that the values are weighted with.
template <int kHead, int kTiles>
struct State {
    float highest[kTiles][2], offset[kTiles][2];
    float total[kTiles][4], context[kTiles][kHead / 8][4];

    __device__ __forceinline__ State() {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
            for (int r = 0; r < 2; ++r) highest[m][r] = -INFINITY, offset[m][r] = INFINITY;
#pragma unroll
            for (int i = 0; i < 4; ++i) total[m][i] = 0.f;
#pragma unroll
            for (int n = 0; n < kHead / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) context[m][n][i] = 0.f;
            }
        }
    }
};

// Probabilities of a warp's queries and kChunks * 32 keys, two keys in a word, short of their sums. Bit i of stands[c] says
// whether key 32 c + i stands there; at least one does. kFirst: no keys came before.
template <typename T, int kHead, int kTiles, int kChunks, bool kFirst>
__device__ __forceinline__ void weigh(uint32_t (&pairs)[kTiles][4 * kChunks][2], State<kHead, kTiles>& state,
                                      const uint8_t* queries, int query_stride, const uint8_t* keys,
                                      const uint32_t (&stands)[kChunks], float scale) {
    using Sum = typename Score<T>::type;
    constexpr int kRowBytes = kHead * sizeof(T), kStride = kRowBytes + 16, kParts = kRowBytes / 32;
    const int lane = threadIdx.x % 32, q = lane % 4;

    Sum sums[kTiles][4 * kChunks][4];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        uint32_t a[kTiles][4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            load_matrices(a[m], queries + (m * 16 + lane % 16) * query_stride + part * 32 + lane / 16 * 16);
        }
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            if (stands[c] == 0) continue;
#pragma unroll
            for (int n = 4 * c; n < 4 * c + 4; n += 2) {
                uint32_t b[4];
                const int row = n * 8 + lane / 16 * 8 + lane % 8;
                load_matrices(b, keys + row * kStride + part * 32 + lane / 8 % 2 * 16);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
#pragma unroll
                    for (int m = 0; m < kTiles; ++m) {
                        if (part == 0) {
                            multiply_from(Score<T>::start, sums[m][n + i], a[m], b + 2 * i);
                        } else {
                            multiply(sums[m][n + i], a[m], b + 2 * i);
                        }
                    }
                }
            }
        }
    }

    float p[kTiles][4 * kChunks][4];
    float high[kTiles][2];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) high[m][0] = state.highest[m][0], high[m][1] = state.highest[m][1];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        if (stands[c] == 0) continue;
#pragma unroll
        for (int n = 4 * c; n < 4 * c + 4; ++n) {
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) p[m][n][i] = bits_as<float>(sums[m][n][i]);
            }
        }
        if (stands[c] != kAll) {
            const uint32_t own = stands[c] >> 2 * q;
#pragma unroll
            for (int n = 4 * c; n < 4 * c + 4; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const bool there = own >> (n % 4 * 8 + i % 2) & 1;
#pragma unroll
                    for (int m = 0; m < kTiles; ++m) p[m][n][i] = there ? p[m][n][i] : -INFINITY;
                }
            }
        }
#pragma unroll
        for (int n = 4 * c; n < 4 * c + 4; ++n) {
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) high[m][i / 2] = fmaxf(high[m][i / 2], p[m][n][i]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            high[m][r] = fmaxf(high[m][r], __shfl_xor_sync(kAll, high[m][r], 1));
            high[m][r] = fmaxf(high[m][r], __shfl_xor_sync(kAll, high[m][r], 2));
            state.highest[m][r] = high[m][r];
            const float offset = -high[m][r] * scale;
            if constexpr (!kFirst) {
                // The offsets' difference, not the scores': it is what the exponents below were and will be shifted by.
                const float shrink = power_of_two(offset - state.offset[m][r]);
                state.total[m][2 * r] *= shrink, state.total[m][2 * r + 1] *= shrink;
#pragma unroll
                for (int n = 0; n < kHead / 8; ++n) {
                    state.context[m][n][2 * r] *= shrink, state.context[m][n][2 * r + 1] *= shrink;
                }
            }
            state.offset[m][r] = offset;
        }
    }

#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        if (stands[c] == 0) continue;
#pragma unroll
        for (int n = 4 * c; n < 4 * c + 4; ++n) {
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    p[m][n][i] = power_of_two(fmaf(p[m][n][i], scale, state.offset[m][i / 2]));
                }
                pairs[m][n][0] = half_pair(p[m][n][0], p[m][n][1]);
                pairs[m][n][1] = half_pair(p[m][n][2], p[m][n][3]);
            }
        }
    }
}

// Adds the values of those keys, weighted.
template <typename T, int kHead, int kTiles, int kChunks>
__device__ __forceinline__ void gather(State<kHead, kTiles>& state, const uint32_t (&pairs)[kTiles][4 * kChunks][2],
                                       const uint8_t* values, const uint32_t (&stands)[kChunks]) {
    constexpr int kRowBytes = kHead * sizeof(T), kStride = kRowBytes + 16, kParts = kRowBytes / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < 2 * kChunks; ++k) {
        if (stands[k / 2] == 0) continue;
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            const uint32_t a[4] = {pairs[m][2 * k][0], pairs[m][2 * k][1], pairs[m][2 * k + 1][0], pairs[m][2 * k + 1][1]};
            const uint32_t ones[2] = {0x3c003c00u, 0x3c003c00u};
            multiply(state.total[m], a, ones);
        }
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            uint32_t b[4];
            load_transposed(b, values + (k * 16 + lane % 16) * kStride + part * 32 + lane / 16 * 16);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int m = 0; m < kTiles; ++m) {
                    const uint32_t a[4] = {pairs[m][2 * k][0], pairs[m][2 * k][1], pairs[m][2 * k + 1][0],
                                           pairs[m][2 * k + 1][1]};
                    if constexpr (sizeof(T) == 1) {
                        // Of two neighbouring columns: one product has the even ones of 16, the next the odd ones.
                        const uint32_t low = b[2 * i] ^ 0x80808080u, high = b[2 * i + 1] ^ 0x80808080u;
                        const uint32_t even[2] = {halves_of(low, 0), halves_of(high, 0)};
                        const uint32_t odd[2] = {halves_of(low, 1), halves_of(high, 1)};
                        multiply(state.context[m][part * 4 + 2 * i], a, even);
                        multiply(state.context[m][part * 4 + 2 * i + 1], a, odd);
                    } else {
                        multiply(state.context[m][part * 2 + i], a, b + 2 * i);
                    }
                }
            }
        }
    }
}

// One bit for each of 32 tokens from `first` on: whether it stands there.
__device__ __forceinline__ uint32_t standing(const int32_t* mask, int first, int length) {
    const int token = first + threadIdx.x % 32;
    return __ballot_sync(kAll, token < length && (mask == nullptr || mask[token] != 0));
}

template <int kPower>
constexpr int kLog2 = 1 + kLog2<kPower / 2>;
template <>
constexpr int kLog2<1> = 0;

// Copies `part` of the rows (0: queries, 1: keys, 2: values) of tokens from `first` on. The block's heads, 1 << shift of
// them, share kRows rows. Rows beyond the sentence are left as they are, but values are cleared: whatever a probability of
// zero meets has to be a number.
template <int kRows, int kRowBytes, int kThreads>
__device__ __forceinline__ void copy_rows(uint8_t* to, int stride, const uint8_t* qkv, uint32_t pitch, int part, int first,
                                          int length, int shift, int heads) {
    constexpr int kPieces = kRowBytes / 16, kStep = kThreads / kPieces;
    static_assert(kRows % kStep == 0, "every thread copies as many pieces");
    const int row0 = threadIdx.x / kPieces;
    const uint32_t byte = threadIdx.x % kPieces * 16, row_bytes = 3 * pitch;
    uint8_t* const at = to + row0 * stride + byte;
    const uint8_t* const from = qkv + part * pitch + byte;
    const bool cleared = part == 2;
    if (shift == 0) {
        const uint8_t* const own = from + (first + row0) * row_bytes;
#pragma unroll
        for (int i = 0; i < kRows / kStep; ++i) {
            const bool there = first + row0 + i * kStep < length;
            if (there || cleared) copy_later(at + i * kStep * stride, there ? own + i * kStep * row_bytes : qkv, there);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
        const int row = row0 + i * kStep, slot = row >> (kLog2<kRows> - shift), token = row & ((kRows >> shift) - 1);
        const bool there = token < length && slot < heads;
        if (!there && !cleared) continue;
        copy_later(at + i * kStep * stride, there ? from + token * row_bytes + slot * kRowBytes : qkv, there);
    }
}

// kLong: sentences may have more than kKeys tokens.
template <typename T, typename Out, int kHead, int kTiles, int kWarps, bool kLong>
__global__ void __launch_bounds__(kWarps * 32, kLong ? (kTiles == 1 ? 3 : 2) : kTiles == 1 ? 16 / kWarps : 3)
    quantkit_attention(Attention args) {
    using Own = Form<T, Out, kHead, kTiles, kWarps>;
    constexpr int kRowBytes = Own::kRowBytes, kThreads = Own::kThreads, kStride = Own::kStride;
    uint8_t* const queries = dynamic_shared();
    uint8_t* const keys = queries + Own::kQueries * Own::kQueryStride;
    uint8_t* const values = keys + kKeys * kStride;

    let_next_begin();
    wait_for_inputs();
    const int sentence = blockIdx.z, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int start = args.starts ? args.starts[sentence] : sentence * args.sequence;
    const int own_length = args.starts ? args.starts[sentence + 1] - start : args.sequence;
    const int length = own_length < args.sequence ? own_length : args.sequence;
    // Short sentences: the block has two heads or four, each in its own part of the rows.
    const int shift = length <= Own::kQueries / 4 ? 2 : length <= Own::kQueries / 2 ? 1 : 0;
    const int block0 = int(blockIdx.x) * Own::kQueries, head0 = int(blockIdx.y) << shift;
    if (block0 >= length || head0 >= args.heads) return;
    const int heads = args.heads - head0;
    const uint32_t pitch = args.heads * kRowBytes;  // a third of a row of `qkv`
    const uint8_t* const qkv = static_cast<const uint8_t*>(args.qkv) + size_t(start) * 3 * pitch + head0 * kRowBytes;
    copy_rows<Own::kQueries, kRowBytes, kThreads>(queries, Own::kQueryStride, qkv, pitch, 0, block0, length, shift, heads);

    const int slot = warp * Own::kWarpQueries >> (kLog2<Own::kQueries> - shift);
    const int query0 = block0 + (warp * Own::kWarpQueries & ((Own::kQueries >> shift) - 1));
    const bool works = query0 < length && slot < heads;
    uint8_t* const own_queries = queries + warp * Own::kWarpQueries * Own::kQueryStride;
    const int32_t* mask = args.mask ? args.mask + size_t(sentence) * args.sequence : nullptr;
    const float scale = args.score_scale * kLog2E;
    State<kHead, kTiles> state;
    bool whole = true;
    if constexpr (kLong) whole = length <= kKeys;
    if (whole) {
        copy_rows<kKeys, kRowBytes, kThreads>(keys, kStride, qkv, pitch, 1, 0, length, shift, heads);
        copies_commit();
        copy_rows<kKeys, kRowBytes, kThreads>(values, kStride, qkv, pitch, 2, 0, length, shift, heads);
        copies_commit();
        uint32_t stands[kKeys / kChunk], any = 0;
#pragma unroll
        for (int c = 0; c < kKeys / kChunk; ++c) any |= stands[c] = standing(mask, c * kChunk, length);
        if (any == 0) {  // all of it padding: as if none of it were
#pragma unroll
            for (int c = 0; c < kKeys / kChunk; ++c) stands[c] = standing(nullptr, c * kChunk, length);
        }
        const int first_row = slot * (kKeys >> shift) * kStride;
        uint32_t pairs[kTiles][kKeys / 8][2];
        copies_wait<1>();
        __syncthreads();
        if (works) {
            weigh<T, kHead, kTiles, kKeys / kChunk, true>(pairs, state, own_queries, Own::kQueryStride, keys + first_row,
                                                          stands, scale);
        }
        copies_wait<0>();
        __syncthreads();
        if (!works) return;
        gather<T, kHead, kTiles, kKeys / kChunk>(state, pairs, values + first_row, stands);
    } else if constexpr (kLong) {
        constexpr int kPiece = kKeys / 2;
        bool any = false;
        for (int first = 0; first < length && !any; first += kChunk) any = standing(mask, first, length) != 0;
        if (!any) mask = nullptr;
        uint32_t stands[2], next[2];
        // First key of the next piece in which a key stands, or `length`.
        auto find = [&](int first) {
            for (; first < length; first += kPiece) {
                next[0] = standing(mask, first, length), next[1] = standing(mask, first + kChunk, length);
                if (next[0] | next[1]) return first;
            }
            return length;
        };
        auto fetch = [&](int first, int stage) {
            const int row = stage * kPiece * kStride;
            if (first < length) {
                copy_rows<kPiece, kRowBytes, kThreads>(keys + row, kStride, qkv, pitch, 1, first, length, 0, heads);
                copy_rows<kPiece, kRowBytes, kThreads>(values + row, kStride, qkv, pitch, 2, first, length, 0, heads);
            }
            copies_commit();
        };
        int first = find(0);
        fetch(first, 0);
        for (int stage = 0; first < length; stage ^= 1) {
            stands[0] = next[0], stands[1] = next[1];
            first = find(first + kPiece);
            fetch(first, stage ^ 1);
            copies_wait<1>();
            __syncthreads();
            if (works) {
                const int row = stage * kPiece * kStride;
                uint32_t pairs[kTiles][kPiece / 8][2];
                weigh<T, kHead, kTiles, 2, false>(pairs, state, own_queries, Own::kQueryStride, keys + row, stands, scale);
                gather<T, kHead, kTiles, 2>(state, pairs, values + row, stands);
            }
            __syncthreads();
        }
        copies_wait<0>();
        if (!works) return;
    }

    // The results to shared memory, where this warp's queries were, and out of it in whole rows.
    __syncwarp();
    Out* const results = reinterpret_cast<Out*>(own_queries);
    constexpr int kOutStride = Own::kQueryStride / sizeof(Out);
    const float unit = args.value_scale * (sizeof(Out) == 1 ? args.rescale : 1.f);
    const float added = (sizeof(Out) == 1 ? args.shift : 0.f) - kAdded<T> * unit;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float norm = __fdividef(unit, state.total[m][2 * r]);
            auto result = [&](float sum) { return fmaf(sum, norm, added); };
            Out* const row = results + (m * 16 + lane / 4 + 8 * r) * kOutStride;
#pragma unroll
            for (int n = 0; n < kHead / 8; n += 2) {
                const float* const one = state.context[m][n] + 2 * r;
                const float* const two = state.context[m][n + 1] + 2 * r;
                if constexpr (sizeof(T) == 1) {
                    const float y[4] = {result(one[0]), result(two[0]), result(one[1]), result(two[1])};
                    put(row + n * 8 + lane % 4 * 4, y);
                } else {
                    const float y[2][2] = {{result(one[0]), result(one[1])}, {result(two[0]), result(two[1])}};
                    put(row + n * 8 + lane % 4 * 2, y[0]);
                    put(row + n * 8 + 8 + lane % 4 * 2, y[1]);
                }
            }
        }
    }
    __syncwarp();
    constexpr int kPieces = Own::kOutBytes / 16;
    uint8_t* const out = static_cast<uint8_t*>(args.out) + (size_t(start) * args.heads + head0 + slot) * Own::kOutBytes;
#pragma unroll
    for (int i = 0; i < Own::kWarpQueries * kPieces / 32; ++i) {
        const int row = (lane + i * 32) / kPieces, byte = lane % kPieces * 16, token = query0 + row;
        if (token >= length) continue;
        *reinterpret_cast<uint4*>(out + size_t(token) * args.heads * Own::kOutBytes + byte) =
            *reinterpret_cast<const uint4*>(own_queries + row * Own::kQueryStride + byte);
    }
}

template <typename T, typename Out, int kHead, int kTiles, int kWarps, bool kLong>
cudaError_t run_form(const Attention& args, cudaStream_t stream) {
    using Own = Form<T, Out, kHead, kTiles, kWarps>;
    const auto kernel = quantkit_attention<T, Out, kHead, kTiles, kWarps, kLong>;
    static const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Own::kShared);
    static const cudaError_t shared = share_like_linear(kernel);
    if (allowed != cudaSuccess || shared != cudaSuccess) return allowed != cudaSuccess ? allowed : shared;
    const dim3 grid((args.sequence + Own::kQueries - 1) / Own::kQueries, args.heads, args.batch);
    return launch(kernel, grid, Own::kThreads, Own::kShared, stream, args);
}

template <typename T, typename Out, int kHead>
cudaError_t run_head(const Attention& args, cudaStream_t stream) {
    constexpr int kWarps = 4;
    // Few heads, or short sentences, are spread over more multiprocessors by twice as many blocks; in long sentences INT8
    // has not the registers for 32 queries a warp.
    const int blocks = args.batch * args.heads * ((args.sequence + kKeys - 1) / kKeys);
    const bool better = blocks <= kFewBlocks || args.sequence <= kKeys / 2 || args.starts != nullptr ||
                        (args.sequence > kKeys && sizeof(T) == 1);
    const bool small = args.form == 0 ? better : args.form == 2;
    if (args.sequence > kKeys) {
        return small ? run_form<T, Out, kHead, 1, kWarps, true>(args, stream)
                     : run_form<T, Out, kHead, 2, kWarps, true>(args, stream);
    }
    return small ? run_form<T, Out, kHead, 1, kWarps, false>(args, stream)
                 : run_form<T, Out, kHead, 2, kWarps, false>(args, stream);
}

template <typename T, typename Out>
cudaError_t run(const Attention& args, cudaStream_t stream) {
    // Within a sentence bytes are counted in 32 bits.
    if (int64_t{args.sequence} * 3 * args.heads * args.head * int64_t{sizeof(T)} >> 31) return cudaErrorInvalidValue;
    if (args.head == 32) return run_head<T, Out, 32>(args, stream);
    if (args.head == 64) return run_head<T, Out, 64>(args, stream);
    return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t attention(const Attention& args, cudaStream_t stream) {
    if (args.batch < 1 || args.batch > 65535 || args.sequence < 1 || args.heads < 1 || args.heads > 65535 ||
        args.form < 0 || args.form > 2 || !(args.score_scale > 0.f)) {
        return cudaErrorInvalidValue;
    }
    if (args.type == Type::kInt8 && args.out_type == Type::kInt8) return run<int8_t, int8_t>(args, stream);
    if (args.type == Type::kInt8 && args.out_type == Type::kHalf) return run<int8_t, __half>(args, stream);
    if (args.type == Type::kHalf && args.out_type == Type::kHalf) return run<__half, __half>(args, stream);
    if (args.type == Type::kHalf && args.out_type == Type::kInt8) return run<__half, int8_t>(args, stream);
    return cudaErrorInvalidValue;
}

}  // namespace quantkit
