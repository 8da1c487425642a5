#include <cstring>

#include "cudaTypedefs.h"
#include "cuda_runtime_api.h"

namespace {

// What cuTensorMapEncodeTiled refuses is refused here too, as far as it concerns matrices.
CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* matrix, const cuuint64_t* extents,
                const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    const uint32_t size = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 ? 2 : 1;
    const bool wrong = rank != 2 || reinterpret_cast<uintptr_t>(map) % 64 || reinterpret_cast<uintptr_t>(matrix) % 16 ||
                       strides[0] % 16 || box[0] > 256 || box[1] > 256 || box[0] * size % 16 || steps[0] != 1 ||
                       steps[1] != 1 || (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && box[0] * size > 128) ||
                       extents[0] == 0 || extents[1] == 0;
    if (wrong) return CUDA_ERROR_INVALID_VALUE;
    *map = {static_cast<const uint8_t*>(matrix), extents[0], extents[1], strides[0], box[0], box[1], size, swizzle};
    return CUDA_SUCCESS;
}

}  // namespace

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, int,
                                             cudaDriverEntryPointQueryResult* result) {
    *result = cudaDriverEntryPointSuccess;
    *function = strcmp(name, "cuTensorMapEncodeTiled") == 0 ? reinterpret_cast<void*>(&encode) : nullptr;
    return cudaSuccess;
}
