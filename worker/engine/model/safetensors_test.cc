#include "worker/engine/model/safetensors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "worker/engine/base/file.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"

namespace quantry::engine {
namespace {

using test::ErrorOf;
using test::Mentions;

std::string LittleEndian(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

// A whole file: length, header text, `data_bytes` zeros.
std::string FileWith(const std::string& header, size_t data_bytes) {
  return LittleEndian(header.size()) + header + std::string(data_bytes, '\0');
}

SafetensorsHeader Parse(const std::string& file, const SafetensorsLimits& limits = {}) {
  return ParseSafetensorsHeader(file, file.size(), "file.safetensors", limits);
}

std::string Nested(int levels) {
  return R"({"a":)" + std::string(levels, '[') + std::string(levels, ']') + "}";
}

TEST(SafetensorsHeaderTest, ReadsTensorsInTheOrderOfTheirData) {
  const std::string header = R"({"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},)"
                             R"("a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                             R"("empty":{"dtype":"I64","shape":[0,5],"data_offsets":[8,8]},)"
                             R"("__metadata__":{"format":"pt"}}  )";
  const SafetensorsHeader parsed = Parse(FileWith(header, 12));
  ASSERT_EQ(parsed.tensors.size(), 3u);
  EXPECT_EQ(parsed.tensors[0].name, "a");
  EXPECT_EQ(parsed.tensors[0].begin, 8 + header.size());
  EXPECT_EQ(parsed.tensors[1].name, "empty");
  EXPECT_EQ(parsed.tensors[2].dtype, at::kHalf);
  EXPECT_EQ(parsed.metadata.at("format"), "pt");
}

struct HostileHeader {
  const char* name;
  std::string file;
  const char* message;
};

class HostileHeaderTest : public ::testing::TestWithParam<HostileHeader> {};

TEST_P(HostileHeaderTest, IsRefused) {
  const EngineError error = ErrorOf([] { Parse(GetParam().file); });
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(Mentions(error, "file.safetensors")) << error.what();
  EXPECT_TRUE(Mentions(error, GetParam().message)) << error.what();
}

std::vector<HostileHeader> HostileHeaders() {
  const auto one = [](const std::string& fields) { return R"({"w":{)" + fields + "}}"; };
  const std::string good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  return {
      {"Empty", "", "at least 8"},
      {"SevenBytes", "1234567", "at least 8"},
      {"HeaderLength2To63", LittleEndian(1ull << 63) + "{}", "9223372036854775808"},
      {"HeaderLengthMax", LittleEndian(~0ull) + "{}", "18446744073709551615"},
      {"HeaderAboveLimit", LittleEndian((64ull << 20) + 1) + "{}", "67108864"},
      {"HeaderCutShort", LittleEndian(100) + "{}", "cut short"},
      {"NotAnObject", FileWith("[1]", 0), "no JSON object"},
      {"NotJson", FileWith("{\"w\":", 0), "not JSON"},
      {"TextAfterTheObject", FileWith("{} x", 0), "not JSON"},
      {"NotUtf8", FileWith("{\"\xff\":1}", 0), "not JSON"},
      {"TooDeep", FileWith(Nested(100'000), 0), "unexpected array"},
      {"ObjectsTooDeep", FileWith(R"({"a":{"shape":{}}})", 0), "unexpected object"},
      {"UnknownDtype", FileWith(one(R"("dtype":"F37","shape":[1],"data_offsets":[0,4])"), 4),
       "F37"},
      {"TruncatedData", FileWith(one(good), 3), "cut short"},
      {"BytesLeftOver", FileWith(one(good), 5), "belong to no tensor"},
      {"HoleBeforeTensor", FileWith(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), 8),
       "4 bytes before"},
      {"Overlap",
       FileWith(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                12),
       "'b' overlaps"},
      {"DuplicateTensor", FileWith("{\"w\":{" + good + "},\"w\":{" + good + "}}", 4),
       "'w' appears twice"},
      {"DuplicateField", FileWith(one(R"("dtype":"F32",)" + good), 4), "twice"},
      {"DuplicateMetadata", FileWith(R"({"__metadata__":{"a":"1","a":"2"}})", 0), "twice"},
      {"MissingOffsets", FileWith(one(R"("dtype":"F32","shape":[1])"), 4), "lacks"},
      {"UnknownField", FileWith(one(good + R"(,"x":"y")"), 4), "unknown field 'x'"},
      {"OffsetsBackwards", FileWith(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4),
       "no range"},
      {"OneOffset", FileWith(one(R"("dtype":"F32","shape":[1],"data_offsets":[4])"), 4),
       "2 are wanted"},
      {"NegativeShape", FileWith(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4),
       "negative"},
      {"FractionalShape", FileWith(one(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), 4),
       "not an integer"},
      {"RankNine",
       FileWith(one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), 4),
       "8 dimensions"},
      {"ShapeOverflow",
       FileWith(one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])"), 4),
       "overflows"},
      {"OffsetsOverflow",
       FileWith(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615])"), 4),
       "2^63"},
      {"OffsetsBeyondInt64",
       FileWith(
           one(R"("dtype":"F32","shape":[1],"data_offsets":[9223372036854775803,9223372036854775807])"),
           4),
       "ends at byte"},
      {"SizeContradictsShape",
       FileWith(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4), "wants 8 bytes"},
      {"MetadataNotText", FileWith(R"({"__metadata__":{"a":1}})", 0), "__metadata__"},
      {"NameTooLong", FileWith(R"({")" + std::string(5000, 'n') + R"(":{}})", 0), "5000 bytes"},
  };
}

