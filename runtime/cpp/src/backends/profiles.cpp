#include "backends/profiles.h"

#include <algorithm>

#include "error.h"

namespace dexport {
namespace {

bool is_within(const Shape& shape, const Range& range) {
    if (shape.size() != range.smallest.size()) {
        return false;
    }
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] < range.smallest[axis] || shape[axis] > range.largest[axis]) {
            return false;
        }
    }
    return true;
}

bool allows(const Profile& profile, const std::vector<Binding>& inputs) {
    return std::all_of(inputs.begin(), inputs.end(), [&](const Binding& input) {
        const auto found = profile.find(input.port);
        return found == profile.end() || is_within(input.tensor.shape, found->second);
    });
}

std::int64_t width_of(const Profile& profile) {
    std::int64_t width = 0;
    for (const auto& item : profile) {
        for (std::size_t axis = 0; axis < item.second.smallest.size(); ++axis) {
            width += item.second.largest[axis] - item.second.smallest[axis];
        }
    }
    return width;
}

std::string text_of(const Profile& profile) {
    std::string text;
    for (const auto& [port, range] : profile) {
        text += (text.empty() ? "" : ", ") + port + " " + shape_text(range.smallest) + " to " + shape_text(range.largest);
    }
    return text;
}

}  // namespace

int profile_for(const std::string& component, const std::vector<Profile>& profiles, const std::vector<Binding>& inputs) {
    auto best = profiles.end();
    std::string allowed;
    for (auto each = profiles.begin(); each != profiles.end(); ++each) {
        allowed += (allowed.empty() ? "" : " or ") + text_of(*each);
        if (allows(*each, inputs) && (best == profiles.end() || width_of(*each) < width_of(*best))) {
            best = each;
        }
    }
    if (best != profiles.end()) {
        return static_cast<int>(best - profiles.begin());
    }
    std::string got;
    for (const Binding& input : inputs) {
        got += (got.empty() ? "" : ", ") + input.port + " " + shape_text(input.tensor.shape);
    }
    throw user_error(component, allowed, got, "rebuild the bundle with this size and batch");
}

}  // namespace dexport
