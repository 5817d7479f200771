// The threads that share a call's work with the thread that makes it.
#pragma once

#include <cstdint>

namespace epilogue {

// Calls work(context, i) for every i < count, at most `num_threads` at a time, and returns when all are done.
// Whoever calls takes pieces like the others and waits for none that has not begun: on a busy machine, where a helper is
// not scheduled, the work goes on without it. Idle helpers look for work for some 50 microseconds, then sleep.
void share(std::int64_t count, int num_threads, void (*work)(void* context, std::int64_t i), void* context);

// The same with anything that can be called.
template <class Work>
void share(std::int64_t count, int num_threads, Work work) {
    share(count, num_threads, [](void* context, std::int64_t i) { (*static_cast<Work*>(context))(i); }, &work);
}

}  // namespace epilogue