INSTANTIATE_TEST_SUITE_P(All, HostileHeaderTest, ::testing::ValuesIn(HostileHeaders()),
                         [](const auto& test_case) { return std::string(test_case.param.name); });

TEST(SafetensorsHeaderTest, LimitsCountAndDepth) {
  const std::string file = FileWith(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                    R"("b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                    2);
  EXPECT_EQ(Parse(file).tensors.size(), 2u);
  EXPECT_TRUE(Mentions(ErrorOf([&] { Parse(file, {.tensors = 1}); }), "more than 1 tensors"));
  EXPECT_TRUE(Mentions(ErrorOf([&] { Parse(file, {.json_depth = 2}); }), "deeper than 2"));
}

void WriteRaw(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class SafetensorsFileTest : public ::testing::Test {
 protected:
  test::TempDir dir_;
};

TEST_F(SafetensorsFileTest, WritesWhatItReads) {
  const std::vector<at::Tensor> tensors = {
      at::arange(12, at::kFloat).view({3, 4}).t(),  // not contiguous
      at::arange(5, at::kFloat).to(at::kBFloat16),
      at::arange(3, at::kInt),
      at::arange(7, at::kByte),
      at::tensor(2.5, at::kDouble),
      at::zeros({0, 2}, at::kHalf)};
  const std::string path = dir_.File("w.safetensors");
  std::vector<TensorSpec> specs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    specs.push_back({StrCat("t", i), tensors[i].scalar_type(), tensors[i].sizes().vec()});
  }
  SafetensorsWriter writer(path, specs, {{"format", "pt"}, {"quantry", "1"}});
  for (size_t i = 0; i < tensors.size(); ++i) writer.Append(specs[i].name, tensors[i]);
  EXPECT_FALSE(std::filesystem::exists(path)) << "visible before it is whole";
  const uint64_t bytes = writer.Finish();
  EXPECT_EQ(bytes, std::filesystem::file_size(path));

  const auto file = SafetensorsFile::Open(path);
  EXPECT_EQ(file->metadata().at("quantry"), "1");
  EXPECT_EQ(file->tensors()[0].begin % 8, 0u);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo* info = file->Find(specs[i].name);
    ASSERT_NE(info, nullptr);
    EXPECT_TRUE(file->View(*info).equal(tensors[i].contiguous())) << i;
  }
  EXPECT_EQ(file->Find("absent"), nullptr);
  EXPECT_TRUE(file->LoadFloat(*file->Find("t1")).equal(at::arange(5, at::kFloat)));
  EXPECT_EQ(ErrorOf([&] { file->LoadFloat(*file->Find("t2")); }).reason, "INVALID_CHECKPOINT");
}

TEST_F(SafetensorsFileTest, ViewsOutliveTheFile) {
  const std::string path = dir_.File("w.safetensors");
  SafetensorsWriter writer(path, {{"w", at::kFloat, {1000}}});
  writer.Append("w", at::arange(1000, at::kFloat));
  writer.Finish();
  at::Tensor view;
  {
    const auto file = SafetensorsFile::Open(path);
    view = file->View(*file->Find("w"));
    file->Release(*file->Find("w"));
  }
  EXPECT_TRUE(view.equal(at::arange(1000, at::kFloat)));
}

TEST_F(SafetensorsFileTest, MisalignedDataIsReadAllTheSame) {
  const std::string header = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  ASSERT_NE((8 + header.size()) % 4, 0u);
  const float values[] = {1.5f, -2.0f};
  WriteRaw(dir_.File("w"), LittleEndian(header.size()) + header +
                               std::string(reinterpret_cast<const char*>(values), 8));
  const auto file = SafetensorsFile::Open(dir_.File("w"));
  EXPECT_TRUE(file->LoadFloat(*file->Find("w")).equal(at::tensor({1.5f, -2.0f})));
}

