// Linear layers in INT8 or FP16 on Hopper: tensor copies into a ring of shared memory, wgmma out of it, and an epilogue
// that scales, adds the bias, applies GELU and quantizes before anything is written.
//
// There are two forms. Here: one block makes one tile of the output. Its last warp copies; the others, in warpgroups of 64
// rows, multiply. Small tiles leave room for two or more blocks on a multiprocessor: one's epilogue runs while the other
// multiplies. In linear_walk.cuh: blocks that stay and walk over the tiles.
#include <algorithm>
#include <cudaTypedefs.h>

#include "linear_walk.cuh"

namespace quantkit {
namespace {

template <int kRows, int kColumns, int kStages>
struct Tile {
    static constexpr int kWarpgroups = kRows / 64;
    static constexpr int kThreads = kWarpgroups * 128 + 32;
    static constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
    static constexpr size_t kShared = size_t{kStages} * kStageBytes + 1024;  // 1024: to align the ring
    static constexpr int kBlocks = kShared > 113 * 1024 ? 1 : kShared > 75 * 1024 ? 2 : 3;
};

template <typename In, typename Out, bool kGelu, int kRows, int kColumns, int kStages>
__global__ void __launch_bounds__(Tile<kRows, kColumns, kStages>::kThreads, Tile<kRows, kColumns, kStages>::kBlocks)
    quantkit_linear(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap weight, Epilogue args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using Shape = Tile<kRows, kColumns, kStages>;
    using Sum = typename Sums<In>::type;
    constexpr int kStep = kRowBytes / sizeof(In);
    uint8_t* const raw = dynamic_shared();
    alignas(8) __shared__ uint64_t full[kStages], empty[kStages];
    uint8_t* ring = raw + (1024 - (shared_address(raw) & 1023)) % 1024;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row0 = blockIdx.y * kRows, column0 = blockIdx.x * kColumns;
    const int steps = (args.k + kStep - 1) / kStep;

    let_next_begin();
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], Shape::kWarpgroups);
        }
        barriers_ready();
    }
    __syncthreads();

    if (warp == Shape::kWarpgroups * 4) {
        if (lane == 0) {
            // Weights do not depend on the kernel before; the first of them are fetched while it ends.
            const int early = steps < kStages ? steps : kStages;
            for (int i = 0; i < early; ++i) {
                barrier_expect(&full[i], Shape::kStageBytes);
                copy_box(&weight, ring + i * Shape::kStageBytes + kRows * kRowBytes, &full[i], i * kStep, column0);
            }
            wait_for_inputs();
            for (int i = 0; i < early; ++i) copy_box(&in, ring + i * Shape::kStageBytes, &full[i], i * kStep, row0);
            for (int i = early; i < steps; ++i) {
                const int stage = i % kStages;
                uint8_t* place = ring + stage * Shape::kStageBytes;
                barrier_wait(&empty[stage], (i / kStages + 1) & 1);
                barrier_expect(&full[stage], Shape::kStageBytes);
                copy_box(&in, place, &full[stage], i * kStep, row0);
                copy_box(&weight, place + kRows * kRowBytes, &full[stage], i * kStep, column0);
            }
        }
        return;
    }

    // The output's memory may still be read by the kernel before.
    wait_for_inputs();
    Sum sums[kColumns / 2];
    const int group = warp / 4;
    for (int i = 0; i < steps; ++i) {
        const int stage = i % kStages;
        const uint8_t* place = ring + stage * Shape::kStageBytes;
        barrier_wait(&full[stage], (i / kStages) & 1);
        const uint64_t a = descriptor(place + group * 64 * kRowBytes);
        const uint64_t b = descriptor(place + kRows * kRowBytes);
        wgmma_fence();
        multiply_row_bytes<kColumns>(sums, a, b, i == 0);
        wgmma_commit();
        if (i > 0) {
            wgmma_wait<1>();
            if (threadIdx.x % 128 == 0) barrier_arrive(&empty[(i - 1) % kStages]);
        }
    }
    wgmma_wait<0>();

    const int row = row0 + group * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int part = 0; part < kColumns / kGroup; ++part) {
        const int column = column0 + part * kGroup + lane % 4 * 8;
        if (column >= args.n) continue;
        float alpha[8], beta[8];
        load8(args.alpha, column, 0.f, alpha);
        load8(args.beta, column, 0.f, beta);
        finish<Out, kGelu>(sums, part, alpha, beta, row, column, args);
    }
