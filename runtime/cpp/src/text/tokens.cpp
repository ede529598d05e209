#include "text/tokens.h"

#include "error.h"

namespace dexport::text {

Tokens tokenize(const Tokenizer& tokenizer, const std::vector<std::string>& prompts, const std::string& name) {
    Tokens tokens;
    for (std::size_t index = 0; index < prompts.size(); ++index) {
        const Encoding encoding = tokenizer.encode(prompts[index]);
        if (index > 0 && encoding.ids.size() != tokens.length) {
            const std::string got = std::to_string(tokens.length) + " and " + std::to_string(encoding.ids.size());
            throw user_error("tokenizer " + name, "the same number of tokens for every prompt", got, "rebuild the bundle");
        }
        tokens.length = encoding.ids.size();
        tokens.ids.insert(tokens.ids.end(), encoding.ids.begin(), encoding.ids.end());
        tokens.mask.insert(tokens.mask.end(), encoding.mask.begin(), encoding.mask.end());
        if (encoding.left_out > 0) {
            tokens.warnings.push_back(name + " takes " + std::to_string(tokens.length) + " tokens; " + std::to_string(encoding.left_out) +
                                      " of the prompt do not fit and are left out: " + repr(shown(prompts[index])));
        }
    }
    return tokens;
}

}  // namespace dexport::text
