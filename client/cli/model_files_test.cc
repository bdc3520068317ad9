#include "client/cli/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/cli/errors.h"
#include "client/cli/testing/run.h"

namespace quantry::cli {
namespace {

using testing::HasSubstr;

constexpr char kIndex[] = "model.safetensors.index.json";

struct Case {
  const char* name;
  std::map<std::string, std::string> files;
  std::vector<std::string> chosen;
  const char* reason;  // "" = success
  std::vector<std::string> says;
};

std::vector<Case> Cases() {
  const std::string index = R"({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})";
  return {
      {"single file",
       {{"config.json", "{}"}, {"model.safetensors", "w"}, {"run.py", "x"}, {"notes.md", "x"}},
       {"config.json", "model.safetensors"},
       "",
       {}},
      {"tokenizer and templates",
       {{"config.json", "{}"},
        {"model.safetensors", "w"},
        {"tokenizer.json", "{}"},
        {"chat_template.jinja", "t"},
        {"generation_config.json", "{}"},
        {"optimizer.pt", "p"}},
       {"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json"},
       "",
       {}},
      {"only the shards of the index",
       {{"config.json", "{}"},
        {kIndex, index},
        {"a.safetensors", "1"},
        {"b.safetensors", "2"},
        {"consolidated.safetensors", "3"}},
       {"a.safetensors", "b.safetensors", "config.json", kIndex},
       "",
       {}},
      {"safetensors beside a pickle",
       {{"config.json", "{}"}, {"model.safetensors", "w"}, {"pytorch_model.bin", "p"}},
       {"config.json", "model.safetensors"},
       "",
       {}},
      {"pickle only",
       {{"config.json", "{}"}, {"pytorch_model.bin", "p"}},
       {},
       "CHECKPOINT_FORMAT_REFUSED",
       {"pytorch_model.bin", "safe_serialization=True"}},
      {"no config", {{"model.safetensors", "w"}}, {}, "INVALID_CHECKPOINT", {"config.json"}},
      {"no weights", {{"config.json", "{}"}}, {}, "INVALID_CHECKPOINT", {"model.safetensors"}},
      {"missing shard",
       {{"config.json", "{}"}, {kIndex, index}, {"a.safetensors", "1"}},
       {},
       "INVALID_CHECKPOINT",
       {"b.safetensors"}},
      {"shard that leaves",
       {{"config.json", "{}"}, {kIndex, R"({"weight_map": {"a": "../x.safetensors"}})"}},
       {},
       "INVALID_CHECKPOINT",
       {"../x"}},
      {"index of nonsense",
       {{"config.json", "{}"}, {kIndex, "[]"}},
       {},
       "INVALID_CHECKPOINT",
       {"weight_map"}},
      {"index with a number",
       {{"config.json", "{}"}, {kIndex, R"({"weight_map": {"a": 1}})"}},
       {},
       "INVALID_CHECKPOINT",
       {"\"a\""}},
  };
}

TEST(FindModelFiles, ChoosesOrSaysWhatIsWrong) {
  for (const Case& c : Cases()) {
    const TempFolder folder;
    for (const auto& [name, contents] : c.files) folder.Write(name, contents);
    const auto files = FindModelFiles(folder.path());
    if (*c.reason == '\0') {
      ASSERT_TRUE(files.ok()) << c.name << files.status();
      std::vector<std::string> names;
      for (const LocalFile& file : *files) names.push_back(file.name);
      EXPECT_EQ(names, c.chosen) << c.name;
      continue;
    }
    const ErrorReport report = Describe(files.status());
    EXPECT_EQ(report.reason, c.reason) << c.name;
    for (const std::string& word : c.says) {
      EXPECT_THAT(report.message + report.next, HasSubstr(word)) << c.name;
    }
  }
}

TEST(FindModelFiles, FollowsLinksOfAModelCache) {
  const TempFolder folder;
  folder.Write("blobs/1", "{}");
  folder.Write("blobs/2", "weights");
  std::filesystem::create_directory(folder / "snapshot");
  std::filesystem::create_symlink(folder / "blobs/1", folder / "snapshot/config.json");
  std::filesystem::create_symlink(folder / "blobs/2", folder / "snapshot/model.safetensors");
  const auto files = FindModelFiles(folder / "snapshot");
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->at(1).size_bytes, 7);
}

TEST(FindModelFiles, AFolderThatIsNone) {
  const TempFolder folder;
  folder.Write("file", "x");
  EXPECT_THAT(std::string(FindModelFiles(folder / "file").status().message()),
              HasSubstr("no folder"));
  const auto missing = FindModelFiles(folder / "none");
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("does not exist"));
  EXPECT_THAT(Describe(missing.status()).next, HasSubstr("--model-path"));
}

TEST(FindTextFile, WantsSomethingToRead) {
  const TempFolder folder;
  folder.Write("empty", "");
  folder.Write("text", "words");
  EXPECT_EQ(FindTextFile("--calibration", folder / "text")->size_bytes, 5);
  const ErrorReport empty = Describe(FindTextFile("--calibration", folder / "empty").status());
  EXPECT_EQ(empty.reason, "INVALID_CALIBRATION");
  EXPECT_THAT(empty.message, HasSubstr("empty"));
  EXPECT_THAT(std::string(FindTextFile("--evaluation", folder / "no").status().message()),
              HasSubstr("--evaluation"));
  EXPECT_FALSE(FindTextFile("--calibration", folder.path()).ok());
}

}  // namespace
}  // namespace quantry::cli
