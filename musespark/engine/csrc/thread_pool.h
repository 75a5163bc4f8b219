// A pool of threads for the many short parallel loops of a step.
//
// Each thread begins with a share of its own, tasks that follow each other, so that it reads weights in one stream, and
// then helps with the shares of others: a loop never waits for a thread that has not woken up, only for tasks that have
// begun. Waiting is a short bounded spin, then a futex: on a machine where something else wants the core, a spinning
// waiter would hold up the very thread it waits for.
//
// On Linux each started thread stays on a core of its own, away from the caller's: left alone, the system may wake two
// of them on one core as soon as anything else, of whatever priority, uses the other.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "core_places.h"

namespace musespark {

class ThreadPool {
public:
    // The caller of `run` is one of the threads; num_threads - 1 are started here. 1 <= num_threads <= kMaxThreads.
    explicit ThreadPool(int num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    static constexpr int kMaxThreads = 256;

    int num_threads() const { return num_threads_; }

    // Call task(index, thread) for every index in [0, count), thread in [0, num_threads). Returns when all have run.
    // Tasks must not throw and must not call `run`. One caller at a time.
    template <class Task>
    void run(int64_t count, const Task& task) {
        if (count <= 0) return;
        if (count == 1 || num_threads_ == 1) {
            for (int64_t i = 0; i < count; ++i) task(i, 0);
            return;
        }
        const auto call = [](const void* context, int64_t index, int thread) {
            (*static_cast<const Task*>(context))(index, thread);
        };
        publish_and_work(count, call, &task);
    }

private:
    using Call = void (*)(const void* context, int64_t index, int thread);
    struct TimeSlice;

    // What of a thread's share is not yet claimed: loop number in the high half, number of tasks in the low half. One
    // word, so that a late thread cannot claim a task of a loop that it did not read.
    struct alignas(64) Share {
        std::atomic<uint64_t> ticket{0};
    };

    void stop_and_join();
    void publish_and_work(int64_t count, Call call, const void* context);
    void work(int thread, TimeSlice* slice);
    void work_on_share(int owner, int thread, TimeSlice* slice, uint32_t& done);
    void finish(uint32_t done);
    void worker(int thread);
    // The tasks of thread t are [first_of(t), first_of(t + 1)).
    uint32_t first_of(int thread) const {
        return static_cast<uint32_t>(static_cast<uint64_t>(count_) * static_cast<uint64_t>(thread) /
                                     static_cast<uint64_t>(num_threads_));
    }

    int num_threads_;
    std::vector<std::thread> threads_;
    CorePlaces places_;

    // The loop that runs now. Written before the shares are published, and stable until its last task is done.
    Call call_ = nullptr;
    const void* context_ = nullptr;
    uint32_t count_ = 0;

    std::unique_ptr<Share[]> shares_;  // by thread
    alignas(64) std::atomic<uint32_t> loop_{0};
    alignas(64) std::atomic<uint32_t> unfinished_{0};
    alignas(64) std::atomic<uint32_t> wake_{0};  // bumped with every loop and at the end; sleepers wait on it
    std::atomic<bool> stop_{false};
};

}  // namespace musespark
