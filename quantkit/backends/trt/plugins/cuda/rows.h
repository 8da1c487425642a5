// Operations that read and write each element once: embeddings, LayerNorm, GELU, and what the head needs.
#pragma once

#include "operation.h"

namespace quantkit {

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
    bool either(int position) const override { return position == 0; }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder&) const override { return in[0]; }
    void check(const Dims* in) const override {
        for (int i = 0; i < inputs(); ++i) {
            require(in[i].nbDims == in[0].nbDims && has_width(in[i], width_), "an input has another width");
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
// epsilon, packed, quantize, out_scale, and channels where packed outputs are to be (tokens, width, 1, 1).
class EmbeddingOperation : public Operation {
   public:
    static constexpr char kName[] = "QuantkitEmbedding";
    static std::vector<const char*> fields() {
        return {"word", "position", "segment", "gamma", "beta", "epsilon",
                "packed", "quantize", "out_scale", "out_shift", "channels"};
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
        channels_ = this->values().has("channels") && this->values().integer("channels") != 0;
        require(!channels_ || packed_, "only packed tokens come as (tokens, width, 1, 1)");
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
        for (int i = 0; channels_ && i < 2; ++i) out.d[out.nbDims++] = make.constant(1);
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
    bool packed_, quantize_, channels_;
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
    bool either(int position) const override { return position == 0; }
    DimsExprs shape(int, const DimsExprs* in, nvinfer1::IExprBuilder&) const override { return in[0]; }
    void check(const Dims* in) const override { require(has_width(in[0], width_), "the input has another width"); }
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

// (x [batch, sequence, width]) or packed (x [tokens, width], starts [batch + 1]) -> [batch, width], FP16; of four
// dimensions, four. Fields: packed.
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
        DimsExprs out = in[0];  // packed: as many dimensions, without: one less
        if (!packed_) out.nbDims = 2, out.d[1] = in[0].d[2];
        if (packed_) out.d[0] = make.operation(nvinfer1::DimensionOperation::kSUB, *in[1].d[0], *make.constant(1));
        return out;
    }
    void check(const Dims* in) const override {
        require(packed_ ? in[0].nbDims == 2 || in[0].nbDims == 4 : in[0].nbDims == 3, "x is (batch, sequence, width), or (tokens, width) when packed");
        require(!packed_ || in[1].nbDims == 1, "starts have one dimension");
    }
    cudaError_t run(const Call& call, const Buffers&) const override {
        const Dims& x = call.in[0].dims;
        const int32_t* starts = packed_ ? static_cast<const int32_t*>(call.inputs[1]) : nullptr;
        const int batch = packed_ ? call.in[1].dims.d[0] - 1 : x.d[0];
        return first_tokens(call.inputs[0], starts, call.outputs[0], batch, packed_ ? 0 : x.d[1], width_of(x),
                            call.stream);
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
        out.nbDims = 2, out.d[1] = make.constant(labels_);
        return out;
    }
    void check(const Dims* in) const override {
        require((in[0].nbDims == 2 || in[0].nbDims == 4) && fits(in[0].d[1], width_), "x is (batch, width)");
    }
    std::map<std::string, std::vector<char>> arrays() const override { return named({"weight", "bias"}); }
    cudaError_t run(const Call& call, const Buffers& weights) const override {
        return classifier(call.inputs[0], device<float>(weights, "weight"), device<float>(weights, "bias"),
                          static_cast<float*>(call.outputs[0]), call.in[0].dims.d[0], width_, labels_, call.stream);
    }

   private:
    int labels_, width_;
};

}  // namespace quantkit
