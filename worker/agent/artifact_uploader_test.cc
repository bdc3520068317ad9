#include "worker/agent/artifact_uploader.h"

#include <cmath>
#include <string>

#include "gtest/gtest.h"

namespace quantry::agent {
namespace {

v1::Quality QualityOf(const std::string& json) {
  const auto manifest = ParseManifest(R"({"files": [{"path": "a"}], "quality": )" + json + "}");
  EXPECT_TRUE(manifest.ok()) << manifest.status();
  return ResultFromManifest(*manifest, "file:///store").quality();
}

TEST(ResultFromManifestTest, WhatWasMeasuredStays) {
  const v1::Quality quality =
      QualityOf(R"({"perplexity": {"dense": 4, "quantized": 5, "tokens": 9}, "kl_divergence": 0})");
  EXPECT_EQ(quality.perplexity().dense(), 4);
  EXPECT_EQ(quality.perplexity().quantized(), 5);
  EXPECT_EQ(quality.kl_divergence(), 0);
}

// A manifest leaves them out. 0 would be the best model of all.
TEST(ResultFromManifestTest, WhatIsNotFiniteIsInfinite) {
  const v1::Quality quality = QualityOf(R"({"perplexity": {"dense": 4, "tokens": 9}})");
  EXPECT_EQ(quality.perplexity().dense(), 4);
  EXPECT_TRUE(std::isinf(quality.perplexity().quantized()));
  EXPECT_TRUE(std::isinf(quality.kl_divergence()));
}

TEST(ResultFromManifestTest, WithoutTokensNothingWasMeasured) {
  EXPECT_EQ(QualityOf("{}").perplexity().quantized(), 0);
}

}  // namespace
}  // namespace quantry::agent
