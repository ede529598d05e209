#include "sha256.h"

#include <openssl/evp.h>

#include <array>

#include "error.h"

namespace dexport {
namespace {

void require(int done) {
    if (done != 1) {
        throw failure("sha256", "OpenSSL to compute it", "an error of the library", "check the installation of OpenSSL");
    }
}

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    require(context_ != nullptr ? EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) : 0);
}

void Sha256::update(const void* data, std::size_t bytes) {
    require(EVP_DigestUpdate(context_.get(), data, bytes));
}

std::string Sha256::hexadecimal() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned bytes = 0;
    require(EVP_DigestFinal_ex(context_.get(), digest.data(), &bytes));
    std::string text;
    for (unsigned index = 0; index < bytes; ++index) {
        constexpr const char* digits = "0123456789abcdef";
        text += digits[digest[index] >> 4];
        text += digits[digest[index] & 15];
    }
    return text;
}

}  // namespace dexport
