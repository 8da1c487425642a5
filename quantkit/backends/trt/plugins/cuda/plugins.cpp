// The kernels as TensorRT plugins (IPluginV2DynamicExt: TensorRT 8.6 to 10.x).
//
// A plugin is a kind of operation with named values (numbers and arrays), which are its fields, its serialization and
// its device memory alike. Every kind takes exactly one combination of types, all row-major: what the network was
// defined with. So TensorRT has nothing to choose and puts no conversion between two of them.
#include "kernels.h"

#include <NvInfer.h>
#include <cuda_fp16.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace quantkit {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "quantkit";

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

void require(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Plugins may not throw. What failed goes to standard error, which the building process keeps.
template <typename Result, typename Work>
Result guarded(const char* who, Result failed, Work work) noexcept {
    try {
        return work();
    } catch (const std::exception& error) {
        fprintf(stderr, "quantkit plugin %s: %s\n", who, error.what());
    }
    return failed;
}

// Named values of a plugin; arrays of 4-byte numbers or raw bytes.
class Values {
   public:
    Values() = default;

    Values(const void* data, size_t length) {
        const char* at = static_cast<const char*>(data);
        const char* const end = at + length;
        auto take = [&](void* to, size_t bytes) {
            require(size_t(end - at) >= bytes, "the serialized plugin is cut short");
            std::memcpy(to, at, bytes);
            at += bytes;
        };
        uint32_t count = 0;
        take(&count, sizeof(count));
        for (uint32_t i = 0; i < count; ++i) {
            uint64_t sizes[2];
            take(sizes, sizeof(sizes));
            require(sizes[0] <= size_t(end - at) && sizes[1] <= size_t(end - at), "the serialized plugin is damaged");
            std::string name(sizes[0], 0);
            take(name.data(), sizes[0]);
            std::vector<char>& value = values_[name];
            value.resize(sizes[1]);
            take(value.data(), sizes[1]);
        }
    }

    void set(const std::string& name, const void* data, size_t bytes) {
        const char* from = static_cast<const char*>(data);
        values_[name].assign(from, from + bytes);
    }

    bool has(const char* name) const { return values_.count(name) != 0; }

    const std::vector<char>& array(const char* name) const {
        const auto found = values_.find(name);
        require(found != values_.end(), (std::string("the field ") + name + " is missing").c_str());
        return found->second;
    }

    template <typename T>
    T number(const char* name) const {
        const std::vector<char>& value = array(name);
        require(value.size() == sizeof(T), (std::string("the field ") + name + " is not one number").c_str());
        T number;
        std::memcpy(&number, value.data(), sizeof(T));
        return number;
    }

    int integer(const char* name) const { return number<int32_t>(name); }
    float real(const char* name) const { return number<float>(name); }

    size_t size() const {
        size_t total = sizeof(uint32_t);
        for (const auto& [name, value] : values_) total += 2 * sizeof(uint64_t) + name.size() + value.size();
        return total;
    }

    void write(void* to) const {
        char* at = static_cast<char*>(to);
        auto put = [&](const void* from, size_t bytes) {
            std::memcpy(at, from, bytes);
            at += bytes;
        };
        const auto count = uint32_t(values_.size());
        put(&count, sizeof(count));
        for (const auto& [name, value] : values_) {
            const uint64_t sizes[2] = {name.size(), value.size()};
            put(sizes, sizeof(sizes));
            put(name.data(), name.size());
            put(value.data(), value.size());
        }
    }

   private:
    std::map<std::string, std::vector<char>> values_;
};

// A copy of an array on the device.
class Buffer {
   public:
    explicit Buffer(const std::vector<char>& data) {
        require(cudaMalloc(&memory_, data.empty() ? 1 : data.size()), "allocating weights");
        const cudaError_t status = cudaMemcpy(memory_, data.data(), data.size(), cudaMemcpyHostToDevice);
        if (status != cudaSuccess) cudaFree(memory_);
        require(status, "copying weights");
    }
    ~Buffer() { cudaFree(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    template <typename T>
    const T* as() const {
        return static_cast<const T*>(memory_);
    }

   private:
    void* memory_ = nullptr;
};

using Buffers = std::map<std::string, std::unique_ptr<Buffer>>;

struct Call {
    const PluginTensorDesc* in;
    const PluginTensorDesc* out;
    const void* const* inputs;
    void* const* outputs;
    cudaStream_t stream;
};

int count_of(const Dims& dims, int leading) {
    int64_t count = 1;
    for (int i = 0; i < leading; ++i) count *= dims.d[i];
    require(count > 0 && count < (int64_t{1} << 31), "the tensor is empty or too large");
    return int(count);
}

// Product of all extents but the last.
int rows_of(const Dims& dims) { return count_of(dims, dims.nbDims - 1); }
int last_of(const Dims& dims) { return dims.d[dims.nbDims - 1]; }

Type type_of(DataType type) {
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

bool fits(int extent, int wanted) { return extent == -1 || extent == wanted; }

// x [..., k] -> [..., n]. Fields: weight [n, k] (INT8, or FP16 bits), alpha [n], beta [n], type, out_type, gelu, n, k,
// out_scale for an INT8 output, and, if tile shapes were measured, tiles: pairs of a number of rows and a tile, by rows.
class LinearOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitLinear";
    static std::vector<const char*> fields() {
        return {"weight", "alpha", "beta", "type", "out_type", "gelu", "n", "k", "tiles", "out_scale", "out_shift"};
    }

    explicit LinearOperation(std::shared_ptr<const Values> values) : Operation(std::move(values)) {
        n_ = this->values().integer("n"), k_ = this->values().integer("k");
        const int size = data_type("type") == DataType::kHALF ? 2 : 1;
        require(n_ >= 32 && n_ % 32 == 0, "the number of outputs is not a multiple of 32");
        require(k_ >= 1 && k_ * size % 16 == 0, "a row of inputs is not a multiple of 16 bytes");
        require(data_type("type") != DataType::kFLOAT && data_type("out_type") != DataType::kFLOAT,
                "linear layers are INT8 or FP16");
        require_array("weight", size_t(n_) * k_ * size);
        require_array("alpha", size_t(n_) * 4);
        require_array("beta", size_t(n_) * 4);
        require(!this->values().has("tiles") || this->values().array("tiles").size() % 8 == 0, "tiles are pairs");
        if (data_type("out_type") == DataType::kINT8) rescale_ = inverse(this->values().real("out_scale"));
    }

    int inputs() const override { return 1; }
    DataType type(int position) const override { return data_type(position == 0 ? "type" : "out_type"); }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder& make) const override {
        DimsExprs out = in[0];
        out.d[out.nbDims - 1] = make.constant(n_);
        return out;
    }
    void check(const Dims* in) const override { require(fits(last_of(in[0]), k_), "the input has another width"); }
    std::map<std::string, std::vector<char>> arrays() const override {
        auto found = named({"weight", "alpha", "beta"});
        const std::vector<char>& plain = values().array("weight");
        std::vector<char>& ordered = found["weight"];
        const size_t row = plain.size() / n_;
        for (int i = 0; i < n_; ++i) std::memcpy(&ordered[linear_row(i) * row], &plain[i * row], row);
        return found;
    }
    cudaError_t run(const Call& call, const Buffers& weights) const override {
        Linear args{};
        args.in = call.inputs[0], args.out = call.outputs[0];
        args.weight = device<void>(weights, "weight");
        args.alpha = device<float>(weights, "alpha"), args.beta = device<float>(weights, "beta");
        args.type = type_of(call.in[0].type), args.out_type = type_of(call.out[0].type);
        args.m = rows_of(call.in[0].dims), args.n = n_, args.k = k_;
        args.gelu = values().integer("gelu") != 0;
        args.rescale = rescale_, args.shift = shift();
        args.tile = tile_for(args.m);
        return linear(args, call.stream);
    }

   private:
    // The tile that was fastest for the next larger number of rows that was measured, or else for the largest.
    int tile_for(int m) const {
        if (!values().has("tiles")) return -1;
        const std::vector<char>& tiles = values().array("tiles");
        int tile = -1;
        for (size_t i = 0; i + 8 <= tiles.size(); i += 8) {
            int32_t pair[2];
            std::memcpy(pair, &tiles[i], sizeof(pair));
            tile = pair[1];
            if (pair[0] >= m) break;
        }
        return tile;
    }

    int n_, k_;
    float rescale_ = 1.f;
};

// (qkv, mask [batch, sequence] or starts [batch + 1]) -> context. Fields: type, out_type, heads, head, packed, longest,
// score_scale, value_scale, and out_scale for an INT8 output.
class AttentionOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitAttention";
    static std::vector<const char*> fields() {
        return {"type", "out_type", "heads", "head", "packed", "longest", "score_scale", "value_scale", "out_scale", "out_shift"};
    }

    explicit AttentionOperation(std::shared_ptr<const Values> values) : Operation(std::move(values)) {
        heads_ = this->values().integer("heads"), head_ = this->values().integer("head");
        packed_ = this->values().integer("packed") != 0, longest_ = this->values().integer("longest");
        require(heads_ > 0 && (head_ == 32 || head_ == 64), "heads are 32 or 64 wide");
        require(data_type("type") != DataType::kFLOAT && data_type("out_type") != DataType::kFLOAT,
                "attention is INT8 or FP16");
        if (data_type("out_type") == DataType::kINT8) rescale_ = inverse(this->values().real("out_scale"));
    }

    int inputs() const override { return 2; }
    DataType type(int position) const override {
        if (position == 1) return DataType::kINT32;
        return data_type(position == 0 ? "type" : "out_type");
    }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder& make) const override {
        DimsExprs out = in[0];
        out.d[out.nbDims - 1] = make.constant(heads_ * head_);
        return out;
    }
    void check(const Dims* in) const override {
        require(in[0].nbDims == (packed_ ? 2 : 3) && in[1].nbDims == (packed_ ? 1 : 2),
                "attention takes (batch, sequence, width) with a mask, or packed (tokens, width) with starts");
        require(fits(last_of(in[0]), 3 * heads_ * head_), "query, key and value have another width");
    }
    cudaError_t run(const Call& call, const Buffers&) const override {
        const Dims &qkv = call.in[0].dims, &second = call.in[1].dims;
        Attention args{};
        args.qkv = call.inputs[0], args.out = call.outputs[0];
        (packed_ ? args.starts : args.mask) = static_cast<const int32_t*>(call.inputs[1]);
        args.type = type_of(call.in[0].type), args.out_type = type_of(call.out[0].type);
        args.batch = packed_ ? second.d[0] - 1 : qkv.d[0];
        args.sequence = packed_ ? longest_ : qkv.d[1];
        args.heads = heads_, args.head = head_;
        args.score_scale = values().real("score_scale"), args.value_scale = values().real("value_scale");
        args.rescale = rescale_, args.shift = shift();
        return attention(args, call.stream);
    }

   private:
    int heads_, head_, longest_;
    bool packed_;
    float rescale_ = 1.f;
};

