// Named values of a plugin: what it was made from, what it writes into a plan, and what lies on the device.
#pragma once

#include <cstring>
#include <cuda_runtime_api.h>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace quantkit {

inline void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

inline void require(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
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

}  // namespace quantkit
