// Operations with matrix products: linear layers and attention.
#pragma once

#include "operation.h"

namespace quantkit {

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
        out.d[width_axis(out.nbDims)] = make.constant(n_);
        return out;
    }
    void check(const Dims* in) const override { require(has_width(in[0], k_), "the input has another width"); }
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
        out.d[width_axis(out.nbDims)] = make.constant(heads_ * head_);
        return out;
    }
    void check(const Dims* in) const override {
        require(packed_ ? (in[0].nbDims == 2 || in[0].nbDims == 4) && in[1].nbDims == 1
                        : in[0].nbDims == 3 && in[1].nbDims == 2,
                "attention takes (batch, sequence, width) with a mask, or packed (tokens, width) with starts");
        require(has_width(in[0], 3 * heads_ * head_), "query, key and value have another width");
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

}  // namespace quantkit
