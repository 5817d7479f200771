#pragma once

#include <cstdint>

namespace epilogue {

// Asks for large pages of memory (2 MiB) where this range lies, now: weights are read from end to end for every token, and
// with pages of 4 KiB looking up where they are takes as long as reading them. Contents stay. Where the system does not
// know or does not want that, nothing happens.
void prefer_huge_pages(void* data, std::int64_t bytes);

}  // namespace epilogue
