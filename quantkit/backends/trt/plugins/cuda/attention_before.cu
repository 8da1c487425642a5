// Form 0, only to measure against. Fused self-attention: scores, softmax and context of 64 queries of one head in one block, over keys and values in
// pieces of 64, with the softmax kept up to date as they pass (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al.
// 2022, arXiv:2205.14135). INT8 queries and keys are multiplied in INT8; probabilities and values always in FP16.
#include "common.cuh"
#include "ptx.cuh"

namespace quantkit {
namespace {

constexpr int kQueries = 64, kKeys = 64, kThreads = 128;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMasked = -10000.f * kLog2E;  // added to scores of padding, as in the definition of the network

// Bytes of a row in shared memory: 16 more than needed, so that 8 rows lie in different banks.
template <typename T, int kHead>
constexpr int kKeyStride = kHead * sizeof(T) + 16;
template <int kHead>
constexpr int kValueStride = kHead * 2 + 16;

template <typename T>
struct Score;
template <>
struct Score<int8_t> {
    using type = int32_t;
};
template <>
struct Score<__half> {
    using type = float;
};

__device__ __forceinline__ uint32_t half_pair(float a, float b) {
    return bits_as<uint32_t>(__floats2half2_rn(a, b));
}

// Two INT8 numbers, bytes `first` and `first` + 1 of a word, as two halves: 1024 + (x + 128) has x + 128 in its low bits.
__device__ __forceinline__ uint32_t halves_of(uint32_t word, int first) {
    const uint32_t shifted = __byte_perm(word ^ 0x80808080u, 0x64646464u, first == 0 ? 0x4140 : 0x4342);
    const __half2 offset = __half2half2(__ushort_as_half(0x6480));  // 1152
    return bits_as<uint32_t>(__hsub2(bits_as<__half2>(shifted), offset));
}

// Puts 16 bytes of a value row, elements from `first` on, into shared memory as halves. Pairs of elements are permuted
// within each 32: then a thread of the last product holds eight neighbouring elements of the context.
template <typename T>
__device__ __forceinline__ void put_values(uint8_t* row, int first, const uint4& raw) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    uint32_t* const pairs = reinterpret_cast<uint32_t*>(row) + first / 32 * 16;
    constexpr int kPairs = 16 / sizeof(T) / 2;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
        const int pair = first % 32 / 2 + i;  // 4 q + j goes to 4 j + q
        const int place = pair % 4 * 4 + pair / 4;
        if constexpr (sizeof(T) == 1) {
            pairs[place] = halves_of(words[i / 2], i % 2 * 2);
        } else {
            pairs[place] = words[i];
        }
    }
}

template <typename T, typename Out, int kHead>
__global__ void __launch_bounds__(kThreads) quantkit_attention(Attention args) {
    using Sum = typename Score<T>::type;
    constexpr int kChunks = kHead * sizeof(T) / 16;          // 16-byte pieces of a row
    constexpr int kLoads = kKeys * kChunks / kThreads;       // pieces that a thread copies
    constexpr int kParts = kHead * sizeof(T) / 32;           // steps of the first product
    alignas(16) __shared__ uint8_t keys[kKeys * kKeyStride<T, kHead>];
    alignas(16) __shared__ uint8_t values[kKeys * kValueStride<kHead>];
    __shared__ float bias[kKeys];

    let_next_begin();
    wait_for_inputs();
    const int sentence = blockIdx.z, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int start = args.starts ? args.starts[sentence] : sentence * args.sequence;
    const int length = args.starts ? args.starts[sentence + 1] - start : args.sequence;
    const int query0 = blockIdx.x * kQueries;
    if (query0 >= length) return;
    const int width = args.heads * kHead;
    const T* const query = static_cast<const T*>(args.qkv) + size_t(start) * 3 * width + head * kHead;
    const T* const key = query + width;
    const T* const value = key + width;
    const int32_t* const mask = args.mask ? args.mask + size_t(sentence) * args.sequence : nullptr;

    uint4 key_pieces[kLoads], value_pieces[kLoads];
    auto fetch = [&](int first) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int piece = threadIdx.x + i * kThreads;
            const int token = first + piece / kChunks;
            const size_t from = size_t(token) * 3 * width + piece % kChunks * (16 / sizeof(T));
            const bool there = token < length;
            key_pieces[i] = there ? *reinterpret_cast<const uint4*>(key + from) : uint4{};
            value_pieces[i] = there ? *reinterpret_cast<const uint4*>(value + from) : uint4{};
        }
    };
    fetch(0);

    // This thread's rows of the queries, straight from memory: fragments of the first product.
    const int g = lane / 4, q = lane % 4;
    uint32_t a[kParts][4];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int token = query0 + warp * 16 + g + i % 2 * 8;
            const size_t byte = size_t(token) * 3 * width * sizeof(T) + part * 32 + i / 2 * 16 + q * 4;
            a[part][i] = token < length
                             ? *reinterpret_cast<const uint32_t*>(reinterpret_cast<const uint8_t*>(query) + byte)
                             : 0u;
        }
    }

    const float scale = args.score_scale * kLog2E;
    float context[kHead / 8][4] = {};
    float highest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    for (int first = 0; first < length; first += kKeys) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int piece = threadIdx.x + i * kThreads, row = piece / kChunks, chunk = piece % kChunks;
            *reinterpret_cast<uint4*>(keys + row * kKeyStride<T, kHead> + chunk * 16) = key_pieces[i];
            put_values<T>(values + row * kValueStride<kHead>, chunk * (16 / int(sizeof(T))), value_pieces[i]);
        }
        if (threadIdx.x < kKeys) {
            const int token = first + threadIdx.x;
            bias[threadIdx.x] = token >= length ? -INFINITY : mask && mask[token] == 0 ? kMasked : 0.f;
        }
        __syncthreads();
        if (first + kKeys < length) fetch(first + kKeys);

        float p[kKeys / 8][4];
        float high[2] = {highest[0], highest[1]};
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
            Sum sum[4] = {};
            uint32_t b[kChunks < 4 ? 4 : kChunks];
            if constexpr (kChunks >= 4) {
#pragma unroll
                for (int c = 0; c < kChunks; c += 4) {
                    const uint8_t* row = keys + (j * 8 + lane % 8) * kKeyStride<T, kHead> + (c + lane / 8) * 16;
                    load_matrices(b + c, row);
                }
            } else {
#pragma unroll
                for (int c = 0; c < kChunks; ++c) {
                    const uint8_t* word = keys + (j * 8 + g) * kKeyStride<T, kHead> + c * 16 + q * 4;
                    b[c] = *reinterpret_cast<const uint32_t*>(word);
                }
            }