// (x [, residual]) -> y, or (y, INT8 of y), or INT8 alone. Fields: gamma, beta, epsilon, type, residual_type (-1: no
// residual), out_type (-1: only the INT8 output), quantize, out_scale, and bias, x_scale, residual_scale where wanted.
class NormOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitNorm";
    static std::vector<const char*> fields() {
        return {"gamma",    "beta",     "bias",      "epsilon", "type",          "residual_type",
                "out_type", "quantize", "out_scale", "out_shift", "x_scale", "residual_scale"};
    }

    explicit NormOperation(std::shared_ptr<const Values> values) : Operation(std::move(values)) {
        width_ = int(this->values().array("gamma").size() / 4);
        require(width_ > 0, "there are no weights");
        require_array("beta", size_t(width_) * 4);
        if (this->values().has("bias")) require_array("bias", size_t(width_) * 4);
        residual_ = this->values().integer("residual_type") >= 0;
        whole_ = this->values().integer("out_type") >= 0, quantize_ = this->values().integer("quantize") != 0;
        require(whole_ || quantize_, "there is no output");
        require(!whole_ || data_type("out_type") != DataType::kINT8, "the first output is float32 or FP16");
        if (quantize_) rescale_ = inverse(this->values().real("out_scale"));
    }

    int inputs() const override { return residual_ ? 2 : 1; }
    int outputs() const override { return int(whole_) + int(quantize_); }
    DataType type(int position) const override {
        if (position == 0) return data_type("type");
        if (position < inputs()) return data_type("residual_type");
        return whole_ && position == inputs() ? data_type("out_type") : DataType::kINT8;
    }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder&) const override { return in[0]; }
    void check(const Dims* in) const override {
        for (int i = 0; i < inputs(); ++i) {
            require(in[i].nbDims == in[0].nbDims && fits(last_of(in[i]), width_), "an input has another width");
        }
    }
    std::map<std::string, std::vector<char>> arrays() const override { return named({"gamma", "beta", "bias"}); }
    cudaError_t run(const Call& call, const Buffers& weights) const override {
        Norm args{};
        args.x = call.inputs[0], args.x_type = type_of(call.in[0].type);
        args.x_scale = values().has("x_scale") ? values().real("x_scale") : 1.f;
        if (residual_) {
            args.residual = call.inputs[1], args.residual_type = type_of(call.in[1].type);
            args.residual_scale = values().has("residual_scale") ? values().real("residual_scale") : 1.f;
        }
        args.bias = device<float>(weights, "bias");
        args.gamma = device<float>(weights, "gamma"), args.beta = device<float>(weights, "beta");
        if (whole_) args.out = call.outputs[0], args.out_type = type_of(call.out[0].type);
        if (quantize_) args.quantized = static_cast<int8_t*>(call.outputs[whole_ ? 1 : 0]);
        args.rows = rows_of(call.in[0].dims), args.width = width_;
        args.rescale = rescale_, args.shift = shift(), args.epsilon = values().real("epsilon");
        return norm(args, call.stream);
    }

   private:
    int width_;
    bool residual_, whole_, quantize_;
    float rescale_ = 1.f;
};

