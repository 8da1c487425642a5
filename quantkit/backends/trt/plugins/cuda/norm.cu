// What reads and writes each element once: LayerNorm with residual, bias and quantization, the embeddings, bias + GELU.
// A warp takes a row in pieces of 8 elements, the next one 32 pieces on; a row stays in registers between its two passes.
#include "common.cuh"

namespace quantkit {
namespace {

constexpr int kMostPieces = 8;  // of a lane: rows of up to 2048 elements

struct Finish {
    const float* gamma;
    const float* beta;
    int width;
    float epsilon;
};

// Normalizes a row of which this lane holds `pieces` pieces, and hands each to `give`(first element, 8 numbers).
template <int kPieces, typename Give>
__device__ __forceinline__ void normalize(float (&x)[kPieces][8], const Finish& f, int lane, Give give) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum += x[i][j];  // pieces beyond the row are zero
    }
    const float mean = warp_sum(sum) / f.width;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        if ((lane + 32 * i) * 8 >= f.width) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            x[i][j] -= mean;
            squares = fmaf(x[i][j], x[i][j], squares);
        }
    }
    const float factor = rsqrtf(warp_sum(squares) / f.width + f.epsilon);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = (lane + 32 * i) * 8;
        if (at >= f.width) continue;
        float gamma[8], beta[8], y[8];
        load8(f.gamma, at, 0.f, gamma);
        load8(f.beta, at, 0.f, beta);
#pragma unroll
        for (int j = 0; j < 8; ++j) y[j] = fmaf(x[i][j] * factor, gamma[j], beta[j]);
        give(at, y);
    }
}

__device__ __forceinline__ void give_out(const Norm& args, size_t at, const float (&y)[8]) {
    if (args.out != nullptr) {
        if (args.out_type == Type::kHalf) {
            store8(static_cast<__half*>(args.out), at, Code{}, y);
        } else {
            store8(static_cast<float*>(args.out), at, Code{}, y);
        }
    }
    if (args.quantized != nullptr) store8(args.quantized, at, Code{args.rescale, args.shift}, y);
}

// Eight numbers as they lie in memory.
template <typename T>
struct Raw {
    uint4 words[sizeof(T) == 4 ? 2 : 1];
    __device__ __forceinline__ void load(const T* from, size_t index) {
        const uint4* const at = reinterpret_cast<const uint4*>(from + index);
        words[0] = at[0];
        if constexpr (sizeof(T) == 4) words[1] = at[1];
    }
    __device__ __forceinline__ void numbers(float, float (&x)[8]) const { load8(reinterpret_cast<const T*>(words), 0, 0.f, x); }
};
template <>
struct Raw<int8_t> {
    uint2 words;
    __device__ __forceinline__ void load(const int8_t* from, size_t index) {
        words = *reinterpret_cast<const uint2*>(from + index);
    }
    __device__ __forceinline__ void numbers(float scale, float (&x)[8]) const {
        load8(reinterpret_cast<const int8_t*>(&words), 0, scale, x);
    }
};

// LayerNorm of x + residual, no bias, of rows of kPieces * 256 elements. gamma and beta, which no kernel writes, are copied
// to shared memory while the kernel before ends; everything else of a row is asked for before any of it is used.
template <typename X, typename R, int kPieces, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) quantkit_norm_whole(Norm args) {
    constexpr int kWidth = kPieces * 256;
    alignas(16) __shared__ float gamma[kWidth];
    alignas(16) __shared__ float beta[kWidth];
    let_next_begin();
    for (int i = threadIdx.x * 4; i < kWidth; i += kWarps * 128) {
        copy_later(gamma + i, args.gamma + i, true);
        copy_later(beta + i, args.beta + i, true);
    }
    copies_commit();
    wait_for_inputs();
    const int row = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool there = row < args.rows;
    const size_t start = size_t(there ? row : 0) * kWidth + lane * 8;
    Raw<X> raw[kPieces];
    Raw<R> residual[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        raw[i].load(static_cast<const X*>(args.x), start + i * 256);
        residual[i].load(static_cast<const R*>(args.residual), start + i * 256);
    }
    copies_wait<0>();
    __syncthreads();
    if (!there) return;
    float x[kPieces][8];
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        float r[8];
        raw[i].numbers(args.x_scale, x[i]);
        residual[i].numbers(args.residual_scale, r);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] += r[j], sum += x[i][j];
    }
    const float mean = warp_sum(sum) * (1.f / kWidth);
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] -= mean, squares = fmaf(x[i][j], x[i][j], squares);
    }
    const float factor = rsqrtf(fmaf(warp_sum(squares), 1.f / kWidth, args.epsilon));
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = lane * 8 + i * 256;
        float g[8], b[8], y[8];
        load8(gamma, at, 0.f, g);
        load8(beta, at, 0.f, b);
