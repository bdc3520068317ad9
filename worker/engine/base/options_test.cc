#include "worker/engine/base/options.h"

#include <gtest/gtest.h>

namespace quantry::engine {
namespace {

Options Make(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "tool");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return Options(static_cast<int>(argv.size()), argv.data(), {"model", "length"}, {"model"});
}

TEST(OptionsTest, ReadsPairs) {
  const Options options = Make({"--length", "12", "--model", "dir"});
  EXPECT_EQ(options.Text("model", ""), "dir");
  EXPECT_EQ(options.Integer("length", 1, 99, 5), 12);
  EXPECT_EQ(Make({"--model", "dir"}).Integer("length", 1, 99, 5), 5);
}

TEST(OptionsTest, WrongUsage) {
  EXPECT_THROW(Make({}), UsageError);
  EXPECT_THROW(Make({"--length", "12"}), UsageError);
  EXPECT_THROW(Make({"--model"}), UsageError);
  EXPECT_THROW(Make({"--model", "d", "--other", "1"}), UsageError);
  EXPECT_THROW(Make({"model", "d"}), UsageError);
  for (const char* length : {"x", "", "12x", "0", "100", "99999999999999999999"}) {
    EXPECT_THROW(Make({"--model", "d", "--length", length}).Integer("length", 1, 99, 5), UsageError)
        << length;
  }
}

}  // namespace
}  // namespace quantry::engine
