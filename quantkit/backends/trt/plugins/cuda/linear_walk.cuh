// Linear layers, blocks that walk: one block for each multiprocessor makes one tile of the output after the other.
//
// The first warpgroup copies and gives most of its registers away. It runs ahead over the borders of tiles as far as the
// ring reaches. Two warpgroups multiply: as two teams on tiles by turns, one's epilogue during the other's products, or as
// one team that halves the rows of a tile. Blocks in clusters of two take tiles one below the other: each copies one half
// of the weights' tile, to both.
//
// Order in the ring: stage s % kStages holds step s, counted over all steps of all tiles of the block; tile i of the block
// has the steps i * steps to (i + 1) * steps - 1 and is team i % kTeams's. A team begins with a tile when the other has
// met the last step of the tile before: a barrier tells only the phase under way from the one before, so that nobody may
// wait for a step while the step kStages before it is still on its way.
#pragma once

#include "linear.cuh"

namespace quantkit {

template <int kRows, int kColumns, int kStages, int kTeams, int kCluster>
struct Walk {
    static constexpr int kMembers = 2 / kTeams;               // warpgroups of a team
    static constexpr int kHalves = kRows / (64 * kMembers);   // 64 rows each, of one warpgroup
    static constexpr int kThreads = 3 * 128;
    static constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
    static constexpr int kVectors = 2 * kColumns;             // alpha and beta of a tile, for each warpgroup
    static constexpr size_t kShared =
        size_t{kStages} * kStageBytes + 2 * kVectors * sizeof(float) + (2 * kStages + 2) * sizeof(uint64_t) + 1024;
    // 65536 registers, 384 threads: the kernel begins with 168 for each.
    static constexpr int kCopying = 24, kMultiplying = 240;
    static_assert(kCopying + 2 * kMultiplying <= 3 * 168, "registers that are taken were given");
    static_assert(kColumns / kCluster % 8 == 0, "halves of the weights' tile begin where a swizzle begins");
    static_assert(kVectors % 128 == 0 && kRows % (64 * kMembers) == 0 && kShared <= 227 * 1024, "sizes");
};

template <typename In, typename Out, bool kGelu, int kRows, int kColumns, int kStages, int kTeams, int kCluster>
__global__ void __launch_bounds__(384, 1)
    quantkit_linear_walk(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap weight,
                         Epilogue args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using Shape = Walk<kRows, kColumns, kStages, kTeams, kCluster>;
    using Sum = typename Sums<In>::type;
    constexpr int kStep = kRowBytes / sizeof(In);
    uint8_t* const raw = dynamic_shared();
    uint8_t* const ring = raw + (1024 - (shared_address(raw) & 1023)) % 1024;
    float* const vectors = reinterpret_cast<float*>(ring + kStages * Shape::kStageBytes);
    uint64_t* const full = reinterpret_cast<uint64_t*>(vectors + 2 * Shape::kVectors);
    uint64_t* const empty = full + kStages;
    uint64_t* const turn = empty + kStages;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
    const int rank = kCluster > 1 ? cluster_rank() : 0;
    const int steps = (args.k + kStep - 1) / kStep;
    const int across = (args.n + kColumns - 1) / kColumns;
    const int tiles = across * ((args.m + kCluster * kRows - 1) / (kCluster * kRows));
    const int first = blockIdx.x / kCluster, stride = gridDim.x / kCluster;

    let_next_begin();
    if (threadIdx.x == 0) {
        prefetch_map(&in);
        prefetch_map(&weight);
        for (int i = 0; i < kStages; ++i) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], Shape::kMembers * kCluster);
        }
        for (int i = 0; i < kTeams; ++i) barrier_init(&turn[i], 1);
        barriers_ready();
    }
    if constexpr (kCluster > 1) {
        wait_for_cluster();
    } else {
        __syncthreads();
    }

    if (group == 0) {
        give_registers<Shape::kCopying>();
        if (threadIdx.x == 0) {
            auto copy_weight = [&](int stage, int x, int column0) {
                uint8_t* const place = ring + stage * Shape::kStageBytes + kRows * kRowBytes;
                barrier_expect(&full[stage], Shape::kStageBytes);
                if constexpr (kCluster > 1) {
                    constexpr int kPart = kColumns / kCluster;
                    copy_box_to_cluster(&weight, place + rank * kPart * kRowBytes, &full[stage], x,
                                        column0 + rank * kPart, (1 << kCluster) - 1);
                } else {
                    copy_box(&weight, place, &full[stage], x, column0);
                }
            };
            // Weights do not depend on the kernel before; the first of them are fetched while it ends.
            const int early = first >= tiles ? 0 : steps < kStages ? steps : kStages;
            for (int i = 0; i < early; ++i) copy_weight(i, i * kStep, first % across * kColumns);
            wait_for_inputs();
            int step = 0;
            for (int tile = first; tile < tiles; tile += stride) {
                const int row0 = (tile / across * kCluster + rank) * kRows, column0 = tile % across * kColumns;
                for (int i = 0; i < steps; ++i, ++step) {
                    const int stage = step % kStages;
                    if (step >= early) {
                        if (step >= kStages) barrier_wait(&empty[stage], (step / kStages + 1) & 1);
                        copy_weight(stage, i * kStep, column0);
                    }
                    copy_box(&in, ring + stage * Shape::kStageBytes, &full[stage], i * kStep, row0);
                }
            }
        }
    } else {
        take_registers<Shape::kMultiplying>();
        const int own = group - 1, team = own / Shape::kMembers, member = own % Shape::kMembers;
        const int own_row = member * Shape::kHalves * 64;  // first of this warpgroup's rows within the tile
        const int thread = threadIdx.x % 128;
        float* const alpha_beta = vectors + own * Shape::kVectors;
        // A stage is free for both blocks of a cluster when both have read it.
        auto release = [&](int step) {
            if constexpr (kCluster > 1) {
                if (thread < kCluster) barrier_arrive_at(&empty[step % kStages], thread);
            } else {
                if (thread == 0) barrier_arrive(&empty[step % kStages]);
            }
        };
        // The output's memory may still be read by the kernel before.
        wait_for_inputs();
        int step = team * steps, round = 0;
        for (int tile = first + team * stride; tile < tiles; tile += kTeams * stride) {
            const int row0 = (tile / across * kCluster + rank) * kRows, column0 = tile % across * kColumns;
            float ahead[Shape::kVectors / 128];
#pragma unroll
            for (int i = 0; i < Shape::kVectors / 128; ++i) {
                const int at = i * 128 + thread, column = column0 + at % kColumns;
                ahead[i] = column < args.n ? (at < kColumns ? args.alpha : args.beta)[column] : 0.f;
            }
            auto keep_ahead = [&] {
                // Not before the last of the warpgroup has read those of the tile before.
                warpgroup_barrier(1 + own);
#pragma unroll
                for (int i = 0; i < Shape::kVectors / 128; ++i) alpha_beta[i * 128 + thread] = ahead[i];
            };
            // Who waits for its turn has time to wait for them, too; a single team has not, but has registers.
            if constexpr (kTeams > 1) keep_ahead();
            // Team 0 begins; after that each waits for the other once a tile.
            if constexpr (kTeams > 1) barrier_wait(&turn[team], (round++ + 1 + team) & 1);
            Sum sums[Shape::kHalves][kColumns / 2];
            for (int i = 0; i < steps; ++i, ++step) {
                const int stage = step % kStages;
                const uint8_t* place = ring + stage * Shape::kStageBytes;
                barrier_wait(&full[stage], step / kStages & 1);
                const uint64_t a = descriptor(place + own_row * kRowBytes);
                const uint64_t b = descriptor(place + kRows * kRowBytes);
                wgmma_fence();
#pragma unroll
                for (int half = 0; half < Shape::kHalves; ++half) {
                    multiply_row_bytes<kColumns>(sums[half], a + half * (64 * kRowBytes >> 4), b, i == 0);
                }
                wgmma_commit();
                if (i > 0) {
                    wgmma_wait<1>();
                    release(step - 1);
                }
            }
            if constexpr (kTeams > 1) {
                if (thread == 0) barrier_arrive(&turn[1 - team]);
            }
            wgmma_wait<0>();
            release(step - 1);
            step += (kTeams - 1) * steps;

            if constexpr (kTeams == 1) keep_ahead();
            warpgroup_barrier(1 + own);
            const int row = row0 + own_row + warp % 4 * 16 + lane / 4;
#pragma unroll
            for (int part = 0; part < kColumns / kGroup; ++part) {
                const int within = part * kGroup + lane % 4 * 8;
                if (column0 + within >= args.n) continue;
                float alpha[8], beta[8];
                load8(alpha_beta, within, 0.f, alpha);
                load8(alpha_beta, kColumns + within, 0.f, beta);
#pragma unroll
                for (int half = 0; half < Shape::kHalves; ++half) {
                    finish<Out, kGelu>(sums[half], part, alpha, beta, row + half * 64, column0 + within, args);
                }
            }
        }
    }
    // The other block may still arrive at barriers of this one. Warps come here as a whole.
    if constexpr (kCluster > 1) {
        __syncwarp();
        wait_for_cluster();
    }
#endif
}

}  // namespace quantkit