#pragma unroll
            for (int part = 0; part < kParts; ++part) multiply(sum, a[part], b + 2 * part);
            const float2 added = *reinterpret_cast<const float2*>(bias + j * 8 + q * 2);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[j][i] = fmaf(static_cast<float>(sum[i]), scale, i % 2 ? added.y : added.x);
                high[i / 2] = fmaxf(high[i / 2], p[j][i]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            high[r] = fmaxf(high[r], __shfl_xor_sync(0xffffffffu, high[r], 1));
            high[r] = fmaxf(high[r], __shfl_xor_sync(0xffffffffu, high[r], 2));
            // The first piece holds at least one key that is there, so `high` is finite from then on.
            const float shrink = power_of_two(highest[r] - high[r]);
            highest[r] = high[r];
            total[r] *= shrink;
#pragma unroll
            for (int n = 0; n < kHead / 8; ++n) context[n][2 * r] *= shrink, context[n][2 * r + 1] *= shrink;
        }
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[j][i] = power_of_two(p[j][i] - high[i / 2]);
                total[i / 2] += p[j][i];
            }
        }
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
            const uint32_t probabilities[4] = {half_pair(p[2 * k][0], p[2 * k][1]), half_pair(p[2 * k][2], p[2 * k][3]),
                                               half_pair(p[2 * k + 1][0], p[2 * k + 1][1]),
                                               half_pair(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
            for (int n = 0; n < kHead / 8; n += 2) {
                uint32_t b[4];
                load_transposed(b, values + (k * 16 + lane % 16) * kValueStride<kHead> + (n + lane / 16) * 16);
                multiply(context[n], probabilities, b);
                multiply(context[n + 1], probabilities, b + 2);
            }
        }
    }

    Out* const out = static_cast<Out*>(args.out);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
        const int token = query0 + warp * 16 + g + 8 * r;
        if (token >= length) continue;
        const float norm = args.value_scale / total[r];
#pragma unroll
        for (int part = 0; part < kHead / 32; ++part) {
            float y[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) y[i] = context[part * 4 + i / 2][2 * r + i % 2] * norm;
            store8(out, size_t(start + token) * width + head * kHead + part * 32 + q * 8, Code{args.rescale, args.shift},
                   y);
        }
    }
}

template <typename T, typename Out>
cudaError_t run(const Attention& args, cudaStream_t stream) {
    const dim3 grid((args.sequence + kQueries - 1) / kQueries, args.heads, args.batch);
    if (args.head == 32) return launch(quantkit_attention<T, Out, 32>, grid, kThreads, 0, stream, args);
    if (args.head == 64) return launch(quantkit_attention<T, Out, 64>, grid, kThreads, 0, stream, args);
    return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t attention_before(const Attention& args, cudaStream_t stream);

cudaError_t attention_before(const Attention& args, cudaStream_t stream) {
    if (args.batch < 1 || args.batch > 65535 || args.sequence < 1 || args.heads < 1 || args.heads > 65535) {
        return cudaErrorInvalidValue;
    }
    if (args.type == Type::kInt8 && args.out_type == Type::kInt8) return run<int8_t, int8_t>(args, stream);
    if (args.type == Type::kInt8 && args.out_type == Type::kHalf) return run<int8_t, __half>(args, stream);
    if (args.type == Type::kHalf && args.out_type == Type::kHalf) return run<__half, __half>(args, stream);
    if (args.type == Type::kHalf && args.out_type == Type::kInt8) return run<__half, int8_t>(args, stream);
    return cudaErrorInvalidValue;
}

}  // namespace quantkit
