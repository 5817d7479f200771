#include "team.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace epilogue {
namespace {

constexpr auto kPatience = std::chrono::microseconds(50);
constexpr int kBits = 20;  // of a count of pieces
constexpr std::uint64_t kMask = (1u << kBits) - 1;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Team {
public:
    void run(std::int64_t count, int num_threads, void (*work)(void*, std::int64_t), void* context) {
        const std::unique_lock<std::mutex> mine(calls_, std::try_to_lock);
        if (num_threads < 2 || count < 2 || count > std::int64_t(kMask) || !mine.owns_lock()) {
            for (std::int64_t i = 0; i < count; ++i) work(context, i);
            return;
        }
        while (num_helpers_ < num_threads - 1) std::thread(&Team::help, this, num_helpers_++).detach();
        work_ = work, context_ = context;
        wanted_helpers_.store(num_threads - 1);
        unfinished_.store(count);
        // Generation, count and next piece are one word: who takes a piece knows that it belongs to this call.
        const std::uint64_t generation = (state_.load() >> (2 * kBits)) + 1;
        state_.store(generation << (2 * kBits) | std::uint64_t(count) << kBits);
        if (num_asleep_.load() > 0) {
            const std::lock_guard<std::mutex> lock(sleep_);
            wake_.notify_all();
        }
        while (take_piece()) {}
        for (int spins = 0; unfinished_.load() > 0; ++spins) spins < 1000 ? pause() : std::this_thread::yield();
    }

private:
    static bool has_pieces(std::uint64_t state) { return (state & kMask) < (state >> kBits & kMask); }

    bool take_piece() {
        std::uint64_t state = state_.load();
        do {
            if (!has_pieces(state)) return false;
        } while (!state_.compare_exchange_weak(state, state + 1));
        work_(context_, std::int64_t(state & kMask));
        unfinished_.fetch_sub(1);
        return true;
    }

    bool is_wanted(int index) const { return has_pieces(state_.load()) && index < wanted_helpers_.load(); }

    void help(int index) {
        for (;;) {
            const auto patience_ends = std::chrono::steady_clock::now() + kPatience;
            while (!is_wanted(index) && std::chrono::steady_clock::now() < patience_ends)
                for (int i = 0; i < 16; ++i) pause();
            if (!is_wanted(index)) {
                std::unique_lock<std::mutex> lock(sleep_);
                num_asleep_.fetch_add(1);
                wake_.wait(lock, [&] { return is_wanted(index); });
                num_asleep_.fetch_sub(1);
            }
            while (is_wanted(index) && take_piece()) {}
        }
    }

    std::mutex calls_, sleep_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> state_{0};
    std::atomic<std::int64_t> unfinished_{0};
    std::atomic<int> wanted_helpers_{0}, num_asleep_{0};
    void (*work_)(void*, std::int64_t) = nullptr;
    void* context_ = nullptr;
    int num_helpers_ = 0;
};

}  // namespace

void share(std::int64_t count, int num_threads, void (*work)(void*, std::int64_t), void* context) {
    // Never destroyed: helpers may sleep in it until the process ends.
    static Team* const team = new Team;
    team->run(count, num_threads, work, context);
}

}  // namespace epilogue
