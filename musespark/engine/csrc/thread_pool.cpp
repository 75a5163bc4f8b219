#include "thread_pool.h"

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

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
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
    call_ = call;
    context_ = context;
    count_ = static_cast<uint32_t>(count);
    unfinished_.store(count_, std::memory_order_relaxed);
    const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(loop << 32 | count_, std::memory_order_release);
    wake_.fetch_add(1, std::memory_order_release);
    wake_.notify_all();  // a system call only if somebody sleeps

    work(0);
    if (spin([this] { return unfinished_.load(std::memory_order_acquire) == 0; })) return;
    // Somebody is in the middle of a task and perhaps without a core: give it ours.
    for (uint32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) unfinished_.wait(left);
}

void ThreadPool::work(int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(ticket) != 0) {
        if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire)) continue;
        // The claim succeeded, so this loop has an unfinished task (ours) and its description stands still.
        call_(context_, count_ - static_cast<uint32_t>(ticket), thread);
        if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void ThreadPool::worker(int thread) {
    const auto has_work = [this] {
        return static_cast<uint32_t>(ticket_.load(std::memory_order_relaxed)) != 0 ||
               stop_.load(std::memory_order_relaxed);
    };
    while (!stop_.load(std::memory_order_relaxed)) {
        const uint32_t before = wake_.load(std::memory_order_acquire);
        if (!spin(has_work)) {
            wake_.wait(before, std::memory_order_acquire);
            continue;
        }
        work(thread);
    }
}

}  // namespace musespark