#pragma unroll
        for (int j = 0; j < 8; ++j) y[j] = fmaf(x[i][j] * factor, g[j], b[j]);
        give_out(args, start + i * 256, y);
    }
}

template <typename X, typename R, int kPieces>
__global__ void quantkit_norm(Norm args) {
    let_next_begin();
    wait_for_inputs();
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= args.rows) return;
    const size_t start = size_t(row) * args.width;
    float x[kPieces][8];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = (lane + 32 * i) * 8;
        if (at < args.width) {
            load8(static_cast<const X*>(args.x), start + at, args.x_scale, x[i]);
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) x[i][j] = 0.f;
        }
    }
    if (args.residual != nullptr) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const int at = (lane + 32 * i) * 8;
            if (at >= args.width) continue;
            float r[8];
            load8(static_cast<const R*>(args.residual), start + at, args.residual_scale, r);
#pragma unroll
            for (int j = 0; j < 8; ++j) x[i][j] += r[j];
        }
    }
    if (args.bias != nullptr) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const int at = (lane + 32 * i) * 8;
            if (at >= args.width) continue;
            float b[8];
            load8(args.bias, at, 0.f, b);
#pragma unroll
            for (int j = 0; j < 8; ++j) x[i][j] += b[j];
        }
    }
    normalize(x, Finish{args.gamma, args.beta, args.width, args.epsilon}, lane,
              [&](int at, const float(&y)[8]) { give_out(args, start + at, y); });
}

__device__ __forceinline__ float number_at(const void* from, Type type, size_t i, float scale) {
    if (type == Type::kHalf) return load1(static_cast<const __half*>(from), i, scale);
    if (type == Type::kInt8) return load1(static_cast<const int8_t*>(from), i, scale);
    return load1(static_cast<const float*>(from), i, scale);
}

// Rows of any width, a warp a row, element by element; reads the row three times.
__global__ void quantkit_norm_any(Norm args) {
    let_next_begin();
    wait_for_inputs();
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= args.rows) return;
    const size_t start = size_t(row) * args.width;
    auto value = [&](int i) {
        float x = number_at(args.x, args.x_type, start + i, args.x_scale);
        if (args.residual) x += number_at(args.residual, args.residual_type, start + i, args.residual_scale);
        return args.bias ? x + args.bias[i] : x;
    };
    float sum = 0.f, squares = 0.f;
    for (int i = lane; i < args.width; i += 32) sum += value(i);
    const float mean = warp_sum(sum) / args.width;
    for (int i = lane; i < args.width; i += 32) {
        const float x = value(i) - mean;
        squares = fmaf(x, x, squares);
    }
    const float factor = rsqrtf(warp_sum(squares) / args.width + args.epsilon);
    for (int i = lane; i < args.width; i += 32) {
        const float y = fmaf((value(i) - mean) * factor, args.gamma[i], args.beta[i]);
        if (args.out != nullptr) {
            if (args.out_type == Type::kHalf) {
                store1(static_cast<__half*>(args.out), start + i, Code{}, y);
            } else {
                store1(static_cast<float*>(args.out), start + i, Code{}, y);
            }
        }
        if (args.quantized != nullptr) store1(args.quantized, start + i, Code{args.rescale, args.shift}, y);
    }
}

// Few rows are spread over as many multiprocessors as there are; many share blocks.
int warps_for(int rows) { return rows <= 1024 ? 1 : 4; }

template <typename X, typename R, int kPieces, int kWarps>
cudaError_t launch_whole(const Norm& args, cudaStream_t stream) {
    const auto kernel = quantkit_norm_whole<X, R, kPieces, kWarps>;
    static const cudaError_t shared = share_like_linear(kernel);
    if (shared != cudaSuccess) return shared;
    return launch(kernel, dim3((args.rows + kWarps - 1) / kWarps), 32 * kWarps, 0, stream, args);
}

template <typename X, typename R, int kWarps>
cudaError_t run_whole(const Norm& args, cudaStream_t stream) {
    switch (args.width / 256) {
        case 1:
            return launch_whole<X, R, 1, kWarps>(args, stream);
        case 2:
            return launch_whole<X, R, 2, kWarps>(args, stream);
        case 3:
            return launch_whole<X, R, 3, kWarps>(args, stream);
        default:
            return launch_whole<X, R, 4, kWarps>(args, stream);
    }
}

