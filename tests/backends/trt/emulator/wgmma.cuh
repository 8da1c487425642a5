// In the place of the kernels' own wgmma.cuh.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda.h"
#include "cuda_fp16.h"
#include "ptx.cuh"

namespace quantkit {

inline void barriers_ready() {}
inline void barrier_init(uint64_t* barrier, int arrivals) { machine::init(barrier, arrivals); }
inline void barrier_expect(uint64_t* barrier, int bytes) { machine::expect(barrier, bytes); }
inline void barrier_arrive(uint64_t* barrier) { machine::arrive(barrier); }
inline void barrier_wait(uint64_t* barrier, int phase) { machine::wait(barrier, phase); }

// Where byte `address` of a matrix with rows of 128 bytes lies: 16-byte pieces 0 to 7 of a row are exchanged by the row.
inline uint8_t* swizzled(uintptr_t address) { return reinterpret_cast<uint8_t*>(address ^ (address >> 7 & 7) << 4); }

inline void copy_box(const CUtensorMap* map, void* to, uint64_t* barrier, int x, int y) {
    const CUtensorMap m = *map;
    const int bytes = int(m.box_columns * m.box_rows * m.size);
    machine::copy_later(barrier, bytes, [=] {
        const auto base = reinterpret_cast<uintptr_t>(to);
        for (uint32_t r = 0; r < m.box_rows; ++r) {
            for (uint32_t c = 0; c < m.box_columns; ++c) {
                const bool inside = y + r < m.rows && x + c < m.columns;
                for (uint32_t i = 0; i < m.size; ++i) {
                    const uintptr_t at = base + (r * m.box_columns + c) * m.size + i;
                    const uint8_t value = inside ? m.matrix[(y + r) * m.stride + (x + c) * m.size + i] : 0;
                    *(m.swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? swizzled(at) : reinterpret_cast<uint8_t*>(at)) = value;
                }
            }
        }
    });
}

inline void copy_box_to_cluster(const CUtensorMap* map, void* to, uint64_t* barrier, int x, int y, int blocks) {
    for (int rank = 0; blocks >> rank; ++rank) {
        if (blocks >> rank & 1) {
            copy_box(map, machine::of_block(to, rank), static_cast<uint64_t*>(machine::of_block(barrier, rank)), x, y);
        }
    }
}

inline void prefetch_map(const CUtensorMap*) {}
inline int cluster_rank() { return machine::rank(); }
inline void wait_for_cluster() { machine::wait_for_cluster(); }
inline void barrier_arrive_at(uint64_t* barrier, int rank) { machine::arrive_at(barrier, rank); }
inline void warpgroup_barrier(int number) { machine::wait_for_some(number, 128); }
template <int kCount>
inline void give_registers() {
    machine::change_registers(kCount);
}
template <int kCount>
inline void take_registers() {
    machine::change_registers(kCount);
}

// The address itself, in pieces of 16 bytes: as in the hardware's descriptors, 2 more are 32 bytes more.
inline uint64_t descriptor(const void* p) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address % 1024) abort();  // the base offset of a descriptor that begins elsewhere is not set
    return address >> 4;
}

inline void wgmma_fence() {}
inline void wgmma_commit() { machine::commit(); }
template <int kPending>
inline void wgmma_wait() {
    machine::wait_for_groups(kPending);
}

template <typename T, int kColumns, typename Sum>
inline void wgmma_as(Sum (&d)[kColumns / 2], uint64_t a, uint64_t b, int add) {
    const int t = threadIdx.x % 128;
    machine::product_later([&d, a, b, add, t] {
        for (int i = 0; i < kColumns / 2; ++i) {
            const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
            Sum sum = add ? d[i] : Sum(0);
            for (int k = 0; k < int(32 / sizeof(T)); ++k) {
                T x, y;
                std::memcpy(&x, swizzled((a << 4) + row * 128 + k * sizeof(T)), sizeof(T));
                std::memcpy(&y, swizzled((b << 4) + column * 128 + k * sizeof(T)), sizeof(T));
                sum += Sum(x) * Sum(y);
            }
            d[i] = sum;
        }
    });
}

template <int kColumns>
inline void wgmma(int32_t (&d)[kColumns / 2], uint64_t a, uint64_t b, int add) {
    wgmma_as<int8_t, kColumns>(d, a, b, add);
}
template <int kColumns>
inline void wgmma(float (&d)[kColumns / 2], uint64_t a, uint64_t b, int add) {
    wgmma_as<_Float16, kColumns>(d, a, b, add);
}

}  // namespace quantkit
