// A machine that runs CUDA kernels on a CPU, for tests without a GPU: one cluster of blocks at a time, every thread of it a
// coroutine that goes on until it has to wait for others. What PTX does is written down here a second time, from the
// PTX ISA's descriptions: fragments of the matrix instructions, swizzled tensor copies, barriers with phases.
//
// Copies and matrix products that a kernel must wait for happen either at once or as late as they may (after
// machine_be_late(1)): a kernel that reads too early is wrong in the first case, one that overwrites too early in the
// second. Shared memory holds garbage when a block begins.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace machine {

struct Index {
    unsigned x, y, z;
};
extern Index thread, block, block_size, grid_size;
extern uint8_t* shared;

// Runs `body` for every thread of every block, `cluster` neighbouring blocks at a time.
void run(Index grid, unsigned threads, size_t shared_bytes, unsigned cluster, const std::function<void()>& body);

// Waits until every thread of the block is here.
void wait_for_block();
// Waits until `count` threads of the block are at the barrier of this number.
void wait_for_some(int number, int count);
// Waits until every thread of the cluster that has not ended is here.
void wait_for_cluster();
// Number of this block within the cluster; a place in shared memory as it is in another block of the cluster.
int rank();
void* of_block(const void* place, int rank);
// From now on this thread has `count` registers: gives to the block's pool, or waits until enough is in it.
void change_registers(int count);
// Lets other threads go on.
void yield();
// Deposits `bytes` of this lane, waits for the warp, and gives every lane's deposit (32 of them, in order).
const uint8_t* exchange(const void* mine, size_t bytes);
bool late();

struct Barrier {
    int32_t pending_arrivals;
    int16_t arrivals;
    uint8_t phase;
    uint8_t unused;
};
static_assert(sizeof(Barrier) == 8, "a barrier is 8 bytes");

void init(uint64_t* barrier, int arrivals);
void expect(uint64_t* barrier, int bytes);
void arrive(uint64_t* barrier);
void arrive_at(uint64_t* barrier, int rank);
void wait(uint64_t* barrier, int phase);
// A copy that counts `bytes` on the barrier when it is done.
void copy_later(uint64_t* barrier, int bytes, std::function<void()> copy);

// Matrix products of this thread: gathered, committed as groups, done when a wait asks for it at the latest.
void product_later(std::function<void()> product);
void commit();
void wait_for_groups(int pending);

// Copies of this thread that no barrier counts: gathered, committed and waited for in the same way.
void own_copy_later(std::function<void()> copy);
void commit_copies();
void wait_for_copies(int pending);

}  // namespace machine
