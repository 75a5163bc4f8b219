#include "thread_pool.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

namespace musespark {

namespace {

// Longer than the serial parts between two loops of a step (a few microseconds), far shorter than a scheduler's time
// slice.
constexpr auto kSpin = std::chrono::microseconds(30);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Wait until `ready()`, at most kSpin. Returns whether it is.
template <class Ready>
bool spin(const Ready& ready) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

}  // namespace

// A started thread gives its core up by itself, between two tasks, before the system takes it in the middle of one: then
// whatever else wants the core has it while nobody waits for this thread. Costs nothing where nothing else wants it.
struct ThreadPool::TimeSlice {
    // Below the shortest slices that Linux gives; a task takes a few to a few hundred microseconds.
    static constexpr auto kLength = std::chrono::microseconds(500);

    std::chrono::steady_clock::time_point end;

    TimeSlice() { start(); }
    void start() { end = std::chrono::steady_clock::now() + kLength; }
    bool is_over() const { return std::chrono::steady_clock::now() >= end; }
    void give_up() {
        std::this_thread::yield();
        start();
    }
};

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), shares_(std::make_unique<Share[]>(static_cast<size_t>(std::max(num_threads, 1)))) {
    if (num_threads < 1 || num_threads > kMaxThreads) {
        throw std::invalid_argument("num_threads is " + std::to_string(num_threads) + "; it must be from 1 to " +
                                    std::to_string(kMaxThreads));
    }
    try {
        for (int thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread] { worker(thread); });
    } catch (...) {  // the system's limit on threads
        stop_and_join();
        throw;
    }
    places_.place(threads_);
}

ThreadPool::~ThreadPool() { stop_and_join(); }

void ThreadPool::stop_and_join() {
    stop_.store(true, std::memory_order_relaxed);
    wake_.fetch_add(1, std::memory_order_release);
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::publish_and_work(int64_t count, Call call, const void* context) {
    if (count > INT32_MAX) throw std::length_error("a loop of more than 2^31 tasks");
    places_.make_room(threads_);
    call_ = call;
    context_ = context;
    count_ = static_cast<uint32_t>(count);
    unfinished_.store(count_, std::memory_order_relaxed);
    const uint32_t loop = loop_.load(std::memory_order_relaxed) + 1;
    for (int thread = 0; thread < num_threads_; ++thread) {
        const uint64_t tasks = first_of(thread + 1) - first_of(thread);
        shares_[static_cast<size_t>(thread)].ticket.store(uint64_t{loop} << 32 | tasks, std::memory_order_release);
    }
    loop_.store(loop, std::memory_order_release);
    wake_.fetch_add(1, std::memory_order_release);
    wake_.notify_all();  // a system call only if somebody sleeps

    work(0, nullptr);
    if (spin([this] { return unfinished_.load(std::memory_order_acquire) == 0; })) return;
    // Somebody is in the middle of a task and perhaps without a core: give it ours.
    for (uint32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) unfinished_.wait(left);
}

// The own share, then those of the others, the neighbour's first.
void ThreadPool::work(int thread, TimeSlice* slice) {
    uint32_t done = 0;
    for (int i = 0; i < num_threads_; ++i) work_on_share((thread + i) % num_threads_, thread, slice, done);
    finish(done);
}

void ThreadPool::work_on_share(int owner, int thread, TimeSlice* slice, uint32_t& done) {
    std::atomic<uint64_t>& share = shares_[static_cast<size_t>(owner)].ticket;
    uint64_t ticket = share.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(ticket) != 0) {
        if (!share.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire)) continue;
        // The claim succeeded, so this loop has an unfinished task (ours) and its description stands still.
        call_(context_, first_of(owner + 1) - static_cast<uint32_t>(ticket), thread);
        ++done;
        if (slice && slice->is_over()) {
            finish(done);
            done = 0;
            slice->give_up();
        }
        ticket = share.load(std::memory_order_acquire);
    }
}

void ThreadPool::finish(uint32_t done) {
    if (done != 0 && unfinished_.fetch_sub(done, std::memory_order_acq_rel) == done) unfinished_.notify_one();
}

void ThreadPool::worker(int thread) {
    uint32_t seen = 0;
    TimeSlice slice;
    const auto has_work = [&] {
        return loop_.load(std::memory_order_acquire) != seen || stop_.load(std::memory_order_relaxed);
    };
    while (!stop_.load(std::memory_order_relaxed)) {
        const uint32_t before = wake_.load(std::memory_order_acquire);
        if (!spin(has_work)) {
            wake_.wait(before, std::memory_order_acquire);
            slice.start();
            continue;
        }
        seen = loop_.load(std::memory_order_acquire);
        work(thread, &slice);
    }
}

}  // namespace musespark