// (tokens, segments [, starts]) -> FP16, or (FP16, INT8). Fields: word, position, segment (FP16 bits), gamma, beta,
// epsilon, packed, quantize, out_scale.
class EmbeddingOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitEmbedding";
    static std::vector<const char*> fields() {
        return {"word", "position", "segment", "gamma", "beta", "epsilon", "packed", "quantize", "out_scale", "out_shift"};
    }

    explicit EmbeddingOperation(std::shared_ptr<const Values> values) : Operation(std::move(values)) {
        width_ = int(this->values().array("gamma").size() / 4);
        require(width_ > 0 && width_ % 8 == 0 && width_ <= 2048, "the width is not a multiple of 8 up to 2048");
        require_array("beta", size_t(width_) * 4);
        for (const char* table : {"word", "position", "segment"}) {
            const size_t bytes = this->values().array(table).size();
            require(bytes > 0 && bytes % (size_t(width_) * 2) == 0, "a table has another width");
        }
        packed_ = this->values().integer("packed") != 0, quantize_ = this->values().integer("quantize") != 0;
        if (quantize_) rescale_ = inverse(this->values().real("out_scale"));
    }

    int inputs() const override { return packed_ ? 3 : 2; }
    int outputs() const override { return quantize_ ? 2 : 1; }
    DataType type(int position) const override {
        if (position < inputs()) return DataType::kINT32;
        return position == inputs() ? DataType::kHALF : DataType::kINT8;
    }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder& make) const override {
        DimsExprs out = in[0];
        out.d[out.nbDims++] = make.constant(width_);
        return out;
    }
    void check(const Dims* in) const override {
        const int rank = packed_ ? 1 : 2;
        require(in[0].nbDims == rank && in[1].nbDims == rank, "tokens and segments are (batch, sequence), or (tokens) when packed");
        require(!packed_ || in[2].nbDims == 1, "starts have one dimension");
        require(packed_ || in[0].d[1] <= rows("position"), "the sequence is longer than the table of positions");
    }
    std::map<std::string, std::vector<char>> arrays() const override {
        return named({"word", "position", "segment", "gamma", "beta"});
    }
    cudaError_t run(const Call& call, const Buffers& weights) const override {
        const Dims& dims = call.in[0].dims;
        Embedding args{};
        args.tokens = static_cast<const int32_t*>(call.inputs[0]);
        args.segments = static_cast<const int32_t*>(call.inputs[1]);
        args.starts = packed_ ? static_cast<const int32_t*>(call.inputs[2]) : nullptr;
        args.word = device<void>(weights, "word"), args.words = rows("word");
        args.position = device<void>(weights, "position"), args.positions = rows("position");
        args.segment = device<void>(weights, "segment"), args.kinds = rows("segment");
        args.gamma = device<float>(weights, "gamma"), args.beta = device<float>(weights, "beta");
        args.out = call.outputs[0];
        args.quantized = quantize_ ? static_cast<int8_t*>(call.outputs[1]) : nullptr;
        args.tokens_in_all = count_of(dims, dims.nbDims), args.width = width_;
        args.sequence = packed_ ? args.positions : dims.d[1];
        args.batch = packed_ ? call.in[2].dims.d[0] - 1 : dims.d[0];
        args.rescale = rescale_, args.shift = shift(), args.epsilon = values().real("epsilon");
        return embedding(args, call.stream);
    }

   private:
    int rows(const char* table) const { return int(values().array(table).size() / (size_t(width_) * 2)); }

    int width_;
    bool packed_, quantize_;
    float rescale_ = 1.f;
};

