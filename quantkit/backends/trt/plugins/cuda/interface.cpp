// The kernels in C, for tests and for choosing tile shapes: the structures of kernels.h, and CUDA's status.
#include "kernels.h"

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED int quantkit_linear_tiles() { return quantkit::linear_tiles(); }
EXPORTED void quantkit_linear_tile(int tile, int* shape) { quantkit::linear_tile(tile, shape); }
EXPORTED int quantkit_linear_choice(int m, int n, int processors) { return quantkit::linear_choice(m, n, processors); }
EXPORTED int quantkit_linear_row(int column) { return quantkit::linear_row(column); }
EXPORTED int quantkit_run_linear(const quantkit::Linear* args, cudaStream_t stream) { return quantkit::linear(*args, stream); }
EXPORTED int quantkit_run_attention(const quantkit::Attention* args, cudaStream_t stream) {
    return quantkit::attention(*args, stream);
}
EXPORTED int quantkit_run_norm(const quantkit::Norm* args, cudaStream_t stream) { return quantkit::norm(*args, stream); }
EXPORTED int quantkit_run_embedding(const quantkit::Embedding* args, cudaStream_t stream) {
    return quantkit::embedding(*args, stream);
}
EXPORTED int quantkit_run_bias_gelu(const quantkit::BiasGelu* args, cudaStream_t stream) {
    return quantkit::bias_gelu(*args, stream);
}
EXPORTED int quantkit_run_first(const void* x, const int32_t* starts, void* out, int batch, int sequence, int width,
                       cudaStream_t stream) {
    return quantkit::first_tokens(x, starts, out, batch, sequence, width, stream);
}
// Sizes of the structures, so that a caller with another idea of them finds out.
EXPORTED int quantkit_size(int which) {
    const int sizes[] = {sizeof(quantkit::Linear), sizeof(quantkit::Attention), sizeof(quantkit::Norm),
                         sizeof(quantkit::Embedding), sizeof(quantkit::BiasGelu)};
    return which >= 0 && which < 5 ? sizes[which] : -1;
}
}
