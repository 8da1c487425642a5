// The kernels as TensorRT plugins (IPluginV2DynamicExt: TensorRT 8.6 to 10.x).
//
// A plugin is a kind of operation with named values (numbers and arrays), which are its fields, its serialization and
// its device memory alike. Every kind takes exactly one combination of types, all row-major in memory: what the network
// was defined with. So TensorRT has nothing to choose and puts no conversion between two of them.
#include "products.h"
#include "rows.h"

#include <dlfcn.h>

#include <cstdio>
#include <exception>
#include <mutex>

namespace quantkit {
namespace {

constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "quantkit";

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
            return tensors[position].type == operation_.type(position) &&
                   has_format(tensors[position], operation_.either(position));
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
