#include "worker/engine/device/device.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

using test::ErrorOf;
using test::Mentions;

TEST(DeviceTest, ParsesRequests) {
  using Kind = DeviceRequest::Kind;
  EXPECT_EQ(ParseDevice("auto").kind, Kind::kAuto);
  EXPECT_EQ(ParseDevice("").kind, Kind::kAuto);
  EXPECT_EQ(ParseDevice("cpu").kind, Kind::kCpu);
  EXPECT_EQ(ParseDevice("cuda").index, 0);
  EXPECT_EQ(ParseDevice("cuda:3").kind, Kind::kCuda);
  EXPECT_EQ(ParseDevice("cuda:3").index, 3);
}

TEST(DeviceTest, RefusesOtherText) {
  for (const char* text :
       {"gpu", "CPU", "cuda:", "cuda:-1", "cuda:1x", "cuda:999", "cuda: 1", "mps"}) {
    const EngineError error = ErrorOf([&] { ParseDevice(text); });
    EXPECT_EQ(error.reason, "INVALID_SPEC") << text;
    EXPECT_TRUE(Mentions(error, text)) << error.what();
  }
}

TEST(DeviceTest, AutoTakesAGpuWhereThereIsOne) {
  const auto devices = AvailableDevices();
  ASSERT_FALSE(devices.empty());
  EXPECT_EQ(devices[0], at::Device(at::kCPU));
  EXPECT_EQ(OpenDevice("auto"), devices.size() > 1 ? devices[1] : devices[0]);
  EXPECT_EQ(OpenDevice("cpu"), at::Device(at::kCPU));
}

TEST(DeviceTest, AnAbsentGpuIsAResourceError) {
  const auto count = AvailableDevices().size() - 1;
  const std::string text = "cuda:" + std::to_string(count);
  const EngineError error = ErrorOf([&] { OpenDevice(text); });
  EXPECT_EQ(error.reason, "DEVICE_UNAVAILABLE");
  EXPECT_EQ(error.failure_class, FailureClass::kResource);
  EXPECT_TRUE(Mentions(error, text)) << error.what();
}

TEST(DeviceTest, TellsWhyNoGpuCanBeUsed) {
  EXPECT_EQ(CudaProblem().empty(), AvailableDevices().size() > 1) << CudaProblem();
}

TEST(DeviceTest, ThreadsAreAsAsked) {
  ConfigureRuntime(1);
  EXPECT_EQ(at::get_num_threads(), 1);
  ConfigureRuntime(2);
  EXPECT_EQ(at::get_num_threads(), 2);
  ConfigureRuntime(0);
  EXPECT_GE(at::get_num_threads(), 1);
}

class EveryDeviceTest : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryDeviceTest, ComputesTwiceTheSame) {
  const bool wants_gpu = std::string(GetParam()) == "cuda";
  if (wants_gpu && AvailableDevices().size() < 2) GTEST_SKIP() << "no GPU here";
  ConfigureRuntime(0);
  const at::Device device = OpenDevice(GetParam());
  const at::Tensor a = at::linspace(-1, 1, 300 * 200).view({300, 200}).to(device);
  const at::Tensor b = at::linspace(0, 2, 200 * 100).view({200, 100}).to(device);
  EXPECT_TRUE(at::mm(a, b).cpu().equal(at::mm(a, b).cpu()));
  EXPECT_FALSE(DescribeDevice(device).empty());
  if (wants_gpu) {
    EXPECT_GT(PeakDeviceBytes(device), 0);
  } else {
    EXPECT_EQ(PeakDeviceBytes(device), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryDeviceTest, ::testing::Values("cpu", "cuda"),
                         [](const auto& device) { return std::string(device.param); });

TEST(MemoryTest, PeakFollowsUse) {
  const int64_t before = PeakRssBytes();
  EXPECT_GT(before, 1 << 20);
  const at::Tensor big = at::ones({64 << 18});  // 64 MiB
  EXPECT_GE(PeakRssBytes(), 64 << 20);
  EXPECT_EQ(big.sum().item<float>(), static_cast<float>(64 << 18));
}

}  // namespace
}  // namespace quantry::engine
