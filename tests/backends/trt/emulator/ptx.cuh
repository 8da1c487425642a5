// In the place of the kernels' own ptx.cuh.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace quantkit {

inline uint32_t shared_address(const void* p) { return uint32_t(reinterpret_cast<uintptr_t>(p)); }
inline uint8_t* dynamic_shared() { return machine::shared; }

inline void load_matrices(uint32_t* r, const void* row) {
    const uint8_t* all = machine::exchange(&row, sizeof(row));
    for (int i = 0; i < 4; ++i) {
        const uint8_t* from;
        std::memcpy(&from, all + (i * 8 + threadIdx.x % 32 / 4) * sizeof(from), sizeof(from));
        std::memcpy(&r[i], from + threadIdx.x % 4 * 4, 4);
    }
}

inline void load_transposed(uint32_t* r, const void* row) {
    const uint8_t* all = machine::exchange(&row, sizeof(row));
    for (int i = 0; i < 4; ++i) {
        uint16_t pair[2];
        for (int j = 0; j < 2; ++j) {
            const uint8_t* from;
            std::memcpy(&from, all + (i * 8 + threadIdx.x % 4 * 2 + j) * sizeof(from), sizeof(from));
            std::memcpy(&pair[j], from + threadIdx.x % 32 / 4 * 2, 2);
        }
        std::memcpy(&r[i], pair, 4);
    }
}

// Fragments of one lane: a's four words, b's two.
struct Fragments {
    uint32_t a[4], b[2];
};

// Product of a (16 x 32 bytes) and b (8 rows of 32 bytes), from the fragments of all lanes.
template <typename T, typename Sum>
inline void multiply_as(Sum (&d)[4], const uint32_t* a, const uint32_t* b) {
    Fragments own;
    std::memcpy(own.a, a, sizeof(own.a));
    std::memcpy(own.b, b, sizeof(own.b));
    const uint8_t* all = machine::exchange(&own, sizeof(own));
    constexpr int kPerWord = 4 / sizeof(T), kSteps = 32 / sizeof(T);
    auto word = [&](int lane, int i) {
        Fragments other;
        std::memcpy(&other, all + lane * sizeof(other), sizeof(other));
        return i < 4 ? other.a[i] : other.b[i - 4];
    };
    auto element = [&](uint32_t w, int i) {
        T x;
        std::memcpy(&x, reinterpret_cast<const uint8_t*>(&w) + i * sizeof(T), sizeof(T));
        return Sum(x);
    };
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        Sum sum = d[i];
        for (int k = 0; k < kSteps; ++k) {
            const int half = k / (kSteps / 2), within = k % (kSteps / 2);
            const uint32_t from_a = word(row % 8 * 4 + within / kPerWord, row / 8 + 2 * half);
            const uint32_t from_b = word(column * 4 + within / kPerWord, 4 + half);
            sum += element(from_a, within % kPerWord) * element(from_b, within % kPerWord);
        }
        d[i] = sum;
    }
}

inline void multiply(int32_t (&d)[4], const uint32_t* a, const uint32_t* b) { multiply_as<int8_t>(d, a, b); }
inline void multiply(float (&d)[4], const uint32_t* a, const uint32_t* b) { multiply_as<_Float16>(d, a, b); }
inline void multiply_from(int32_t start, int32_t (&d)[4], const uint32_t* a, const uint32_t* b) {
    d[0] = d[1] = d[2] = d[3] = start;
    multiply(d, a, b);
}
inline void multiply_from(float start, float (&d)[4], const uint32_t* a, const uint32_t* b) {
    d[0] = d[1] = d[2] = d[3] = start;
    multiply(d, a, b);
}

inline void copy_later(void* to, const void* from, bool there) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) abort();
    machine::own_copy_later([=] { there ? std::memcpy(to, from, 16) : std::memset(to, 0, 16); });
}
inline void copies_commit() { machine::commit_copies(); }
template <int kPending>
inline void copies_wait() {
    machine::wait_for_copies(kPending);
}

inline float power_of_two(float x) { return std::exp2(x); }
inline float tanh_approximately(float x) { return std::tanh(x); }
inline void let_next_begin() {}
inline void wait_for_inputs() {}

}  // namespace quantkit
