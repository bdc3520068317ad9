#include "worker/engine/pipeline/failure.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <new>
#include <string>

#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

// What `body` throws, translated.
EngineError TranslatedFrom(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return Translate(error);
  }
  ADD_FAILURE() << "nothing was thrown";
  return EngineError(FailureClass::kBug, "NOTHING_THROWN", "");
}

// More than any address space holds. AddressSanitizer ends the process instead.
TEST(Failure, ATensorThatNoMemoryHoldsIsOutOfMemory) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer does not let allocations fail";
#endif
  const EngineError error = TranslatedFrom([] { at::empty({int64_t{1} << 52}, at::kFloat); });
  EXPECT_EQ(error.reason, "OUT_OF_MEMORY") << error.what();
  EXPECT_EQ(error.failure_class, FailureClass::kResource);
  EXPECT_FALSE(test::Mentions(error, "frame #")) << error.what();
}

TEST(Failure, EveryExceptionHasItsReason) {
  const EngineError refused = TranslatedFrom([] { throw UserError("INVALID_SPEC", "so"); });
  EXPECT_EQ(refused.reason, "INVALID_SPEC");
  EXPECT_EQ(refused.failure_class, FailureClass::kUser);
  EXPECT_EQ(TranslatedFrom([] { throw std::bad_alloc(); }).reason, "OUT_OF_MEMORY");
  const EngineError disk =
      TranslatedFrom([] { std::filesystem::create_directory("/proc/none/folder"); });
  EXPECT_EQ(disk.reason, "WRITE_FAILED");
  EXPECT_EQ(disk.metadata.at("path"), "/proc/none/folder");
  const EngineError bug = TranslatedFrom([] { at::ones({2}).view({3}); });
  EXPECT_EQ(bug.reason, "INTERNAL");
  EXPECT_EQ(bug.failure_class, FailureClass::kBug);
  EXPECT_FALSE(test::Mentions(bug, "frame #")) << bug.what();
}

TEST(Failure, WhatAGpuSaysIsNoBugOfOurs) {
  const auto accelerator = [](int32_t code, const std::string& text) {
    return TranslatedFrom([&] { throw c10::AcceleratorError({"f", "f.cu", 1}, code, text); });
  };
  for (const char* text :
       {"CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"}) {
    EXPECT_EQ(accelerator(2, text).reason, "OUT_OF_MEMORY") << text;
  }
  const EngineError gone = accelerator(46, "CUDA error: CUDA-capable device(s) is/are busy");
  EXPECT_EQ(gone.reason, "DEVICE_UNAVAILABLE");
  EXPECT_EQ(gone.failure_class, FailureClass::kResource);
  EXPECT_TRUE(test::Mentions(gone, "busy")) << gone.what();
  EXPECT_EQ(accelerator(700, "CUDA error: an illegal memory access").reason, "INTERNAL");
}

}  // namespace
}  // namespace quantry::engine
