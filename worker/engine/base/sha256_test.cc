#include "worker/engine/base/sha256.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

struct Vector {
  std::string text;
  std::string sha256;
};

// FIPS 180-4 examples.
TEST(Sha256, KnownVectors) {
  const Vector vectors[] = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {std::string(1000000, 'a'),
       "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
  };
  for (const Vector& vector : vectors) EXPECT_EQ(Sha256OfText(vector.text), vector.sha256);
}

TEST(Sha256, PiecesMakeNoDifference) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 7);
  for (const size_t piece : {1, 3, 63, 64, 65, 127, 999}) {
    Sha256 hash;
    for (size_t at = 0; at < text.size(); at += piece) {
      hash.Update(text.data() + at, std::min(piece, text.size() - at));
    }
    EXPECT_EQ(hash.Finish(), Sha256OfText(text)) << piece;
  }
}

TEST(Sha256, FileAndItsSize) {
  const std::string path = ::testing::TempDir() + "/sha256_test_file";
  std::ofstream(path, std::ios::binary) << "abc";
  const FileDigest digest = Sha256OfFile(path);
  EXPECT_EQ(digest.bytes, 3u);
  EXPECT_EQ(digest.sha256, Sha256OfText("abc"));
  EXPECT_THROW(Sha256OfFile(path + ".absent"), EngineError);
}

}  // namespace
}  // namespace quantry::engine
