#include "common/engine_error.h"

#include <gtest/gtest.h>

#include <string>

namespace quantry {
namespace {

TEST(EngineErrorTest, FailuresFitIntoTheirCall) {
  v1::EngineError error;
  error.set_reason(std::string(100'000, 'R'));
  std::string message = "x";
  while (message.size() < 9000) message += "\u044f";
  error.set_message(message);
  for (int i = 0; i < 100; ++i) {
    (*error.mutable_metadata())["key-" + std::to_string(i)] = std::string(5000, 'v');
  }
  const v1::EngineError bounded = Bounded(error);
  EXPECT_EQ(bounded.message().size(), 8191u) << "between two characters";
  EXPECT_LT(bounded.ByteSizeLong(), std::size_t{32} << 10);
  EXPECT_TRUE(bounded.metadata().contains("key-0"));
  EXPECT_TRUE(bounded.metadata().contains("key-22")) << "the first 16 by name";
  v1::EngineError parsed;
  EXPECT_TRUE(parsed.ParseFromString(bounded.SerializeAsString()));
}

TEST(EngineErrorTest, AnErrorThatFitsStaysAsItIs) {
  v1::EngineError small;
  small.set_failure_class(v1::FAILURE_CLASS_USER);
  small.set_reason("INVALID_CHECKPOINT");
  small.set_message("bad header");
  (*small.mutable_metadata())["file"] = "model.safetensors";
  EXPECT_EQ(Bounded(small).SerializeAsString(), small.SerializeAsString());
}

}  // namespace
}  // namespace quantry
