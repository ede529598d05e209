#include "text/model.h"

#include <nlohmann/json.hpp>
#include <string>

namespace dexport::text {

Model read_model(const Json& json) {
    const auto type = json.at("type").get<std::string>();
    if (type == "BPE") {
        return read_bpe(json);
    }
    if (type == "Unigram") {
        return read_unigram(json);
    }
    if (type == "WordLevel") {
        return read_word_level(json);
    }
    if (type == "WordPiece") {
        return read_word_piece(json);
    }
    throw UnsupportedPart("the model " + shown(type));
}

}  // namespace dexport::text
