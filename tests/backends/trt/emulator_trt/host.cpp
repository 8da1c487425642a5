// What TensorRT does with a plugin, in C: makes it from fields, asks it for shapes and types, serializes it, makes it
// again, copies it, and runs it on host memory.
#include <NvInfer.h>

#include <cstring>
#include <list>
#include <map>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

class Registry : public IPluginRegistry {
   public:
    bool registerCreator(IPluginCreator& creator, const char* name) noexcept override {
        creators[std::string(name) + "." + creator.getPluginName()] = &creator;
        return true;
    }
    std::map<std::string, IPluginCreator*> creators;
};

Registry& registry() {
    static Registry made;
    return made;
}

class Builder : public IExprBuilder {
   public:
    const IDimensionExpr* constant(int32_t value) noexcept override {
        made_.push_back({value});
        return &made_.back();
    }
    const IDimensionExpr* operation(DimensionOperation what, const IDimensionExpr& a,
                                    const IDimensionExpr& b) noexcept override {
        return constant(what == DimensionOperation::kSUB ? a.value - b.value : a.value + b.value);
    }

   private:
    std::list<IDimensionExpr> made_;
};

PluginTensorDesc described(const int32_t* dims, int rank, int type) {
    PluginTensorDesc desc{};
    desc.dims.nbDims = rank;
    std::memcpy(desc.dims.d, dims, rank * sizeof(int32_t));
    desc.type = DataType(type);
    // INT8 of four dimensions comes in vectors of 32 channels, which here are the same memory.
    desc.format = rank == 4 && desc.type == DataType::kINT8 ? TensorFormat::kCHW32 : TensorFormat::kLINEAR;
    return desc;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void* getPluginRegistry() { return static_cast<IPluginRegistry*>(&registry()); }

EXPORTED void* host_make(const char* kind, int count, const char** names, const void** data, const int* types,
                         const int* lengths) {
    const auto found = registry().creators.find(std::string("quantkit.") + kind);
    if (found == registry().creators.end()) return nullptr;
    std::vector<PluginField> fields;
    for (int i = 0; i < count; ++i) fields.emplace_back(names[i], data[i], PluginFieldType(types[i]), lengths[i]);
    const PluginFieldCollection collection{count, fields.data()};
    // Every field that is given must be one that the creator names.
    const PluginFieldCollection* known = found->second->getFieldNames();
    for (const PluginField& field : fields) {
        bool there = false;
        for (int i = 0; i < known->nbFields; ++i) there |= std::strcmp(known->fields[i].name, field.name) == 0;
        if (!there) return nullptr;
    }
    IPluginV2* made = found->second->createPlugin(kind, &collection);
    if (made == nullptr) return nullptr;
    // As in a plan: written out, read back, and the first one gone.
    std::vector<char> plan(made->getSerializationSize());
    made->serialize(plan.data());
    made->destroy();
    if (found->second->deserializePlugin(kind, plan.data(), plan.size() / 2) != nullptr) return nullptr;
    return found->second->deserializePlugin(kind, plan.data(), plan.size());
}

EXPORTED int host_outputs(void* plugin) { return static_cast<IPluginV2DynamicExt*>(plugin)->getNbOutputs(); }

EXPORTED int host_type(void* plugin, int output) {
    return int(static_cast<IPluginV2DynamicExt*>(plugin)->getOutputDataType(output, nullptr, 0));
}

// Extents of an output for extents of the inputs (8 each); its rank.
EXPORTED int host_shape(void* plugin, int output, int inputs, const int32_t* dims, const int* ranks, int32_t* out) {
    std::vector<IDimensionExpr> extents(8 * inputs);
    std::vector<DimsExprs> in(inputs);
    for (int i = 0; i < inputs; ++i) {
        in[i].nbDims = ranks[i];
        for (int j = 0; j < ranks[i]; ++j) {
            extents[8 * i + j].value = dims[8 * i + j];
            in[i].d[j] = &extents[8 * i + j];
        }
    }
    Builder builder;
    const DimsExprs found = static_cast<IPluginV2DynamicExt*>(plugin)->getOutputDimensions(output, in.data(), inputs, builder);
    for (int i = 0; i < found.nbDims; ++i) out[i] = found.d[i]->value;
    return found.nbDims;
}

// Whether a tensor may have a format, the others being as they are to be.
EXPORTED int host_takes(void* plugin, int inputs, int outputs, const int32_t* dims, const int* ranks, const int* types,
                        int position, int format) {
    std::vector<PluginTensorDesc> tensors;
    for (int i = 0; i < inputs + outputs; ++i) tensors.push_back(described(dims + 8 * i, ranks[i], types[i]));
    tensors[position].format = TensorFormat(format);
    return static_cast<IPluginV2DynamicExt*>(plugin)->supportsFormatCombination(position, tensors.data(), inputs, outputs);
}

// 0 when it ran, 1 when it refuses the types, 2 when it takes others than these, 3 when it failed.
EXPORTED int host_run(void* plugin, int inputs, int outputs, const int32_t* dims, const int* ranks, const int* types,
                      const void** in, void** out) {
    auto* own = static_cast<IPluginV2DynamicExt*>(plugin)->clone();
    std::vector<PluginTensorDesc> tensors;
    for (int i = 0; i < inputs + outputs; ++i) tensors.push_back(described(dims + 8 * i, ranks[i], types[i]));
    for (int i = 0; i < inputs + outputs; ++i) {
        if (!own->supportsFormatCombination(i, tensors.data(), inputs, outputs)) return 1;
        const PluginTensorDesc right = tensors[i];
        // Of four dimensions, INT8 comes in vectors alone; what products give may come so in other types too.
        const bool linear = right.format == TensorFormat::kLINEAR;
        const TensorFormat other = right.dims.nbDims == 4 ? TensorFormat::kCHW4 : TensorFormat::kCHW32;
        tensors[i].format = linear ? other : TensorFormat::kLINEAR;
        if (own->supportsFormatCombination(i, tensors.data(), inputs, outputs)) return 2;
        tensors[i] = right;
        tensors[i].type = right.type == DataType::kINT32 ? DataType::kFLOAT : DataType::kINT32;
        if (own->supportsFormatCombination(i, tensors.data(), inputs, outputs)) return 2;
        tensors[i] = right;
    }
    std::vector<DynamicPluginTensorDesc> dynamic;
    for (const auto& tensor : tensors) dynamic.push_back({tensor, tensor.dims, tensor.dims});
    own->configurePlugin(dynamic.data(), inputs, dynamic.data() + inputs, outputs);
    int status = own->initialize();
    if (status == 0) status = own->enqueue(tensors.data(), tensors.data() + inputs, in, out, nullptr, nullptr);
    own->terminate();
    own->destroy();
    return status == 0 ? 0 : 3;
}

EXPORTED void host_destroy(void* plugin) { static_cast<IPluginV2DynamicExt*>(plugin)->destroy(); }
