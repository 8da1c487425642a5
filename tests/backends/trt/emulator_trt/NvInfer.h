// As much of TensorRT's plugin interface as the plugins use, for compiling them without TensorRT's headers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_runtime_api.h"

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3 };
enum class TensorFormat : int32_t { kLINEAR = 0, kCHW4 = 3, kCHW32 = 5 };
enum class DimensionOperation : int32_t { kSUM = 0, kPROD = 1, kMAX = 2, kMIN = 3, kSUB = 4 };
enum class PluginFieldType : int32_t { kFLOAT16, kFLOAT32, kFLOAT64, kINT8, kINT16, kINT32, kCHAR, kDIMS, kUNKNOWN };

struct Dims {
    int32_t nbDims = 0;
    int32_t d[8] = {};
};
struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};
struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max;
};
struct IDimensionExpr {
    int32_t value;
};
struct DimsExprs {
    int32_t nbDims = 0;
    const IDimensionExpr* d[8] = {};
};
class IExprBuilder {
   public:
    virtual ~IExprBuilder() = default;
    virtual const IDimensionExpr* constant(int32_t value) noexcept = 0;
    virtual const IDimensionExpr* operation(DimensionOperation what, const IDimensionExpr& a,
                                            const IDimensionExpr& b) noexcept = 0;
};

class IPluginV2 {
   public:
    virtual ~IPluginV2() = default;
    virtual const char* getPluginType() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual int32_t initialize() noexcept = 0;
    virtual void terminate() noexcept = 0;
    virtual size_t getSerializationSize() const noexcept = 0;
    virtual void serialize(void* buffer) const noexcept = 0;
    virtual void destroy() noexcept = 0;
    virtual void setPluginNamespace(const char* name) noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
};
class IPluginV2DynamicExt : public IPluginV2 {
   public:
    virtual DataType getOutputDataType(int32_t index, const DataType* types, int32_t inputs) const noexcept = 0;
    virtual IPluginV2DynamicExt* clone() const noexcept = 0;
    virtual DimsExprs getOutputDimensions(int32_t index, const DimsExprs* in, int32_t inputs,
                                          IExprBuilder& builder) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t position, const PluginTensorDesc* tensors, int32_t inputs,
                                           int32_t outputs) noexcept = 0;
    virtual void configurePlugin(const DynamicPluginTensorDesc* in, int32_t inputs, const DynamicPluginTensorDesc* out,
                                 int32_t outputs) noexcept = 0;
    virtual size_t getWorkspaceSize(const PluginTensorDesc* in, int32_t inputs, const PluginTensorDesc* out,
                                    int32_t outputs) const noexcept = 0;
    virtual int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                            void* const* outputs, void* workspace, cudaStream_t stream) noexcept = 0;
};

struct PluginField {
    PluginField(const char* n = nullptr, const void* p = nullptr, PluginFieldType t = PluginFieldType::kUNKNOWN,
                int32_t l = 0) noexcept
        : name(n), data(p), type(t), length(l) {}
    const char* name;
    const void* data;
    PluginFieldType type;
    int32_t length;
};
struct PluginFieldCollection {
    int32_t nbFields;
    const PluginField* fields;
};
class IPluginCreator {
   public:
    virtual ~IPluginCreator() = default;
    virtual const char* getPluginName() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
    virtual IPluginV2* createPlugin(const char* name, const PluginFieldCollection* fields) noexcept = 0;
    virtual IPluginV2* deserializePlugin(const char* name, const void* data, size_t length) noexcept = 0;
    virtual void setPluginNamespace(const char* name) noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
};
class IPluginRegistry {
   public:
    virtual ~IPluginRegistry() = default;
    virtual bool registerCreator(IPluginCreator& creator, const char* name) noexcept = 0;
};

}  // namespace nvinfer1