// x -> GELU(x + bias). Fields: type, out_type, width, and bias, x_scale, out_scale where wanted.
class BiasGeluOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitBiasGelu";
    static std::vector<const char*> fields() { return {"bias", "type", "out_type", "width", "x_scale", "out_scale", "out_shift"}; }

    explicit BiasGeluOperation(std::shared_ptr<const Values> values) : Operation(std::move(values)) {
        width_ = this->values().integer("width");
        require(width_ > 0, "the width is not positive");
        if (this->values().has("bias")) require_array("bias", size_t(width_) * 4);
        if (data_type("out_type") == DataType::kINT8) rescale_ = inverse(this->values().real("out_scale"));
    }

    int inputs() const override { return 1; }
    DataType type(int position) const override { return data_type(position == 0 ? "type" : "out_type"); }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder&) const override { return in[0]; }
    void check(const Dims* in) const override { require(fits(last_of(in[0]), width_), "the input has another width"); }
    std::map<std::string, std::vector<char>> arrays() const override { return named({"bias"}); }
    cudaError_t run(const Call& call, const Buffers& weights) const override {
        BiasGelu args{};
        args.x = call.inputs[0], args.x_type = type_of(call.in[0].type);
        args.out = call.outputs[0], args.out_type = type_of(call.out[0].type);
        args.bias = device<float>(weights, "bias");
        args.rows = rows_of(call.in[0].dims), args.width = width_;
        args.x_scale = values().has("x_scale") ? values().real("x_scale") : 1.f, args.rescale = rescale_, args.shift = shift();
        return bias_gelu(args, call.stream);
    }

   private:
    int width_;
    float rescale_ = 1.f;
};

