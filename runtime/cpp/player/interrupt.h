#pragma once

#include "dexport/dexport.h"

namespace player {

/// What Ctrl-C does while this object lives: it stops the run before its next instruction; a second one ends the process.
/// Before and after, it ends the process at once, which has nothing to clean up then. Either way with status 130.
class Interrupt {
public:
    explicit Interrupt(dexport_pipeline* running);
    ~Interrupt();
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;

    /// To be called once, before anything else.
    static void install();
};

}  // namespace player
