#include "worker/engine/pipeline/quote.h"

#include <gtest/gtest.h>

#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/threads.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

TEST(HostMemoryBytesTest, CountsAllBatchesInWork) {
  constexpr int64_t kWide = 512, kTokens = 1024, kAlive = 6;
  const test::TempDir dir;
  test::MakeTinyModel("llama", {{"intermediate_size", kWide}}).Write(dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  const StreamShape stream{256, 16};  // four batches
  const auto bytes = [&](int count) {
    const test::Threads threads(count);
    return HostMemoryBytes(*checkpoint, stream);
  };
  EXPECT_EQ(bytes(4) - bytes(1), 3 * kTokens * kWide * 4 * kAlive);
  EXPECT_EQ(bytes(8), bytes(4));
}

}  // namespace
}  // namespace quantry::engine
