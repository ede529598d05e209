#include "interrupt.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace player {
namespace {

constexpr int interrupted_status = 130;

std::atomic<dexport_pipeline*> running_pipeline = nullptr;
std::atomic<bool> was_pressed = false;
static_assert(std::atomic<dexport_pipeline*>::is_always_lock_free && std::atomic<bool>::is_always_lock_free, "for use in a handler");

void on_signal(int /*number*/) {
    dexport_pipeline* running = running_pipeline;
    if (running == nullptr || was_pressed.exchange(true)) {
        static_cast<void>(!write(STDERR_FILENO, "interrupted\n", 12));
        _exit(interrupted_status);
    }
    dexport_cancel(running);  // sets an atomic flag
}

}  // namespace

Interrupt::Interrupt(dexport_pipeline* running) {
    running_pipeline = running;
}

Interrupt::~Interrupt() {
    running_pipeline = nullptr;
}

void Interrupt::install() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, nullptr);
}

}  // namespace player