#endif
}

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
    static const auto found = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
        return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
    }();
    return found;
}

// A row-major matrix that is copied in boxes of `box` rows and 128 bytes; what lies outside is read as zero.
bool describe(CUtensorMap* map, const void* matrix, Type type, int rows, int columns, int box) {
    const int size = type == Type::kHalf ? 2 : 1;
    const auto element = size == 2 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
    const cuuint64_t extents[2] = {cuuint64_t(columns), cuuint64_t(rows)};
    const cuuint64_t strides[1] = {cuuint64_t(columns) * size};
    const cuuint32_t boxes[2] = {cuuint32_t(kRowBytes / size), cuuint32_t(box)};
    const cuuint32_t ones[2] = {1, 1};
    const auto encode = encoder();
    return encode != nullptr &&
           encode(map, element, 2, const_cast<void*>(matrix), extents, strides, boxes, ones,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename Kernel>
cudaError_t allow(Kernel kernel, size_t shared) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
}

// Launches a kernel whose copies take boxes of so many rows of the input and of the weight.
template <typename Kernel>
cudaError_t launch_maps(Kernel kernel, int rows, int columns, int cluster, dim3 grid, int threads, size_t shared,
                        const Linear& args, cudaStream_t stream) {
    CUtensorMap in, weight;
    if (!describe(&in, args.in, args.type, args.m, args.k, rows) ||
        !describe(&weight, args.weight, args.type, args.n, args.k, columns)) {
        return cudaErrorInvalidValue;
    }
    const Epilogue epilogue{args.alpha, args.beta, args.out, args.m, args.n, args.k, Code{args.rescale, args.shift}};
    return launch_clusters(kernel, cluster, grid, threads, shared, stream, in, weight, epilogue);
}

// Major compute capability and multiprocessors of the first device that was asked for.
struct Processor {
    int major = 0, count = 1;
};

const Processor& current_processor() {
    static const Processor found = [] {
        Processor processor;
        int device = 0;
        if (cudaGetDevice(&device) == cudaSuccess) {
            cudaDeviceGetAttribute(&processor.major, cudaDevAttrComputeCapabilityMajor, device);
            cudaDeviceGetAttribute(&processor.count, cudaDevAttrMultiProcessorCount, device);
        }
        return processor;
    }();
    return found;
}

// One block for each tile.
template <int kRows, int kColumns, int kStages>
struct Standing {
    template <typename In, typename Out, bool kGelu>
    static cudaError_t run(const Linear& args, cudaStream_t stream) {
        using Shape = Tile<kRows, kColumns, kStages>;
        const auto kernel = quantkit_linear<In, Out, kGelu, kRows, kColumns, kStages>;
        static const cudaError_t allowed = allow(kernel, Shape::kShared);
        if (allowed != cudaSuccess) return allowed;
        const dim3 grid((args.n + kColumns - 1) / kColumns, (args.m + kRows - 1) / kRows);
        return launch_maps(kernel, kRows, kColumns, 1, grid, Shape::kThreads, Shape::kShared, args, stream);
    }
};

// One block for each multiprocessor, or fewer.
template <int kRows, int kColumns, int kStages, int kTeams, int kCluster>
struct Walking {
    template <typename In, typename Out, bool kGelu>
    static cudaError_t run(const Linear& args, cudaStream_t stream) {
        using Shape = Walk<kRows, kColumns, kStages, kTeams, kCluster>;
        const auto kernel = quantkit_linear_walk<In, Out, kGelu, kRows, kColumns, kStages, kTeams, kCluster>;
        static const cudaError_t allowed = allow(kernel, Shape::kShared);
        if (allowed != cudaSuccess) return allowed;
        const int across = (args.n + kColumns - 1) / kColumns;
        const long tiles = long(across) * ((args.m + kCluster * kRows - 1) / (kCluster * kRows));
        const int most = std::max(current_processor().count / kCluster, 1);
        const dim3 grid(unsigned(std::min<long>(tiles, most)) * kCluster);
        return launch_maps(kernel, kRows, kColumns / kCluster, kCluster, grid, Shape::kThreads, Shape::kShared, args,
                           stream);
    }
};

template <typename Form>
cudaError_t typed(const Linear& a, cudaStream_t s) {
    if (a.type == Type::kInt8 && a.out_type == Type::kInt8) {
        return a.gelu ? Form::template run<int8_t, int8_t, true>(a, s) : Form::template run<int8_t, int8_t, false>(a, s);
    }
    if (a.type == Type::kInt8 && a.out_type == Type::kHalf) {
        return a.gelu ? Form::template run<int8_t, __half, true>(a, s) : Form::template run<int8_t, __half, false>(a, s);
    }
    if (a.type == Type::kHalf && a.out_type == Type::kHalf) {
        return a.gelu ? Form::template run<__half, __half, true>(a, s) : Form::template run<__half, __half, false>(a, s);
    }
    return cudaErrorInvalidValue;
}

struct Choice {
    int rows, columns;
    int teams, cluster;  // 0 teams: one block for each tile
    cudaError_t (*run)(const Linear&, cudaStream_t);
};

template <int kRows, int kColumns, int kStages>
constexpr Choice standing() {
    return {kRows, kColumns, 0, 1, typed<Standing<kRows, kColumns, kStages>>};
}

template <int kRows, int kColumns, int kStages, int kTeams, int kCluster>
constexpr Choice walking() {
    return {kRows, kColumns, kTeams, kCluster, typed<Walking<kRows, kColumns, kStages, kTeams, kCluster>>};
}

constexpr Choice kChoices[] = {
    standing<64, 32, 8>(),         standing<64, 64, 6>(),         standing<128, 64, 4>(),
    standing<128, 96, 3>(),        standing<128, 128, 3>(),       standing<128, 192, 5>(),
    standing<128, 256, 4>(),       standing<256, 128, 4>(),       walking<128, 128, 6, 2, 1>(),
    walking<128, 128, 6, 2, 2>(),  walking<128, 192, 5, 2, 1>(),  walking<128, 192, 5, 2, 2>(),
    walking<128, 256, 4, 1, 1>(),  walking<128, 256, 4, 1, 2>(),
};
constexpr int kCount = sizeof(kChoices) / sizeof(kChoices[0]);

// Whether blocks may walk: unless QUANTKIT_NO_WALK is set; standing ones take their place then.
bool blocks_walk() {
    static const bool walk = std::getenv("QUANTKIT_NO_WALK") == nullptr;
    return walk;
}

}  // namespace

