// Kernels of BERT's encoder, as host functions. No TensorRT here: the plugins and the tests call the same functions.
//
// All matrices are row-major and contiguous; every pointer is on the device and aligned to 16 bytes. A function enqueues
// its work on `stream` and returns cudaSuccess, cudaErrorInvalidValue for sizes it does not take, or what CUDA says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

namespace quantkit {

enum class Type : int32_t { kFloat = 0, kHalf = 1, kInt8 = 2 };

// INT8 outputs are round(y * rescale + shift) within [-127, 127]: `rescale` is 1 / scale, `shift` the code of zero.
// Neither is used for other types.

// out = activation(alpha[n] * sum_k in[m, k] * weight[n, k] + beta[n]).
struct Linear {
    const void* in;       // [m, k] of type `type`: kInt8 or kHalf
    const void* weight;   // [n, k] of the same type, rows in the order of `linear_row`
    const float* alpha;   // [n]; scale of the product, of input and weight together
    const float* beta;    // [n]
    void* out;            // [m, n] of type `out_type`: kInt8 or kHalf
    Type type, out_type;
    int m, n, k;          // n a multiple of 32, k times the size of an element a multiple of 16
    bool gelu;            // activation: GELU with the error function, or none
    float rescale, shift;
    int tile;             // number of a tile shape, 0 to linear_tiles() - 1; below 0: chosen by size
};

int linear_tiles();
// Four numbers of a tile shape: rows; columns; teams, 0 where a block makes one tile and ends; blocks in a cluster.
void linear_tile(int tile, int* shape);
// The tile shape that a rule of thumb takes for these sizes on a GPU with that many multiprocessors.
int linear_choice(int m, int n, int multiprocessors);
// Row of `weight` that holds the weights of output column `column`.
int linear_row(int column);
cudaError_t linear(const Linear& args, cudaStream_t stream);

// Multi-head self-attention over the joint product of query, key and value.
struct Attention {
    const void* qkv;        // [tokens, 3 * heads * head] of type `type`: kInt8 or kHalf; query, key, value side by side
    const int32_t* mask;    // [batch, sequence], not zero where a token stands; or null
    const int32_t* starts;  // [batch + 1], first token of each packed sentence and the end of the last; or null
    void* out;              // [tokens, heads * head] of type `out_type`: kInt8 or kHalf
    Type type, out_type;
    int batch, sequence;    // longest sequence; without `starts` every sentence has that many rows
    int heads, head;        // head 32 or 64
    float score_scale;      // positive: scale of query times key, 1 / sqrt(head) included
    float value_scale;      // scale of value; 1 for kHalf
    float rescale, shift;
    int form;               // 1: 32 queries a warp; 2: 16, and twice as many blocks; 0: chosen by size
};
cudaError_t attention(const Attention& args, cudaStream_t stream);

// y = LayerNorm(x * x_scale + bias + residual * residual_scale) over the last dimension, to one or two outputs.
struct Norm {
    const void* x;         // [rows, width] of type `x_type`
    const void* residual;  // [rows, width] of type `residual_type`, or null
    const float* bias;     // [width], or null
    const float* gamma;    // [width]
    const float* beta;     // [width]
    void* out;             // [rows, width] of type `out_type` (kFloat or kHalf), or null
    int8_t* quantized;     // [rows, width], or null
    Type x_type, residual_type, out_type;
    int rows, width;
    float x_scale, residual_scale;  // of INT8 inputs; not used for other types
    float rescale, shift;           // of `quantized`
    float epsilon;
};
cudaError_t norm(const Norm& args, cudaStream_t stream);

// LayerNorm of word + position + segment, to one or two outputs. A token number outside the table reads row 0.
struct Embedding {
    const int32_t* tokens;    // [batch, sequence], or [tokens] when packed
    const int32_t* segments;  // likewise
    const int32_t* starts;    // [batch + 1] when packed, or null
    const void* word;         // half [words, width]
    const void* position;     // half [positions, width]
    const void* segment;      // half [kinds, width]
    const float* gamma;       // [width]
    const float* beta;        // [width]
    void* out;                // half [tokens, width], or null
    int8_t* quantized;        // [tokens, width], or null
    int tokens_in_all, batch, sequence, width, words, positions, kinds;
    float rescale, shift, epsilon;
};
cudaError_t embedding(const Embedding& args, cudaStream_t stream);

// y = GELU(x * x_scale + bias), elementwise over [rows, width].
struct BiasGelu {
    const void* x;      // type `x_type`: kHalf, kFloat or kInt8
    const float* bias;  // [width], or null
    void* out;          // type `out_type`: kHalf, kFloat or kInt8
    Type x_type, out_type;
    int rows, width;
    float x_scale, rescale, shift;
};
cudaError_t bias_gelu(const BiasGelu& args, cudaStream_t stream);

// First token of every sentence: half [batch, width] out of [tokens, width]. `starts` as above, or null.
cudaError_t first_tokens(const void* x, const int32_t* starts, void* out, int batch, int sequence, int width,
                         cudaStream_t stream);

// logits [batch, labels] = weight [labels, width] * tanh(x [batch, width]) + bias; x is half, the rest float.
cudaError_t classifier(const void* x, const float* weight, const float* bias, float* out, int batch, int width,
                       int labels, cudaStream_t stream);

}  // namespace quantkit
