// Runs where testing/fake_cuda.cc lies in LD_LIBRARY_PATH; see CMakeLists.txt.
#include <gtest/gtest.h>

#include <cstdlib>

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

// LibTorch itself says of each that there is no GPU.
TEST(CudaLoadingTest, WhyADriverShowsNoGpuIsTold) {
  setenv("FAKE_CUDA_INIT", "fails", 1);
  EXPECT_EQ(CudaProblem(),
            "the NVIDIA driver does not start: error 304, OS call failed or operation not "
            "supported on this OS");
  setenv("FAKE_CUDA_VERSION", "12080", 1);
  EXPECT_EQ(CudaProblem(),
            "the NVIDIA driver is one for CUDA 12.8, LibTorch's libraries want 13: update it");
  const EngineError error = test::ErrorOf([] { OpenDevice("cuda"); });
  EXPECT_EQ(error.reason, "DEVICE_UNAVAILABLE");
  EXPECT_TRUE(test::Mentions(error, "CUDA 12.8")) << error.what();
  EXPECT_EQ(OpenDevice("auto"), at::Device(at::kCPU));
  unsetenv("FAKE_CUDA_INIT");
  unsetenv("FAKE_CUDA_VERSION");
}

TEST(CudaLoadingTest, AGpuThatRunsNoKernelIsNone) {
  setenv("FAKE_CUDA_KERNELS", "no kernel image is available for execution on the device", 1);
  EXPECT_EQ(AvailableDevices().size(), 1u);
  EXPECT_EQ(OpenDevice("auto"), at::Device(at::kCPU));
  EXPECT_NE(CudaProblem().find("cuda:0 cannot be used: CUDA error: no kernel image"),
            std::string::npos)
      << CudaProblem();
  unsetenv("FAKE_CUDA_KERNELS");
  EXPECT_EQ(CudaProblem(), "");
}

// What the cases for a GPU find there, in every test program that has such.
TEST(FakeGpuTest, RefusesWhatAGpuRefuses) {
  const at::Device gpu = OpenDevice("cuda");
  const at::Tensor here = at::ones({2, 2}), there = at::ones({2, 2}, at::TensorOptions(gpu));
  EXPECT_THROW(at::mm(here, there), c10::Error);
  EXPECT_THROW(there + here, c10::Error);
  EXPECT_THROW(at::cat({there, here}), c10::Error);
  EXPECT_EQ((there + there).sum().item<float>(), 8);
  EXPECT_EQ((there * at::scalar_tensor(3)).sum().item<float>(), 12);
  EXPECT_EQ(here.copy_(there + 1).sum().item<float>(), 8);
  EXPECT_DEATH(EXPECT_EQ(*there.data_ptr<float>(), 1), "");
}

}  // namespace
}  // namespace quantry::engine
