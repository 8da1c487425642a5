// Hopper's matrix instruction, barriers and tensor copies, as thin functions over PTX (ISA 8.0, sm_90a).
#pragma once

#include <cstdint>
#include <cuda.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

namespace quantkit {

// Makes the barriers' first state known to the copy engine.
__device__ __forceinline__ void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

__device__ __forceinline__ void barrier_expect(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(phase)
        : "memory");
}

// Copies the box at (x, y) of a tensor in two dimensions into shared memory and counts its bytes on the barrier.
__device__ __forceinline__ void copy_box(const CUtensorMap* map, void* to, uint64_t* barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}

// The same to the same place in every block of the cluster whose bit is set; each one's own barrier counts.
__device__ __forceinline__ void copy_box_to_cluster(const CUtensorMap* map, void* to, uint64_t* barrier, int x, int y,
                                                    int blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(static_cast<uint16_t>(blocks))
        : "memory");
}

// Brings a tensor's description near before the first copy needs it.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Number of this block within its cluster.
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of the cluster that have not ended.
__device__ __forceinline__ void wait_for_cluster() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Arrives at the barrier that has this place in block `rank` of the cluster.
__device__ __forceinline__ void barrier_arrive_at(uint64_t* barrier, int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}

// Waits for the 128 threads of a warpgroup; `number` 1 to 15, each for one warpgroup.
__device__ __forceinline__ void warpgroup_barrier(int number) {
    asm volatile("bar.sync %0, 128;" ::"r"(number) : "memory");
}

// Changes the number of registers of every thread of a warpgroup: down, and up as far as others gave theirs.
template <int kCount>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Descriptor of a matrix in shared memory: rows of 128 bytes, swizzled by 128 bytes, groups of 8 rows 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(const void* p) {
    const uint64_t address = (shared_address(p) & 0x3ffff) >> 4;
    return address | (uint64_t{1} << 16) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 62);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d (64 x kColumns) (+)= a (64 x 32 bytes) * b (kColumns x 32 bytes), transposed. Thread t of a warpgroup holds, in
// d[4 j + 2 r + e], row 16 (t / 32) + (t % 32) / 4 + 8 r and column 8 j + 2 (t % 4) + e.
template <int kColumns, typename Sum>
__device__ __forceinline__ void wgmma(Sum (&d)[kColumns / 2], uint64_t a, uint64_t b, int add);

#define QK_16(t, d, i)                                                                                            \
    t(d[i]), t(d[i + 1]), t(d[i + 2]), t(d[i + 3]), t(d[i + 4]), t(d[i + 5]), t(d[i + 6]), t(d[i + 7]), t(d[i + 8]), \
        t(d[i + 9]), t(d[i + 10]), t(d[i + 11]), t(d[i + 12]), t(d[i + 13]), t(d[i + 14]), t(d[i + 15])
#define QK_R0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define QK_R1 QK_R0 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define QK_R2 QK_R1 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define QK_R3 QK_R2 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define QK_R4 QK_R3 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define QK_R5 QK_R4 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define QK_R6 QK_R5 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define QK_R7 QK_R6 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define QK_D0(t) QK_16(t, d, 0)
#define QK_D1(t) QK_D0(t), QK_16(t, d, 16)
#define QK_D2(t) QK_D1(t), QK_16(t, d, 32)
#define QK_D3(t) QK_D2(t), QK_16(t, d, 48)
#define QK_D5(t) QK_D3(t), QK_16(t, d, 64), QK_16(t, d, 80)
#define QK_D7(t) QK_D5(t), QK_16(t, d, 96), QK_16(t, d, 112)

// `columns` = 32 * (last + 1); the operands after the sums have the numbers a, b and add.
#define QK_WGMMA(columns, last, a_, b_, add_)                                                                   \
    template <>                                                                                                 \
    __device__ __forceinline__ void wgmma<columns, int32_t>(int32_t(&d)[columns / 2], uint64_t a, uint64_t b,   \
                                                            int add) {                                          \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_ ", 0;\n"                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #columns "k32.s32.s8.s8 {" QK_R##last "}, %" #a_ ", %" \
                     #b_ ", p;\n}\n"                                                                            \
                     : QK_D##last("+r")                                                                         \
                     : "l"(a), "l"(b), "r"(add));                                                               \
    }                                                                                                           \
    template <>                                                                                                 \
    __device__ __forceinline__ void wgmma<columns, float>(float(&d)[columns / 2], uint64_t a, uint64_t b,       \
                                                          int add) {                                            \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_ ", 0;\n"                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" QK_R##last "}, %" #a_     \
                     ", %" #b_ ", p, 1, 1, 0, 0;\n}\n"                                                          \
                     : QK_D##last("+f")                                                                         \
                     : "l"(a), "l"(b), "r"(add));                                                               \
    }

QK_WGMMA(32, 0, 16, 17, 18)
QK_WGMMA(64, 1, 32, 33, 34)
QK_WGMMA(96, 2, 48, 49, 50)
QK_WGMMA(128, 3, 64, 65, 66)
QK_WGMMA(192, 5, 96, 97, 98)
QK_WGMMA(256, 7, 128, 129, 130)

}  // namespace quantkit
