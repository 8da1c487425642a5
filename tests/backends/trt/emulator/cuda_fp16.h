// Half precision by the compiler's own type.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

struct __half {
    _Float16 value;
};
struct __half2 {
    __half x, y;
};
using half = __half;

inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
inline float2 __half22float2(__half2 x) { return {float(x.x.value), float(x.y.value)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {{_Float16(x)}, {_Float16(y)}}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __hsub2(__half2 a, __half2 b) {
    return {{_Float16(a.x.value - b.x.value)}, {_Float16(a.y.value - b.y.value)}};
}
inline __half __ushort_as_half(uint16_t bits) {
    __half x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}
