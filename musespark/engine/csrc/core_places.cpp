#include "core_places.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace musespark {

#if defined(__linux__)

namespace {

bool put(std::thread& thread, int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    return pthread_setaffinity_np(thread.native_handle(), sizeof set, &set) == 0;
}

}  // namespace

void CorePlaces::place(std::vector<std::thread>& threads) {
    cpu_set_t allowed;
    callers_ = sched_getcpu();
    if (callers_ < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    if (static_cast<size_t>(CPU_COUNT(&allowed)) <= threads.size()) return;
    int core = callers_;
    for (std::thread& thread : threads) {
        do {
            core = (core + 1) % CPU_SETSIZE;
        } while (!CPU_ISSET(core, &allowed) || core == callers_);
        if (!put(thread, core)) {
            cores_.clear();
            return;
        }
        cores_.push_back(core);
    }
}

void CorePlaces::make_room(std::vector<std::thread>& threads) {
    if (cores_.empty()) return;
    const int now = sched_getcpu();
    if (now == callers_) return;
    for (size_t i = 0; i < cores_.size(); ++i) {
        if (cores_[i] == now && put(threads[i], callers_)) cores_[i] = callers_;
    }
    callers_ = now;
}

#else

void CorePlaces::place(std::vector<std::thread>&) {}
void CorePlaces::make_room(std::vector<std::thread>&) {}

#endif

}  // namespace musespark
