// A pool of threads for the many short parallel loops of a step.
//
// Tasks are claimed one by one, so a loop never waits for a thread that has not woken up, only for tasks that have
// begun. Waiting is a short bounded spin, then a futex: on a machine where something else wants the core, a spinning
// waiter would hold up the very thread it waits for.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

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

    void stop_and_join();
    void publish_and_work(int64_t count, Call call, const void* context);
    void work(int thread);
    void worker(int thread);

    int num_threads_;
    std::vector<std::thread> threads_;

    // The loop that runs now. Written before `ticket_` is published, and stable until its last task is done.
    Call call_ = nullptr;
    const void* context_ = nullptr;
    uint32_t count_ = 0;

    // Loop number in the high half, tasks not yet claimed in the low half. One word, so that a late thread cannot claim
    // a task of a loop that it did not read.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<uint32_t> unfinished_{0};
    alignas(64) std::atomic<uint32_t> wake_{0};  // bumped with every loop and at the end; sleepers wait on it
    std::atomic<bool> stop_{false};
};

}  // namespace musespark
