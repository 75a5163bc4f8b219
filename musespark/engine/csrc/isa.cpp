#include "isa.h"

#include <stdexcept>

namespace musespark {

namespace {

struct Choice {
    const char* name;
    const Kernels& (*table)();
    bool (*runs_here)();
};

#ifdef MUSESPARK_X86
// The compiler's run-time checks include the operating system's side (saved registers), not only the processor's.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512_base() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512() {
    return has_avx512_base() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

constexpr Choice kChoices[] = {
#ifdef MUSESPARK_X86
    {"avx512", kernels_avx512, has_avx512},
    {"avx512_base", kernels_avx512_base, has_avx512_base},
    {"avx2", kernels_avx2, has_avx2},
#endif
    {"portable", kernels_portable, [] { return true; }},
};

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Choice& choice : kChoices) {
        if (choice.runs_here()) names.emplace_back(choice.name);
    }
    return names;
}

const Kernels& choose_kernels(const std::string& isa) {
    for (const Choice& choice : kChoices) {
        const bool wanted =
            isa.empty() || isa == choice.name || (isa == "avx512" && choice.name == std::string("avx512_base"));
        if (wanted && choice.runs_here()) return choice.table();
    }
    std::string message = "isa '" + isa + "' can't be used on this machine; there are";
    for (const std::string& name : available_isas()) message += " " + name;
    throw std::invalid_argument(message);
}

}  // namespace musespark
