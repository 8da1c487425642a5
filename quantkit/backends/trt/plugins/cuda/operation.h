// What kinds of operations have in common.
#pragma once

#include <NvInfer.h>

#include <initializer_list>
#include <utility>

#include "kernels.h"
#include "values.h"

namespace quantkit {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

struct Call {
    const PluginTensorDesc* in;
    const PluginTensorDesc* out;
    const void* const* inputs;
    void* const* outputs;
    cudaStream_t stream;
};

inline int count_of(const Dims& dims, int leading) {
    int64_t count = 1;
    for (int i = 0; i < leading; ++i) count *= dims.d[i];
    require(count > 0 && count < (int64_t{1} << 31), "the tensor is empty or too large");
    return int(count);
}

// Matrices have their width last; in four dimensions they are (rows, width, 1, 1), which TensorRT's own convolutions and
// attention take. INT8 is then in the format CHW32, which for widths that are multiples of 32 is the same memory.
inline int width_axis(int rank) { return rank == 4 ? 1 : rank - 1; }
inline int width_of(const Dims& dims) { return dims.d[width_axis(dims.nbDims)]; }
inline int rows_of(const Dims& dims) { return count_of(dims, width_axis(dims.nbDims)); }

// Whether a tensor has the format it is to have; `either`: vectors of 32 channels will do for other types too.
inline bool has_format(const PluginTensorDesc& tensor, bool either) {
    const bool vectors = tensor.format == nvinfer1::TensorFormat::kCHW32;
    if (!vectors && tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (tensor.dims.nbDims != 4) return !vectors;
    return tensor.type == DataType::kINT8 ? vectors : !vectors || (either && tensor.dims.d[1] % 32 == 0);
}

inline Type type_of(DataType type) {
    if (type == DataType::kHALF) return Type::kHalf;
    if (type == DataType::kINT8) return Type::kInt8;
    require(type == DataType::kFLOAT, "the type is not one of float32, float16 and INT8");
    return Type::kFloat;
}

// A kind of operation. INT8 outputs have the fields out_scale and, where zero is not coded as 0, out_shift. Types of the tensors follow from the values; `types` lists inputs, then outputs.
class Operation {
   public:
    explicit Operation(std::shared_ptr<const Values> values) : values_(std::move(values)) {}
    virtual ~Operation() = default;

    virtual int inputs() const = 0;
    virtual int outputs() const { return 1; }
    virtual DataType type(int position) const = 0;
    // Whether an input of four dimensions may come in vectors of channels whatever its type, as products give it.
    virtual bool either(int) const { return false; }
    virtual DimsExprs shape(int output, const DimsExprs* in, nvinfer1::IExprBuilder&) const = 0;
    // Throws when the shapes do not fit; extents that are not known yet are -1.
    virtual void check(const Dims* in) const = 0;
    virtual cudaError_t run(const Call& call, const Buffers& weights) const = 0;
    // Arrays that go to the device, as they are to lie there.
    virtual std::map<std::string, std::vector<char>> arrays() const { return {}; }

    const Values& values() const { return *values_; }

   protected:
    std::map<std::string, std::vector<char>> named(std::initializer_list<const char*> names) const {
        std::map<std::string, std::vector<char>> found;
        for (const char* name : names) {
            if (values().has(name)) found[name] = values().array(name);
        }
        return found;
    }

    DataType data_type(const char* field) const {
        const int number = values().integer(field);
        require(number >= 0 && number <= 2, "the type is not 0 (float32), 1 (float16) or 2 (INT8)");
        constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8};
        return kTypes[number];
    }

    void require_array(const char* name, size_t bytes) const {
        require(values().array(name).size() == bytes, (std::string("the field ") + name + " has another size").c_str());
    }

    // Code of zero in an INT8 output.
    float shift() const { return values().has("out_shift") ? values().real("out_shift") : 0.f; }

    static float inverse(float scale) {
        require(scale > 0.f, "the scale of an INT8 tensor is not positive");
        return 1.f / scale;
    }

    std::shared_ptr<const Values> values_;
};

template <typename T>
const T* device(const Buffers& weights, const char* name) {
    const auto found = weights.find(name);
    return found == weights.end() ? nullptr : found->second->as<T>();
}

inline bool fits(int extent, int wanted) { return extent == -1 || extent == wanted; }

inline bool has_width(const Dims& dims, int width) {
    if (dims.nbDims == 4 && !(fits(dims.d[2], 1) && fits(dims.d[3], 1) && width % 32 == 0)) return false;
    return fits(width_of(dims), width);
}

}  // namespace quantkit
