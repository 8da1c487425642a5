// A machine that runs CUDA kernels on a CPU, for tests without a GPU: one block at a time, every thread of it a
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
extern Index thread, block, block_size;
extern uint8_t* shared;

// Runs `body` for every thread of every block.
void run(Index grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

// Waits until every thread of the block is here.
void wait_for_block();
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
