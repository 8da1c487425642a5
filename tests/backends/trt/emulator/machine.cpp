#include "machine.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <vector>

namespace machine {

Index thread{}, block{}, block_size{}, grid_size{};
uint8_t* shared = nullptr;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr size_t kMostShared = 227 << 10;

// What a thread started and has to wait for: gathered, then in groups in the order of their commits.
struct Groups {
    std::vector<std::function<void()>> open;
    std::deque<std::vector<std::function<void()>>> closed;

    void add(std::function<void()> work) {
        if (late()) {
            open.push_back(std::move(work));
        } else {
            work();
        }
    }
    void commit() {
        closed.push_back(std::move(open));
        open.clear();
    }
    void finish(int left) {
        for (; int(closed.size()) > left; closed.pop_front()) {
            for (auto& work : closed.front()) work();
        }
    }
    bool pending() const { return !open.empty() || !closed.empty(); }
};

struct Coroutine {
    void* stack_pointer = nullptr;
    std::unique_ptr<uint8_t[]> stack;
    Index thread{};
    size_t rank = 0;  // of its block in the cluster
    int registers = 0;
    bool done = false;
    Groups products, copies;
};

struct Warp {
    std::vector<uint8_t> deposits;
    int arrived = 0;
    unsigned generation = 0;
    std::vector<uint8_t> published;
};

struct Meeting {
    size_t here = 0;
    unsigned generation = 0;
};

struct Block {
    Index index{};
    std::vector<uint8_t> memory;
    uint8_t* shared = nullptr;
    size_t alive = 0;
    int pool = 0;  // registers that threads gave away
    Meeting all;
    std::map<int, Meeting> named;
};

struct Pending {
    int bytes = 0;
    std::vector<std::pair<int, std::function<void()>>> copies;
};

std::vector<Coroutine> coroutines;
std::vector<Warp> warps;
std::map<uint64_t*, Pending> pending;
std::vector<Block> blocks;
Meeting of_cluster;
size_t current = 0, alive = 0;
unsigned long idle_turns = 0;
void* scheduler_pointer = nullptr;
const std::function<void()>* work = nullptr;
bool late_by_choice = false;

// Saves what a call must keep, and goes on with another stack.
extern "C" void machine_switch(void** from, void* to);
asm(R"(
.text
.globl machine_switch
.type machine_switch,@function
machine_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

void stop(const char* why) {
    fprintf(stderr, "machine: %s (block %u %u %u, thread %u)\n", why, block.x, block.y, block.z, thread.x);
    abort();
}

void enter() {
    Coroutine& own = coroutines[current];
    (*work)();
    if (own.products.pending() || own.copies.pending()) stop("a thread ends with work that nobody waited for");
    own.done = true;
    --alive, --blocks[own.rank].alive;
    yield();
    stop("a thread goes on after its end");
}

void prepare(Coroutine& c) {
    if (!c.stack) c.stack.reset(new uint8_t[kStack]);
    auto top = reinterpret_cast<uintptr_t>(c.stack.get() + kStack) & ~uintptr_t{15};
    void** at = reinterpret_cast<void**>(top);
    *--at = nullptr;  // so that the stack is aligned as after a call
    *--at = reinterpret_cast<void*>(&enter);
    for (int i = 0; i < 6; ++i) *--at = nullptr;
    c.stack_pointer = at;
    c.done = false;
}

void complete_if_due(uint64_t* where) {
    auto* barrier = reinterpret_cast<Barrier*>(where);
    if (barrier->pending_arrivals == 0 && pending[where].bytes == 0) {
        barrier->phase ^= 1;
        barrier->pending_arrivals = barrier->arrivals;
    }
}

void do_copies(uint64_t* where) {
    Pending& own = pending[where];
    for (auto& [bytes, copy] : own.copies) {
        copy();
        own.bytes -= bytes;
    }
    own.copies.clear();
}

}  // namespace

bool late() { return late_by_choice; }

void yield() { machine_switch(&coroutines[current].stack_pointer, scheduler_pointer); }

int rank() { return int(coroutines[current].rank); }

void* of_block(const void* place, int rank) {
    const ptrdiff_t offset = static_cast<const uint8_t*>(place) - shared;
    if (rank < 0 || size_t(rank) >= blocks.size()) stop("the cluster has no such block");
    if (offset < 0 || size_t(offset) >= kMostShared) stop("a place that is not in the block's dynamic shared memory");
    if (blocks[rank].alive == 0) stop("a block of the cluster has ended, with its shared memory");
    return blocks[rank].shared + offset;
}

void change_registers(int count) {
    Coroutine& own = coroutines[current];
    if (count % 8 || count < 24 || count > 256) stop("no such number of registers");
    int& pool = blocks[own.rank].pool;
    while (pool < count - own.registers) yield();
    pool += own.registers - count;
    own.registers = count;
    idle_turns = 0;
}

void run(Index grid, unsigned threads, size_t shared_bytes, unsigned cluster, const std::function<void()>& body) {
    if (shared_bytes > kMostShared) stop("too much shared memory");
    if (grid.x % cluster) stop("the grid is not made of clusters");
    blocks.clear();
    blocks.resize(cluster);
    for (Block& own : blocks) {
        own.memory.resize(kMostShared + 4096);
        // Not aligned to more than 16 bytes: a kernel that wants more has to see to it.
        own.shared = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(own.memory.data()) + 1023) / 1024 * 1024 + 16);
    }
    const size_t all = size_t{threads} * cluster;
    if (all > coroutines.size()) coroutines.resize(all);
    block_size = {threads, 1, 1};
    grid_size = grid;
    work = &body;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; x += cluster) {
                pending.clear();
                warps.assign((threads + 31) / 32 * cluster, Warp{});
                of_cluster = {};
                alive = all, idle_turns = 0;
                for (unsigned r = 0; r < cluster; ++r) {
                    Block& own = blocks[r];
                    memset(own.memory.data(), 0x5a, own.memory.size());
                    own.index = {x + r, y, z};
                    own.alive = threads, own.pool = 0, own.all = {};
                    own.named.clear();
                }
                for (size_t i = 0; i < all; ++i) {
                    coroutines[i].thread = {unsigned(i % threads), 0, 0};
                    coroutines[i].rank = i / threads;
                    coroutines[i].registers = int(65536 / threads / 8 * 8);
                    prepare(coroutines[i]);
                }
                while (alive > 0) {
                    for (current = 0; current < all; ++current) {
                        const Coroutine& next = coroutines[current];
                        if (next.done) continue;
                        thread = next.thread;
                        block = blocks[next.rank].index;
                        shared = blocks[next.rank].shared;
                        machine_switch(&scheduler_pointer, next.stack_pointer);
                    }
                    if (++idle_turns > 2000000) stop("the block does not end: its threads wait for each other");
                }
            }
        }
    }
}

