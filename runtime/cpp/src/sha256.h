#pragma once

#include <cstddef>
#include <memory>
#include <string>

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace dexport {

/// SHA-256 of bytes that come piece by piece.
class Sha256 {
public:
    Sha256();

    void update(const void* data, std::size_t bytes);

    /// 64 lower-case hexadecimal digits; nothing may be added afterwards.
    [[nodiscard]] std::string hexadecimal();

private:
    std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> context_;
};

}  // namespace dexport