int linear_tiles() { return kCount; }

void linear_tile(int tile, int* shape) {
    const Choice& choice = kChoices[tile];
    shape[0] = choice.rows, shape[1] = choice.columns, shape[2] = choice.teams, shape[3] = choice.cluster;
}

int linear_choice(int m, int n, int multiprocessors) {
    // Tiles on the busiest multiprocessor, each as costly as its area and the rows and columns it must read.
    int best = 0;
    double least = 0;
    for (int i = 0; i < kCount && kChoices[i].teams == 0; ++i) {
        const long rows = kChoices[i].rows, columns = kChoices[i].columns;
        const long tiles = ((m + rows - 1) / rows) * ((n + columns - 1) / columns);
        const long waves = (tiles + multiprocessors - 1) / multiprocessors;
        const double cost = double(waves) * (double(rows * columns) + 48. * double(rows + columns));
        if (i == 0 || cost < least) best = i, least = cost;
    }
    return best;
}

int linear_row(int column) {
    // A thread of the product holds 2 neighbouring columns of every 8; in this order they are 8 columns in a row.
    const int within = column % kGroup;
    return column - within + within % 8 / 2 * 8 + within / 8 * 2 + within % 2;
}

cudaError_t linear(const Linear& args, cudaStream_t stream) {
    const int size = args.type == Type::kHalf ? 2 : 1;
    if (args.m < 1 || args.n < kGroup || args.n % kGroup || args.k < 1 || args.k * size % 16 || args.tile >= kCount) {
        return cudaErrorInvalidValue;
    }
    const Processor& processor = current_processor();
    if (processor.major != 9) return cudaErrorNotSupported;
    const bool choose = args.tile < 0 || (kChoices[args.tile].teams > 0 && !blocks_walk());
    return kChoices[choose ? linear_choice(args.m, args.n, processor.count) : args.tile].run(args, stream);
}

}  // namespace quantkit