namespace {

// `expected` is read again and again: threads that end meanwhile are not waited for.
void meet(Meeting& meeting, const size_t& expected) {
    const unsigned generation = meeting.generation;
    ++meeting.here;
    while (generation == meeting.generation) {
        if (meeting.here >= expected) {
            meeting.here = 0;
            ++meeting.generation;
            break;
        }
        yield();
    }
    idle_turns = 0;
}

}  // namespace

void wait_for_block() {
    Block& own = blocks[coroutines[current].rank];
    meet(own.all, own.alive);
}

void wait_for_some(int number, int count) {
    if (number < 1 || number > 15 || count % 32) stop("no such barrier");
    const size_t expected = size_t(count);
    meet(blocks[coroutines[current].rank].named[number], expected);
}

void wait_for_cluster() { meet(of_cluster, alive); }

const uint8_t* exchange(const void* mine, size_t bytes) {
    Warp& warp = warps[(block_size.x + 31) / 32 * coroutines[current].rank + thread.x / 32];
    warp.deposits.resize(32 * bytes);
    memcpy(&warp.deposits[thread.x % 32 * bytes], mine, bytes);
    const unsigned generation = warp.generation;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        warp.published = warp.deposits;
        ++warp.generation;
        idle_turns = 0;
    }
    while (generation == warp.generation) yield();
    return warp.published.data();
}

void init(uint64_t* where, int arrivals) {
    *reinterpret_cast<Barrier*>(where) = {arrivals, int16_t(arrivals), 0, 0};
}

void expect(uint64_t* where, int bytes) {
    pending[where].bytes += bytes;
    arrive(where);
}

void arrive(uint64_t* where) {
    auto* barrier = reinterpret_cast<Barrier*>(where);
    if (--barrier->pending_arrivals < 0) stop("more arrivals than a barrier has");
    complete_if_due(where);
}

void arrive_at(uint64_t* where, int rank) { arrive(static_cast<uint64_t*>(of_block(where, rank))); }

void wait(uint64_t* where, int phase) {
    auto* barrier = reinterpret_cast<Barrier*>(where);
    // A wait for phase p is over when the phase of that parity is complete, that is, when the other one is under way.
    while (barrier->phase == phase) {
        yield();
        if (late() && barrier->phase == phase) {
            do_copies(where);
            complete_if_due(where);
        }
    }
    idle_turns = 0;
}

void copy_later(uint64_t* where, int bytes, std::function<void()> copy) {
    pending[where].copies.emplace_back(bytes, std::move(copy));
    if (!late()) {
        do_copies(where);
        complete_if_due(where);
    }
}

void product_later(std::function<void()> product) { coroutines[current].products.add(std::move(product)); }

void commit() { coroutines[current].products.commit(); }

void wait_for_groups(int left) {
    // A matrix product is of a whole warpgroup: let its other threads come as far as this.
    yield();
    coroutines[current].products.finish(left);
}

void own_copy_later(std::function<void()> copy) { coroutines[current].copies.add(std::move(copy)); }

void commit_copies() { coroutines[current].copies.commit(); }

void wait_for_copies(int left) { coroutines[current].copies.finish(left); }

}  // namespace machine

extern "C" __attribute__((visibility("default"))) void machine_be_late(int late) { machine::late_by_choice = late != 0; }
