#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace player {

/// Progress of long work on stderr: a bar on a terminal, one line per stage where there is none.
class Progress {
public:
    Progress();
    /// Wipes the bar away.
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    /// What is going on, and the fraction of the whole that is done if it is known.
    void report(const std::string& stage, std::optional<double> fraction);

private:
    bool terminal_;
    std::chrono::steady_clock::time_point start_;
    std::string stage_;
};

}  // namespace player
