#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine.h"

namespace dexport {

/// Smallest and largest shape of an input under one optimization profile.
struct Range {
    Shape smallest, largest;
};

/// An optimization profile: what an engine's kernels were chosen for, by input.
using Profile = std::map<std::string, Range>;

/// The profile that allows the shapes of `inputs`, by its index; of several the narrowest, whose kernels are made for the fewest
/// sizes. Throws a user error: none allows them.
[[nodiscard]] int profile_for(const std::string& component, const std::vector<Profile>& profiles, const std::vector<Binding>& inputs);

}  // namespace dexport
