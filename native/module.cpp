// The Python face: addresses and sizes, checked by whoever calls. The interpreter is free meanwhile.
#include "module.hpp"

#ifdef EPILOGUE_X86
#include <cpuid.h>
#endif
#ifdef EPILOGUE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>
#include <stdexcept>

#include "few_row_linear.hpp"
#include "huge_pages.hpp"
#include "prefill.hpp"
#include "quant_linear.hpp"

namespace epilogue {

namespace {

template <class Float>
Heads<Float> heads_of(nb::tuple x) {
    const auto stride = [&](int i) { return nb::cast<std::int64_t>(x[i]); };
    return {at<Float>(x[0]), stride(1), stride(2), stride(3)};
}

#ifdef EPILOGUE_X86

// Not every compiler knows it by name.
bool has_avxvnni() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

#ifdef EPILOGUE_AMX
// Linux gives tiles to a process that asks for them; without AMX, or on an older system, it refuses.
bool may_use_tiles() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 22 & 1)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

const Kernels* choose_kernels(const char* name) {
    const bool any = *name == 0;
    const auto is = [&](const char* this_one) { return any || !std::strcmp(name, this_one); };
#ifdef EPILOGUE_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool has_avx512vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
#ifdef EPILOGUE_AMX
    if (has_avx512vnni && is("amx") && may_use_tiles()) return &kernels_amx;
#endif
    if (has_avx512vnni && is("avx512vnni")) return &kernels_avx512vnni;
    if (has_avx512 && is("avx512")) return &kernels_avx512;
    if (has_avx2 && has_avxvnni() && is("avxvnni")) return &kernels_avxvnni;
    if (has_avx2 && is("avx2")) return &kernels_avx2;
#endif
    return is("portable") ? &kernels_portable : nullptr;
}

const Kernels& kernels_named(const char* name) {
    static const Kernels* best = choose_kernels("");
    const Kernels* kernels = *name == 0 ? best : choose_kernels(name);
    if (kernels == nullptr) throw std::invalid_argument("this processor has no kernels of that name");
    return *kernels;
}

Pool pool_of(nb::tuple x) {
    return {at<std::uint8_t>(x[0]), at<float>(x[1]), at<float>(x[2]), nb::cast<std::int64_t>(x[3]),
            Storage(nb::cast<int>(x[4]))};
}

QuantWeight quant_weight_of(nb::tuple x) {
    const auto address = [&](int i) { return nb::cast<std::uintptr_t>(x[i]); };
    const nb::tuple sizes = nb::cast<nb::tuple>(x[5]);
    const auto size = [&](int i) { return nb::cast<std::int64_t>(sizes[i]); };
    return {at<const std::uint8_t>(address(0)), at<const void>(address(1)), at<const std::int16_t>(address(2)),
            at<const std::int32_t>(address(3)), at<const float>(address(4)), size(0), size(1), size(2), size(3),
            int(size(4)), int(size(5))};
}

}  // namespace epilogue