TEST_F(SafetensorsFileTest, NonFiniteWeightsNameTheTensor) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble}) {
    for (const double bad : {double{infinity}, -double{infinity}, std::nan("")}) {
      const std::string path = dir_.File("w");
      SafetensorsWriter writer(path, {{"layer.weight", dtype, {3}}});
      writer.Append("layer.weight", at::tensor({1.0, bad, 2.0}, at::kDouble).to(dtype));
      writer.Finish();
      const auto file = SafetensorsFile::Open(path);
      for (const EngineError& error : {ErrorOf([&] { file->LoadFloat(file->tensors()[0]); }),
                                       ErrorOf([&] { file->CheckFinite(file->tensors()[0]); })}) {
        EXPECT_EQ(error.reason, "NON_FINITE_WEIGHTS");
        EXPECT_TRUE(Mentions(error, "layer.weight") && Mentions(error, "1 of 3")) << error.what();
      }
    }
  }
}

TEST_F(SafetensorsFileTest, RefusesPicklesByTheirContent) {
  WriteRaw(dir_.File("zip.safetensors"), "PK\x03\x04 torch.save writes such archives");
  WriteRaw(dir_.File("pickle.safetensors"), "\x80\x02}q\x01(X\x05");
  for (const char* name : {"zip.safetensors", "pickle.safetensors"}) {
    const EngineError error = ErrorOf([&] { SafetensorsFile::Open(dir_.File(name)); });
    EXPECT_EQ(error.reason, "CHECKPOINT_FORMAT_REFUSED");
    EXPECT_TRUE(Mentions(error, "safe_serialization")) << error.what();
  }
}

TEST_F(SafetensorsFileTest, RefusesWhatIsNoFile) {
  WriteRaw(dir_.File("empty"), "");
  for (const std::string& path : {dir_.File("absent"), dir_.File("empty"), dir_.path()}) {
    EXPECT_EQ(ErrorOf([&] { SafetensorsFile::Open(path); }).reason, "INVALID_CHECKPOINT") << path;
  }
}

TEST_F(SafetensorsFileTest, ADroppedWriterLeavesNothing) {
  {
    SafetensorsWriter writer(dir_.File("w"), {{"w", at::kFloat, {2}}});
    EXPECT_EQ(ErrorOf([&] { writer.Finish(); }).failure_class, FailureClass::kBug);
    EXPECT_EQ(ErrorOf([&] { writer.Append("w", at::zeros({3})); }).failure_class,
              FailureClass::kBug);
    EXPECT_EQ(ErrorOf([&] { writer.Append("v", at::zeros({2})); }).failure_class,
              FailureClass::kBug);
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(SafetensorsFileTest, DiskFullNamesPathAndBytesAndLeavesNothing) {
  // A symlink stands for a full disk: every write to /dev/full gives ENOSPC.
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full";
  const std::string path = dir_.File("shard.safetensors");
  std::filesystem::create_symlink("/dev/full", path + ".partial");
  const EngineError error = ErrorOf([&] { SafetensorsWriter(path, {{"w", at::kFloat, {1000}}}); });
  EXPECT_EQ(error.reason, "DISK_FULL");
  EXPECT_EQ(error.failure_class, FailureClass::kEnvironment);
  EXPECT_EQ(error.metadata.at("path"), path);
  EXPECT_GT(std::stoll(error.metadata.at("bytes_wanted")), 4000);
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, pages = 0;
  statm >> total >> pages;
  return pages * ::sysconf(_SC_PAGESIZE);
}

TEST_F(SafetensorsFileTest, ReleasedPagesLeaveTheResidentSet) {
  const std::string path = dir_.File("w");
  constexpr int64_t kValues = 16 << 20;  // 64 MiB
  SafetensorsWriter writer(path, {{"w", at::kFloat, {kValues}}});
  writer.Append("w", at::zeros({kValues}));
  writer.Finish();
  const auto file = SafetensorsFile::Open(path);
  const int64_t before = ResidentBytes();
  EXPECT_EQ(file->View(file->tensors()[0]).sum().item<float>(), 0.0f);
  EXPECT_GT(ResidentBytes() - before, 32 << 20);
  file->Release(file->tensors()[0]);
  EXPECT_LT(ResidentBytes() - before, 16 << 20);
}

// Reading a tensor maps its neighbours in the page cache too: they must not stay.
TEST_F(SafetensorsFileTest, ReleasedNeighboursStayAway) {
  constexpr int kTensors = 512;
  const std::string path = dir_.File("w.safetensors");
  std::vector<TensorSpec> specs;
  for (int i = 0; i < kTensors; ++i) {
    specs.push_back({std::to_string(1000 + i), at::kFloat, {1 << 14}});
  }
  SafetensorsWriter writer(path, specs);
  for (const TensorSpec& spec : specs) writer.Append(spec.name, at::zeros({1 << 14}));
  writer.Finish();
  const auto file = SafetensorsFile::Open(path);
  file->LoadFloat(file->tensors()[0]);
  const int64_t before = ResidentBytes();
  for (int i = 0; i < kTensors; ++i) file->LoadFloat(file->tensors()[i * 37 % kTensors]);
  EXPECT_LT(ResidentBytes() - before, 4 << 20);
}

}  // namespace
}  // namespace quantry::engine