template <typename X, typename R>
cudaError_t run_norm(const Norm& args, cudaStream_t stream) {
    const int warps = warps_for(args.rows), pieces = (args.width + 255) / 256;
    const dim3 grid((args.rows + warps - 1) / warps);
    if (args.residual != nullptr && args.bias == nullptr && args.width % 256 == 0 && pieces <= 4) {
        return args.rows <= 512 ? run_whole<X, R, 1>(args, stream) : run_whole<X, R, 8>(args, stream);
    }
    switch (pieces) {
        case 1:
            return launch(quantkit_norm<X, R, 1>, grid, 32 * warps, 0, stream, args);
        case 2:
            return launch(quantkit_norm<X, R, 2>, grid, 32 * warps, 0, stream, args);
        case 3:
            return launch(quantkit_norm<X, R, 3>, grid, 32 * warps, 0, stream, args);
        case 4:
            return launch(quantkit_norm<X, R, 4>, grid, 32 * warps, 0, stream, args);
        default:
            return launch(quantkit_norm<X, R, kMostPieces>, grid, 32 * warps, 0, stream, args);
    }
}

template <typename X>
cudaError_t with_residual(const Norm& args, cudaStream_t stream) {
    if (args.residual == nullptr || args.residual_type == Type::kHalf) return run_norm<X, __half>(args, stream);
    if (args.residual_type == Type::kInt8) return run_norm<X, int8_t>(args, stream);
    return run_norm<X, float>(args, stream);
}

template <int kPieces>
__global__ void quantkit_embedding(Embedding args) {
    let_next_begin();
    wait_for_inputs();
    const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= args.tokens_in_all) return;
    int position = token % args.sequence;
    if (args.starts != nullptr) {
        int low = 0, high = args.batch;  // the sentence is the last one that starts at or before the token
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (args.starts[middle] <= token) {
                low = middle;
            } else {
                high = middle;
            }
        }
        position = token - args.starts[low];
    }
    auto row_of = [&](const void* table, int row, int rows) {
        return static_cast<const __half*>(table) + size_t(row >= 0 && row < rows ? row : 0) * args.width;
    };
    const __half* const word = row_of(args.word, args.tokens[token], args.words);
    const __half* const place = row_of(args.position, position, args.positions);
    const __half* const kind = row_of(args.segment, args.segments[token], args.kinds);
    float x[kPieces][8];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int at = (lane + 32 * i) * 8;
        float a[8] = {}, b[8] = {}, c[8] = {};
        if (at < args.width) {
            load8(word, at, 0.f, a);
            load8(place, at, 0.f, b);
            load8(kind, at, 0.f, c);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] = a[j] + b[j] + c[j];
    }
    const size_t start = size_t(token) * args.width;
    normalize(x, Finish{args.gamma, args.beta, args.width, args.epsilon}, lane, [&](int at, const float(&y)[8]) {
        if (args.out != nullptr) store8(static_cast<__half*>(args.out), start + at, Code{}, y);
        if (args.quantized != nullptr) store8(args.quantized, start + at, Code{args.rescale, args.shift}, y);
    });
}

template <typename X, typename Out>
__global__ void quantkit_bias_gelu(BiasGelu args, size_t count) {
    let_next_begin();
    wait_for_inputs();
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float x = load1(static_cast<const X*>(args.x), i, args.x_scale);
    store1(static_cast<Out*>(args.out), i, Code{args.rescale, args.shift}, gelu(args.bias ? x + args.bias[i % args.width] : x));
}

