// Runs where testing/fake_cuda.cc lies in LD_LIBRARY_PATH; see CMakeLists.txt.
#include <gtest/gtest.h>

#include "worker/engine/device/device.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

// LibTorch looks for its CUDA half once: who asks for it before it is loaded has none for good.
TEST(CudaLoadingTest, ADriverAndALibraryThatAreThereGiveGpus) {
  EXPECT_EQ(CudaProblem(), "");
  const auto devices = AvailableDevices();
  ASSERT_EQ(devices.size(), 3u);
  EXPECT_EQ(DescribeDevice(devices[2]), "cuda:1");
  EXPECT_EQ(OpenDevice("auto"), devices[1]);
  EXPECT_EQ(OpenDevice("cuda"), devices[1]);
  EXPECT_EQ(OpenDevice("cuda:1"), devices[2]);
  EXPECT_EQ(OpenDevice("cpu"), devices[0]);
}

TEST(CudaLoadingTest, ANumberThatNoGpuHasIsNamed) {
  const EngineError error = test::ErrorOf([] { OpenDevice("cuda:2"); });
  EXPECT_EQ(error.reason, "DEVICE_UNAVAILABLE");
  EXPECT_TRUE(test::Mentions(error, "2 GPUs are usable here")) << error.what();
}

TEST(CudaLoadingTest, TheDriverKnowsTheModel) {
  EXPECT_EQ(DeviceModel(OpenDevice("cuda:1")), "Imagined GPU 1, 9.0");
  EXPECT_EQ(DeviceModel(at::kCPU), "");
}

}  // namespace
}  // namespace quantry::engine
