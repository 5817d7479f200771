#include "huge_pages.hpp"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace epilogue {

void prefer_huge_pages(void* data, std::int64_t bytes) {
#ifdef __linux__
    constexpr std::uintptr_t kHuge = 1u << 21;
    constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1; older headers lack the name
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t first = (start + kHuge - 1) & ~(kHuge - 1), stop = (start + std::uintptr_t(bytes)) & ~(kHuge - 1);
    if (first >= stop) return;
    void* const whole = reinterpret_cast<void*>(first);
    if (madvise(whole, stop - first, MADV_HUGEPAGE) == 0) madvise(whole, stop - first, kCollapse);
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace epilogue
