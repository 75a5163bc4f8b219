// Which core each thread of a pool runs on. Does nothing where the system has no such call or refuses it, and where
// there are more threads than cores.
#pragma once

#include <thread>
#include <vector>

namespace musespark {

class CorePlaces {
public:
    // Puts each of `threads` on a core of its own, out of those that this process may use, one being left for the
    // caller.
    void place(std::vector<std::thread>& threads);

    // To be called by the caller before work is shared: if it has been moved to a core where one of the threads is, that
    // one gets the core that the caller came from. Costs nothing otherwise.
    void make_room(std::vector<std::thread>& threads);

private:
    std::vector<int> cores_;  // by thread; empty: nobody has a place
    int callers_ = -1;
};

}  // namespace musespark
