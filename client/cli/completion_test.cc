// Sources the generated script in a real bash and presses Tab.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdio>

#include "client/cli/testing/run.h"

namespace quantry::cli {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::IsSupersetOf;

class CompletionTest : public testing::Test {
 protected:
  CompletionTest() {
    folder.Write("completion", RunForTest({"completion", "bash"}).out);
    folder.Write("data/model/config.json", "{}");
    folder.Write("data/text.txt", "x");
    // Stands for the binary when the script asks for job ids.
    folder.Write("quantry", "#!/bin/sh\n[ \"$1 $2\" = 'list --quiet' ] && echo job-one job-two\n");
    std::filesystem::permissions(folder / "quantry", std::filesystem::perms::owner_all);
  }

  // The completions of the last word of a command line.
  std::vector<std::string> Complete(const std::vector<std::string>& words) {
    std::string script = "cd '" + folder / "data" + "'; source ../completion; COMP_WORDS=(";
    for (const std::string& word : words) script += "'" + word + "' ";
    script += "); COMP_WORDS[0]=../quantry; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); ";
    // compopt works only inside a real completion.
    script += "compopt() { :; }; _quantry; printf '%s\\n' \"${COMPREPLY[@]}\"";
    folder.Write("press-tab", script);
    FILE* bash = popen(("bash --norc '" + folder / "press-tab" + "' 2>&1").c_str(), "r");
    std::string output;
    std::array<char, 4096> buffer;
    while (fgets(buffer.data(), buffer.size(), bash) != nullptr) output += buffer.data();
    EXPECT_EQ(pclose(bash), 0);
    std::vector<std::string> found;
    std::istringstream lines(output);
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty()) found.push_back(line);
    }
    return found;
  }

  TempFolder folder;
};

TEST_F(CompletionTest, Words) {
  EXPECT_EQ(RunForTest({"completion", "bash", "--output", "json"}).json()["script"],
            RunForTest({"completion", "bash"}).out);
  EXPECT_THAT(Complete({"quantry", ""}), IsSupersetOf({"submit", "list", "watch", "completion"}));
  EXPECT_THAT(Complete({"quantry", "su"}), ElementsAre("submit"));
  EXPECT_THAT(Complete({"quantry", "workers", ""}), ElementsAre("list", "drain"));
  EXPECT_THAT(Complete({"quantry", "submit", "--calibration-s"}),
              ElementsAre("--calibration-samples", "--calibration-sampling"));
  EXPECT_THAT(Complete({"quantry", "submit", "--method", ""}), IsSupersetOf({"rtn", "awq"}));
  EXPECT_THAT(Complete({"quantry", "submit", "--method", "=", "a"}), ElementsAre("awq"));
  EXPECT_THAT(Complete({"quantry", "submit", "x", "--format", "d"}), ElementsAre("dense"));
  EXPECT_THAT(Complete({"quantry", "list", "--state", "c"}),
              ElementsAre("cancelling", "cancelled"));
  EXPECT_THAT(Complete({"quantry", "list", "--output", "j"}), ElementsAre("json"));
  EXPECT_THAT(Complete({"quantry", "submit", "--bits", ""}), IsEmpty());
}

TEST_F(CompletionTest, FilesFoldersAndJobs) {
  EXPECT_THAT(Complete({"quantry", "submit", ""}), ElementsAre("model"));
  EXPECT_THAT(Complete({"quantry", "submit", "--calibration", "t"}), ElementsAre("text.txt"));
  EXPECT_THAT(Complete({"quantry", "watch", ""}), ElementsAre("job-one", "job-two"));
  EXPECT_THAT(Complete({"quantry", "get", "job-t"}), ElementsAre("job-two"));
  EXPECT_THAT(Complete({"quantry", "report", ""}), ElementsAre("job-one", "job-two", "model"));
  EXPECT_THAT(Complete({"quantry", "compare", "job-one", "m"}), ElementsAre("model"));
}

TEST_F(CompletionTest, NamesWithBlanks) {
  folder.Write("data/train text.txt", "x");
  folder.Write("data/my model/config.json", "{}");
  EXPECT_THAT(Complete({"quantry", "submit", "my"}), ElementsAre("my model"));
  EXPECT_THAT(Complete({"quantry", "submit", "--calibration", "tr"}),
              ElementsAre("train text.txt"));
  EXPECT_THAT(Complete({"quantry", "compare", "job-one", "my"}), ElementsAre("my model"));
}

TEST_F(CompletionTest, GlobalFlagsAfterEveryCommand) {
  EXPECT_THAT(Complete({"quantry", "get", "--ser"}), ElementsAre("--server"));
  EXPECT_THAT(Complete({"quantry", "--ser"}), ElementsAre("--server"));
}

}  // namespace
}  // namespace quantry::cli