// (x [batch, sequence, width]) or packed (x [tokens, width], starts [batch + 1]) -> [batch, width], FP16. Fields: packed.
class FirstOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitFirst";
    static std::vector<const char*> fields() { return {"packed"}; }

    explicit FirstOperation(std::shared_ptr<const Values> values) : Operation(std::move(values)) {
        packed_ = this->values().integer("packed") != 0;
    }

    int inputs() const override { return packed_ ? 2 : 1; }
    DataType type(int position) const override {
        return packed_ && position == 1 ? DataType::kINT32 : DataType::kHALF;
    }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder& make) const override {
        DimsExprs out{};
        out.nbDims = 2;
        out.d[0] = in[0].d[0], out.d[1] = in[0].d[in[0].nbDims - 1];
        if (packed_) out.d[0] = make.operation(nvinfer1::DimensionOperation::kSUB, *in[1].d[0], *make.constant(1));
        return out;
    }
    void check(const Dims* in) const override {
        require(in[0].nbDims == (packed_ ? 2 : 3), "x is (batch, sequence, width), or (tokens, width) when packed");
        require(!packed_ || in[1].nbDims == 1, "starts have one dimension");
    }
    cudaError_t run(const Call& call, const Buffers&) const override {
        const Dims& x = call.in[0].dims;
        const int32_t* starts = packed_ ? static_cast<const int32_t*>(call.inputs[1]) : nullptr;
        const int batch = packed_ ? call.in[1].dims.d[0] - 1 : x.d[0];
        return first_tokens(call.inputs[0], starts, call.outputs[0], batch, packed_ ? 0 : x.d[1], last_of(x), call.stream);
    }

   private:
    bool packed_;
};

