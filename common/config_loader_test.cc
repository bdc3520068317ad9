#include "common/config_loader.h"

#include <cstdio>
#include <fstream>

#include "common/config_fields.h"
#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"
#include "quantry/v1/config.pb.h"

namespace quantry {
namespace {

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

v1::ServerConfig Load(const ConfigSources& sources) {
  v1::ServerConfig config;
  const auto command = LoadConfig(sources, &config);
  EXPECT_TRUE(command.ok()) << command.status();
  return config;
}

TEST(ConfigLoader, DefaultsComeFromTheProto) {
  const v1::ServerConfig config = Load({});
  EXPECT_EQ(config.listen(), "127.0.0.1:7070");
  EXPECT_TRUE(config.embedded());
  EXPECT_EQ(config.lease_ttl_s(), 30);
  EXPECT_EQ(config.max_blob_bytes(), int64_t{1} << 40);
}

TEST(ConfigLoader, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const std::string file = WriteFile(
      "layers.json", R"({"listen": "file:1", "worker_listen": "file:2", "admin_listen": "file:3",
                         "embedded": false, "max_blob_bytes": "7", "lease_ttl_s": 9})");
  const v1::ServerConfig config =
      Load({.args = {"--config", file, "--listen=flag:1"},
            .environment = {"QUANTRY_LISTEN=env:1", "QUANTRY_WORKER_LISTEN=env:2", "HOME=/x"}});
  EXPECT_EQ(config.listen(), "flag:1");
  EXPECT_EQ(config.worker_listen(), "env:2");
  EXPECT_EQ(config.admin_listen(), "file:3");
  EXPECT_FALSE(config.embedded());
  EXPECT_EQ(config.max_blob_bytes(), 7);
  EXPECT_EQ(config.lease_ttl_s(), 9);
  EXPECT_EQ(config.sweep_interval_s(), 5);
}

TEST(ConfigLoader, ListsAreReplacedByTheHigherLayer) {
  const std::string file = WriteFile("list.json", R"({"local_roots": ["/a", "/b"]})");
  EXPECT_EQ(Load({.args = {"--config", file}}).local_roots_size(), 2);
  const auto config = Load({.args = {"--config=" + file, "--local-roots=/c", "--local-roots", "/d"},
                            .environment = {"QUANTRY_LOCAL_ROOTS=/e:/f:/g"}});
  ASSERT_EQ(config.local_roots_size(), 2);
  EXPECT_EQ(config.local_roots(0), "/c");
  EXPECT_EQ(Load({.environment = {"QUANTRY_LOCAL_ROOTS=/e:/f:/g"}}).local_roots_size(), 3);
}

TEST(ConfigLoader, BoolFlagNeedsNoValue) {
  v1::WorkerConfig config;
  ASSERT_TRUE(LoadConfig({.args = {"--once"}}, &config).ok());
  EXPECT_TRUE(config.once());
  ASSERT_TRUE(LoadConfig({.args = {"--once=false"}}, &config).ok());
  EXPECT_FALSE(config.once());
}

struct BadCase {
  const char* name;
  std::vector<std::string> args;
  std::vector<std::string> environment;
  std::string file;
  const char* wanted;  // part of the message
};

class BadConfig : public testing::TestWithParam<BadCase> {};

TEST_P(BadConfig, SaysWhatIsWrong) {
  ConfigSources sources{.args = GetParam().args, .environment = GetParam().environment};
  if (!GetParam().file.empty()) {
    sources.args.push_back("--config=" +
                           WriteFile(std::string(GetParam().name) + ".json", GetParam().file));
  }
  v1::ServerConfig config;
  const auto command = LoadConfig(sources, &config);
  ASSERT_FALSE(command.ok());
  EXPECT_EQ(command.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(command.status().message().find(GetParam().wanted), std::string::npos)
      << command.status();
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadConfig,
    testing::Values(
        BadCase{"flag", {"--data-dri=/x"}, {}, "", "did you mean --data-dir?"},
        BadCase{"underscores", {"--data_dir=/x"}, {}, "", "did you mean --data-dir?"},
        BadCase{"positional", {"data"}, {}, "", "wanted flags of the form"},
        BadCase{"no_value", {"--data-dir"}, {}, "", "needs a value"},
        BadCase{"number", {"--lease-ttl-s=soon"}, {}, "", "flag --lease-ttl-s: wanted an integer"},
        BadCase{"overflow", {"--lease-ttl-s=4294967296"}, {}, "", "wanted an integer"},
        BadCase{"boolean", {"--embedded=maybe"}, {}, "", "wanted true or false, got 'maybe'"},
        BadCase{"env_typo", {}, {"QUANTRY_DATA_DRI=/x"}, "", "did you mean QUANTRY_DATA_DIR?"},
        BadCase{"env_value", {}, {"QUANTRY_LEASE_TTL_S="}, "", "variable QUANTRY_LEASE_TTL_S"},
        BadCase{"key", {}, {}, R"({"data_dirs": "/x"})", "did you mean data_dir?"},
        BadCase{"json", {}, {}, "{", "is not a JSON object"},
        BadCase{"array", {}, {}, "[]", "is not a JSON object"},
        BadCase{"null", {}, {}, R"({"listen": null})", "wanted a string, number or boolean"},
        BadCase{"two_values", {}, {}, R"({"listen": ["a", "b"]})", "wanted one value, got 2"},
        BadCase{"fraction", {}, {}, R"({"lease_ttl_s": 1.5})", "wanted an integer"}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(ConfigLoader, OtherProgramsVariablesAreLeftAlone) {
  v1::ServerConfig config;
  EXPECT_TRUE(
      LoadConfig({.environment = {"QUANTRY_WORK_DIR=/w", "QUANTRY_TENANT=t"}}, &config).ok());
}

TEST(ConfigLoader, MissingFileIsAnError) {
  v1::ServerConfig config;
  EXPECT_FALSE(LoadConfig({.args = {"--config=/nonexistent/x.json"}}, &config).ok());
}

TEST(ConfigLoader, EveryFieldIsDescribed) {
  for (const auto* type : {v1::ServerConfig::descriptor(), v1::WorkerConfig::descriptor()}) {
    for (int i = 0; i < type->field_count(); ++i) {
      EXPECT_FALSE(FieldHelp(*type->field(i)).empty()) << type->field(i)->full_name();
    }
  }
  const std::string help = ConfigHelp({"quantryd", "x"}, v1::ServerConfig());
  EXPECT_NE(help.find("--worker-listen"), std::string::npos);
  EXPECT_NE(help.find("(default 127.0.0.1:7071)"), std::string::npos);
}

TEST(ConfigLoader, CommandsAreRecognised) {
  v1::ServerConfig config;
  EXPECT_EQ(*LoadConfig({.args = {"--help"}}, &config), ConfigCommand::kHelp);
  EXPECT_EQ(*LoadConfig({.args = {"--version"}}, &config), ConfigCommand::kVersion);
  EXPECT_EQ(*LoadConfig({.args = {"--check-config"}}, &config), ConfigCommand::kCheck);
}

TEST(ConfigLoader, JsonShowsEveryFieldByItsKey) {
  const std::string json = ConfigJson(Load({}));
  EXPECT_NE(json.find("\"data_dir\": \"\""), std::string::npos);
  EXPECT_NE(json.find("\"sweep_interval_s\": 5"), std::string::npos);
}

}  // namespace
}  // namespace quantry