template <typename X, typename Out>
__global__ void quantkit_bias_gelu8(BiasGelu args, size_t count) {
    let_next_begin();
    wait_for_inputs();
    const size_t i = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (i >= count) return;
    float x[8], b[8] = {};
    load8(static_cast<const X*>(args.x), i, args.x_scale, x);
    if (args.bias != nullptr) load8(args.bias, i % args.width, 0.f, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = gelu(x[j] + b[j]);
    store8(static_cast<Out*>(args.out), i, Code{args.rescale, args.shift}, x);
}

template <typename X, typename Out>
cudaError_t run_gelu(const BiasGelu& args, cudaStream_t stream) {
    const size_t count = size_t(args.rows) * args.width;
    constexpr int kThreads = 256;
    if (args.width % 8 == 0) {
        const dim3 grid(unsigned((count / 8 + kThreads - 1) / kThreads));
        return launch(quantkit_bias_gelu8<X, Out>, grid, kThreads, 0, stream, args, count);
    }
    const dim3 grid(unsigned((count + kThreads - 1) / kThreads));
    return launch(quantkit_bias_gelu<X, Out>, grid, kThreads, 0, stream, args, count);
}

template <typename X>
cudaError_t gelu_to(const BiasGelu& args, cudaStream_t stream) {
    if (args.out_type == Type::kHalf) return run_gelu<X, __half>(args, stream);
    if (args.out_type == Type::kInt8) return run_gelu<X, int8_t>(args, stream);
    return run_gelu<X, float>(args, stream);
}

__global__ void quantkit_first_tokens(const __half* x, const int32_t* starts, __half* out, int sequence, int width) {
    let_next_begin();
    wait_for_inputs();
    const int sentence = blockIdx.x;
    const size_t from = size_t(starts ? starts[sentence] : sentence * sequence) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[size_t(sentence) * width + i] = x[from + i];
}

// A warp makes one logit.
__global__ void quantkit_classifier(const __half* x, const float* weight, const float* bias, float* out, int batch,
                                    int width, int labels) {
    let_next_begin();
    wait_for_inputs();
    const int number = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (number >= batch * labels) return;
    const int row = number / labels, label = number % labels;
    float sum = 0.f;
    for (int i = lane; i < width; i += 32) {
        sum = fmaf(tanhf(__half2float(x[size_t(row) * width + i])), weight[size_t(label) * width + i], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) out[number] = sum + bias[label];
}

}  // namespace

cudaError_t norm(const Norm& args, cudaStream_t stream) {
    if (args.rows < 1 || args.width < 1 || args.out_type == Type::kInt8) return cudaErrorInvalidValue;
    if (args.width % 8 || args.width > 256 * kMostPieces) {
        const int warps = warps_for(args.rows);
        return launch(quantkit_norm_any, dim3((args.rows + warps - 1) / warps), 32 * warps, 0, stream, args);
    }
    if (args.x_type == Type::kHalf) return with_residual<__half>(args, stream);
    if (args.x_type == Type::kInt8) return with_residual<int8_t>(args, stream);
    return with_residual<float>(args, stream);
}

cudaError_t embedding(const Embedding& args, cudaStream_t stream) {
    if (args.tokens_in_all < 1 || args.sequence < 1 || args.width < 8 || args.width % 8 ||
        args.width > 256 * kMostPieces) {
        return cudaErrorInvalidValue;
    }
    const int warps = warps_for(args.tokens_in_all);
    const dim3 grid((args.tokens_in_all + warps - 1) / warps);
    if (args.width <= 512) return launch(quantkit_embedding<2>, grid, 32 * warps, 0, stream, args);
    if (args.width <= 768) return launch(quantkit_embedding<3>, grid, 32 * warps, 0, stream, args);
    if (args.width <= 1024) return launch(quantkit_embedding<4>, grid, 32 * warps, 0, stream, args);
    return launch(quantkit_embedding<kMostPieces>, grid, 32 * warps, 0, stream, args);
}

cudaError_t bias_gelu(const BiasGelu& args, cudaStream_t stream) {
    if (args.rows < 1 || args.width < 1) return cudaErrorInvalidValue;
    if (args.x_type == Type::kHalf) return gelu_to<__half>(args, stream);
    if (args.x_type == Type::kInt8) return gelu_to<int8_t>(args, stream);
    return gelu_to<float>(args, stream);
}

cudaError_t first_tokens(const void* x, const int32_t* starts, void* out, int batch, int sequence, int width,
                         cudaStream_t stream) {
    if (batch < 1 || width < 1) return cudaErrorInvalidValue;
    return launch(quantkit_first_tokens, dim3(batch), width < 256 ? 128 : 256, 0, stream,
                  static_cast<const __half*>(x), starts, static_cast<__half*>(out), sequence, width);
}

cudaError_t classifier(const void* x, const float* weight, const float* bias, float* out, int batch, int width,
                       int labels, cudaStream_t stream) {
    if (batch < 1 || width < 1 || labels < 1) return cudaErrorInvalidValue;
    constexpr int kWarps = 4;
    const dim3 grid((batch * labels + kWarps - 1) / kWarps);
    return launch(quantkit_classifier, grid, 32 * kWarps, 0, stream, static_cast<const __half*>(x), weight, bias, out,
                  batch, width, labels);
}

}  // namespace quantkit
