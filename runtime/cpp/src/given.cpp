#include "given.h"

#include <algorithm>
#include <set>

#include "error.h"
#include "json.h"

namespace dexport {
namespace {

using Names = std::set<std::string>;

bool is_draw(const Instruction& instruction) {
    return std::holds_alternative<Draw>(instruction);
}

void add(Names& names, const std::vector<const Ref*>& refs) {
    for (const Ref* ref : refs) {
        names.insert(ref->buffer);
    }
}

/// The buffers that `begin` computes; not those that hold noise or are written again after it.
Names computed_before_the_loop(const Program& program) {
    Names computed, others;
    const std::size_t before = program.begin.size();
    std::size_t index = 0;
    for (const auto& item : program.instructions()) {
        const bool later = index++ >= before;
        add(later || is_draw(*item.second) ? others : computed, writes(*item.second));
    }
    for (const std::string& name : others) {
        computed.erase(name);
    }
    return computed;
}

/// What must exist when the loop begins, or afterwards.
Names needed_after_begin(const Program& program) {
    Names needed(program.results.begin(), program.results.end());
    const auto instructions = program.instructions();
    for (std::size_t index = program.begin.size(); index < instructions.size(); ++index) {
        add(needed, reads(*instructions[index].second));
    }
    return needed;
}

void check_names(const Program& program, const Tensors& buffers) {
    const Names computed = computed_before_the_loop(program), inputs(program.request.begin(), program.request.end());
    for (const auto& item : buffers) {
        if (computed.count(item.first) + inputs.count(item.first) == 0) {
            const std::string made = computed.empty() ? "" : ", or of what is made of them, " + names_text(computed);
            throw user_error("buffers", "one of the inputs " + names_text(inputs) + made, "'" + shown(item.first) + "'", "leave it out");
        }
    }
}

}  // namespace

Program with_given(const Program& program, const Tensors& buffers) {
    check_names(program, buffers);
    Names needed = needed_after_begin(program);
    std::vector<Instruction> kept;
    for (auto instruction = program.begin.rbegin(); instruction != program.begin.rend(); ++instruction) {
        Names written, missing, given;
        add(written, writes(*instruction));
        for (const std::string& name : written) {
            if (buffers.count(name) != 0) {
                given.insert(name);
            } else if (needed.count(name) != 0) {
                missing.insert(name);
            }
        }
        if (missing.empty() && !is_draw(*instruction)) {
            continue;
        }
        if (!given.empty()) {
            throw user_error("buffers", names_text(missing) + " too, made with " + names_text(given), "none", "give all of them");
        }
        kept.push_back(*instruction);
        add(needed, reads(*instruction));
    }
    Program changed = program;
    changed.begin.assign(kept.rbegin(), kept.rend());
    for (const auto& item : buffers) {
        if (std::find(program.request.begin(), program.request.end(), item.first) == program.request.end()) {
            changed.request.push_back(item.first);
        }
    }
    const auto unread = [&](const std::string& name) { return needed.count(name) == 0; };
    changed.request.erase(std::remove_if(changed.request.begin(), changed.request.end(), unread), changed.request.end());
    return changed;
}

}  // namespace dexport