// x FP16 [batch, width] -> float32 logits [batch, labels] of tanh(x). Fields: weight [labels, width], bias [labels].
class ClassifierOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitClassifier";
    static std::vector<const char*> fields() { return {"weight", "bias"}; }

    explicit ClassifierOperation(std::shared_ptr<const Values> values) : Operation(std::move(values)) {
        labels_ = int(this->values().array("bias").size() / 4);
        require(labels_ > 0, "there are no labels");
        width_ = int(this->values().array("weight").size() / 4 / labels_);
        require(width_ > 0, "there are no weights");
        require_array("weight", size_t(labels_) * width_ * 4);
    }

    int inputs() const override { return 1; }
    DataType type(int position) const override { return position == 0 ? DataType::kHALF : DataType::kFLOAT; }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder& make) const override {
        DimsExprs out = in[0];
        out.d[1] = make.constant(labels_);
        return out;
    }
    void check(const Dims* in) const override {
        require(in[0].nbDims == 2 && fits(in[0].d[1], width_), "x is (batch, width)");
    }
    std::map<std::string, std::vector<char>> arrays() const override { return named({"weight", "bias"}); }
    cudaError_t run(const Call& call, const Buffers& weights) const override {
        return classifier(call.inputs[0], device<float>(weights, "weight"), device<float>(weights, "bias"),
                          static_cast<float*>(call.outputs[0]), call.in[0].dims.d[0], width_, labels_, call.stream);
    }

   private:
    int labels_, width_;
};

// Device memory of a plugin and its clones: made once, freed with the last of them.
struct Shared {
    std::mutex mutex;
    Buffers buffers;
    bool ready = false;
};

template <typename Kind>
class Plugin final : public nvinfer1::IPluginV2DynamicExt {
   public:
    explicit Plugin(std::shared_ptr<const Values> values)
        : operation_(std::move(values)), shared_(std::make_shared<Shared>()) {}
    Plugin(const Plugin& other) : operation_(other.operation_), shared_(other.shared_), namespace_(other.namespace_) {}

    IPluginV2DynamicExt* clone() const noexcept override {
        return guarded<IPluginV2DynamicExt*>(Kind::kName, nullptr, [&] { return new Plugin(*this); });
    }

    DimsExprs getOutputDimensions(int32_t index, const DimsExprs* inputs, int32_t count,
                                  nvinfer1::IExprBuilder& builder) noexcept override {
        return guarded(Kind::kName, DimsExprs{}, [&] {
            require(count == operation_.inputs(), "the number of inputs is another");
            return operation_.shape(index, inputs, builder);
        });
    }

    bool supportsFormatCombination(int32_t position, const PluginTensorDesc* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override {
        return guarded(Kind::kName, false, [&] {
            require(inputs == operation_.inputs() && outputs == operation_.outputs(), "the number of tensors is another");
            return tensors[position].format == nvinfer1::TensorFormat::kLINEAR &&
                   tensors[position].type == operation_.type(position);
        });
    }

    void configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                         const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override {
        // There is no way to refuse here; `enqueue` checks again and fails.
        guarded(Kind::kName, false, [&] {
            std::vector<Dims> dims;
            for (int i = 0; i < inputs; ++i) dims.push_back(in[i].desc.dims);
            operation_.check(dims.data());
            return true;
        });
    }

    size_t getWorkspaceSize(const PluginTensorDesc*, int32_t, const PluginTensorDesc*, int32_t) const noexcept override {
        return 0;
    }

    int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return guarded(Kind::kName, 1, [&] {
            Dims dims[3];
            for (int i = 0; i < operation_.inputs(); ++i) dims[i] = in[i].dims;
            operation_.check(dims);
            require(operation_.run(Call{in, out, inputs, outputs, stream}, shared_->buffers), "running the kernel");
            return 0;
        });
    }

    DataType getOutputDataType(int32_t index, const DataType*, int32_t) const noexcept override {
        return guarded(Kind::kName, DataType::kFLOAT, [&] { return operation_.type(operation_.inputs() + index); });
    }