NB_MODULE(_native, m) {
    using namespace epilogue;
    m.def("kernels", [](const char* name) { return kernels_named(name).name; });
    m.def("few_row_linear", [](std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias, std::uintptr_t y,
                               std::int64_t rows, std::int64_t in, std::int64_t out, int numbers, int threads,
                               const char* name) {
        const Kernels& kernels = kernels_named(name);
        const Linear linear{at<const float>(x), at<const void>(weight), at<const float>(bias), at<float>(y), rows, in, out,
                            Numbers(numbers), false};
        nb::gil_scoped_release release;
        few_row_linear(linear, threads, kernels);
    });
    m.def("quant_linear", [](nb::tuple weight, std::uintptr_t x, std::int64_t rows, std::uintptr_t y, int threads,
                             const char* name) {
        const QuantWeight quant_weight = quant_weight_of(weight);
        const Kernels& kernels = kernels_named(name);
        nb::gil_scoped_release release;
        quant_linear(quant_weight, at<const float>(x), rows, at<float>(y), threads, kernels);
    });
    m.def("dequantise", [](nb::tuple weight, std::int64_t first, std::int64_t stop, std::uintptr_t to, int threads,
                           const char* name) {
        const QuantWeight quant_weight = quant_weight_of(weight);
        const Kernels& kernels = kernels_named(name);
        nb::gil_scoped_release release;
        dequantise(quant_weight, first, stop, at<float>(to), threads, kernels);
    });
    m.def("reach_decode", [](nb::tuple q, nb::tuple k, nb::tuple v, nb::tuple keys, nb::tuple values, nb::tuple ids,
                             nb::tuple norms, std::uintptr_t slopes, nb::tuple bounds, std::int64_t num_older,
                             nb::tuple sizes, double scale, double epsilon, nb::tuple outs, int threads,
                             const char* name) {
        const auto stride = [](nb::tuple x) { return nb::cast<std::int64_t>(x[1]); };
        Decode d;
        d.q = at<const float>(q[0]), d.q_stride = stride(q);
        d.k = at<const float>(k[0]), d.k_stride = stride(k);
        d.v = at<const float>(v[0]), d.v_stride = stride(v);
        d.keys = pool_of(keys), d.values = pool_of(values);
        d.ids = at<const std::int64_t>(ids[0]), d.ids_stride = stride(ids);
        d.norms = at<float>(norms[0]), d.norms_stride = stride(norms);
        d.slopes = at<const float>(slopes);
        d.bounds = {};
        if (nb::len(bounds) > 0)
            d.bounds = {at<const float>(bounds[0]), at<const float>(bounds[1]), at<const float>(bounds[2]),
                        nb::cast<float>(bounds[3]), at<float>(bounds[4]), nb::cast<std::int64_t>(bounds[5])};
        d.num_older = num_older;
        d.num_tokens = nb::cast<int>(sizes[0]), d.num_heads = nb::cast<int>(sizes[1]);
        d.num_kv_heads = nb::cast<int>(sizes[2]), d.head_dim = nb::cast<int>(sizes[3]);
        d.scale = scale, d.epsilon = epsilon;
        d.out = at<float>(outs[0]), d.first_page = at<std::int64_t>(outs[1]);
        d.omitted_mass = at<double>(outs[2]);
        d.num_threads = threads;
        const Kernels& kernels = kernels_named(name);
        nb::gil_scoped_release release;
        if (!can_write(d)) return false;
        reach_decode(d, kernels);
        return true;
    });
    // Keys and values are places, or pools with the pages that they lie on.
    m.def("prefill", [](nb::tuple q, nb::tuple k, nb::tuple v, nb::tuple out, nb::tuple pages, std::uintptr_t slopes,
                        nb::tuple first_key, std::uintptr_t document_start, nb::tuple sizes, double scale, int threads,
                        const char* name) {
        const auto size = [&](int i) { return nb::cast<std::int64_t>(sizes[i]); };
        const bool is_paged = nb::len(pages) > 0;
        const Prefill p{heads_of<const float>(q), is_paged ? Heads<const float>{} : heads_of<const float>(k),
                        is_paged ? Heads<const float>{} : heads_of<const float>(v), heads_of<float>(out),
                        is_paged ? pool_of(k) : Pool{}, is_paged ? pool_of(v) : Pool{},
                        is_paged ? at<const std::int64_t>(pages[0]) : nullptr,
                        is_paged ? nb::cast<std::int64_t>(pages[1]) : 0,
                        at<const float>(slopes), at<const std::int64_t>(first_key[0]),
                        at<const std::int64_t>(document_start), size(0), size(1), size(2), size(3), size(4),
                        nb::cast<std::int64_t>(first_key[1]), int(size(5)), float(scale), threads};
        const Kernels& kernels = kernels_named(name);
        nb::gil_scoped_release release;
        prefill(p, kernels);
    });
    m.def("prefer_huge_pages", [](std::uintptr_t data, std::int64_t bytes) {
        nb::gil_scoped_release release;
        prefer_huge_pages(at<void>(data), bytes);
    });
    bind_step(m);
}
