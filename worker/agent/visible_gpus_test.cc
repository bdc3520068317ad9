#include "worker/agent/visible_gpus.h"

#include <array>
#include <string>

#include "gtest/gtest.h"

namespace quantry::agent {
namespace {

std::vector<GpuDescription> All() {
  std::vector<GpuDescription> all(3);
  const std::array<const char*, 3> uuids = {"GPU-aa", "GPU-ab", "GPU-c"};
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].uuid = uuids[i];
    all[i].model = std::string(1, static_cast<char>('a' + i));
  }
  return all;
}

std::string Models(const std::optional<std::string>& visible) {
  std::string models;
  for (const GpuDescription& gpu : VisibleGpus(All(), visible)) models += gpu.model;
  return models;
}

TEST(VisibleGpusTest, AreThoseThatTheVariableNames) {
  EXPECT_EQ(Models(std::nullopt), "abc");
  EXPECT_EQ(Models("0,2"), "ac");
  EXPECT_EQ(Models("2, 1"), "cb");
  EXPECT_EQ(Models("GPU-ab,GPU-c"), "bc");
  EXPECT_EQ(Models("1"), "b");
}

TEST(VisibleGpusTest, EndWhereANameIsNoGpus) {
  EXPECT_EQ(Models("0,7,1"), "a");
  EXPECT_EQ(Models("1,-1,2"), "b");
  EXPECT_EQ(Models("GPU-x,0"), "");
  EXPECT_EQ(Models("MIG-1"), "");
  EXPECT_EQ(Models(""), "");
  EXPECT_EQ(Models("1,GPU-ab"), "") << "the same twice";
}

class Three : public GpuInventory {
 public:
  std::vector<GpuDescription> List() const override { return All(); }
  std::vector<GpuReading> Read() const override {
    std::vector<GpuReading> readings(3);
    for (size_t i = 0; i < readings.size(); ++i) readings[i].uuid = All()[i].uuid;
    return readings;
  }
};

TEST(VisibleGpusTest, OthersAreNotRead) {
  const VisibleInventory some(std::make_unique<Three>(), "2,0");
  EXPECT_EQ(some.List().size(), 2u);
  std::string read;
  for (const GpuReading& reading : some.Read()) read += reading.uuid + " ";
  EXPECT_EQ(read, "GPU-aa GPU-c ");
}

TEST(VisibleGpusTest, OneOfThemIsLeftByItsName) {
  EXPECT_EQ(OnlyVisible(std::nullopt, 2), "2");
  EXPECT_EQ(OnlyVisible("5, 3", 1), "3");
  EXPECT_EQ(OnlyVisible("GPU-ab,GPU-c", 0), "GPU-ab");
  EXPECT_EQ(OnlyVisible("5,3", 2), "");
}

}  // namespace
}  // namespace quantry::agent