    const char* getPluginType() const noexcept override { return Kind::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    int32_t getNbOutputs() const noexcept override {
        return guarded(Kind::kName, 0, [&] { return operation_.outputs(); });
    }

    int32_t initialize() noexcept override {
        return guarded(Kind::kName, 1, [&] {
            const std::lock_guard<std::mutex> lock(shared_->mutex);
            if (!shared_->ready) {
                for (const auto& [name, data] : operation_.arrays()) {
                    shared_->buffers[name] = std::make_unique<Buffer>(data);
                }
                shared_->ready = true;
            }
            return 0;
        });
    }

    void terminate() noexcept override {}
    size_t getSerializationSize() const noexcept override { return operation_.values().size(); }
    void serialize(void* buffer) const noexcept override { operation_.values().write(buffer); }
    void destroy() noexcept override { delete this; }
    void setPluginNamespace(const char* name) noexcept override {
        guarded(Kind::kName, false, [&] { return namespace_ = name, true; });
    }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

   private:
    Kind operation_;
    std::shared_ptr<Shared> shared_;
    std::string namespace_ = kNamespace;
};

size_t bytes_of(nvinfer1::PluginFieldType type) {
    switch (type) {
        case nvinfer1::PluginFieldType::kFLOAT64:
            return 8;
        case nvinfer1::PluginFieldType::kFLOAT32:
        case nvinfer1::PluginFieldType::kINT32:
            return 4;
        case nvinfer1::PluginFieldType::kFLOAT16:
        case nvinfer1::PluginFieldType::kINT16:
            return 2;
        default:
            return 1;
    }
}

template <typename Kind>
class Creator final : public nvinfer1::IPluginCreator {
   public:
    Creator() {
        for (const char* name : Kind::fields()) fields_.emplace_back(name);
        collection_.nbFields = int32_t(fields_.size());
        collection_.fields = fields_.data();
    }

    const char* getPluginName() const noexcept override { return Kind::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

    nvinfer1::IPluginV2* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given) noexcept override {
        return guarded<nvinfer1::IPluginV2*>(Kind::kName, nullptr, [&] {
            auto values = std::make_shared<Values>();
            for (int i = 0; i < given->nbFields; ++i) {
                const nvinfer1::PluginField& field = given->fields[i];
                values->set(field.name, field.data, size_t(field.length) * bytes_of(field.type));
            }
            return new Plugin<Kind>(std::move(values));
        });
    }

    nvinfer1::IPluginV2* deserializePlugin(const char*, const void* data, size_t length) noexcept override {
        return guarded<nvinfer1::IPluginV2*>(Kind::kName, nullptr, [&] {
            return new Plugin<Kind>(std::make_shared<Values>(data, length));
        });
    }

    void setPluginNamespace(const char* name) noexcept override {
        guarded(Kind::kName, false, [&] { return namespace_ = name, true; });
    }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

   private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
    std::string namespace_ = kNamespace;
};

template <typename Kind>
bool add_to(nvinfer1::IPluginRegistry& registry) {
    static Creator<Kind> creator;
    return registry.registerCreator(creator, kNamespace);
}

}  // namespace
}  // namespace quantkit

// Registers every kind with the TensorRT that is loaded in this process; 0, or 1 when there is none or it refuses.
// TensorRT is not linked: its registry is looked up by name, so that the kernels can be used and tested without it.
extern "C" __attribute__((visibility("default"))) int quantkit_register() {
    using namespace quantkit;
    static const int status = [] {
        void* symbol = dlsym(RTLD_DEFAULT, "getPluginRegistry");
        for (const char* name : {"libnvinfer.so.8", "libnvinfer.so.10"}) {
            if (symbol != nullptr) break;
            if (void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY)) symbol = dlsym(library, "getPluginRegistry");
        }
        if (symbol == nullptr) return 1;
        auto* registry = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(symbol)();
        return registry != nullptr && add_to<LinearOperation>(*registry) && add_to<AttentionOperation>(*registry) &&
                       add_to<NormOperation>(*registry) && add_to<EmbeddingOperation>(*registry) &&
                       add_to<BiasGeluOperation>(*registry) && add_to<FirstOperation>(*registry) &&
                       add_to<ClassifierOperation>(*registry)
                   ? 0
                   : 1;
    }();
    return status;
}
